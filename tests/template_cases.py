"""Conversations and templates to compare with transformers (``template_oracle.py``)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SPECIAL_TOKENS = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
}


@dataclass(frozen=True)
class Case:
    """A template, a conversation, and the options of ``render``."""

    name: str
    template: str
    messages: list[dict[str, Any]]
    options: dict[str, Any] = field(default_factory=dict)


def system(text: Any) -> dict[str, Any]:
    return {"role": "system", "content": text}


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def parts(*texts: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text} for text in texts]


def call(name: str, arguments: Any, identifier: str = "call_001") -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"id": identifier, "type": "function", "function": function}


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": 'The weather of a town, now <or> later & "there".',
        "parameters": {
            "type": "object",
            "properties": {
                "town": {"type": "string", "description": "Its name, as in Zürich"},
                "days": {"type": "integer", "enum": [1, 3], "default": 1},
                "units": {"type": "array", "items": {"type": "string"}},
            },
            "required": ["town"],
        },
    },
}
CLOCK = {
    "type": "function",
    "function": {
        "name": "get_time",
        "description": "What time it is.",
        "parameters": {"type": "object", "properties": {}},
    },
}
TOOLS = [WEATHER, CLOCK]
TALK = [
    system("You are brief."),
    user("  What is 2 + 2? \n"),
    assistant(" It is 4.\n"),
    user("And <b>3 & 3</b> 日本?"),
]
THOUGHT = [
    user("How many legs has a spider?"),
    assistant("Eight.", reasoning_content="Spiders are arachnids."),
    user("And an ant?"),
]
CALLED = [
    system("You may call tools."),
    user("Weather in Zürich?"),
    assistant(None, tool_calls=[call("get_weather", {"town": "Zürich", "days": 3})]),
    {
        "role": "tool",
        "name": "get_weather",
        "tool_call_id": "call_001",
        "content": '{"sky": "blue"}',
    },
    assistant("Blue skies."),
    user("Thank you!"),
]


def conversations(template: str) -> Iterator[Case]:
    """What is tried on every real template."""
    spelled = [
        {**message, "tool_calls": [call("get_weather", '{"town": "Zürich", "days": 3}')]}
        if message.get("tool_calls")
        else message
        for message in CALLED
    ]
    wordy = [
        {"content": "Let me look.", **m, "tool_calls": m["tool_calls"]}
        if m.get("tool_calls")
        else m
        for m in CALLED
    ]
    twice = [
        user("Weather and time?"),
        assistant(
            "", tool_calls=[call("get_weather", {"town": "Rome"}), call("get_time", {}, "call_002")]
        ),
        {"role": "tool", "name": "get_weather", "tool_call_id": "call_001", "content": "rain"},
        {"role": "tool", "name": "get_time", "tool_call_id": "call_002", "content": "noon"},
    ]
    documents = [
        {"title": "Ants", "text": "Ants have six legs."},
        {"title": "Bees", "text": "So have bees."},
    ]
    tried: list[tuple[str, list[dict[str, Any]], dict[str, Any]]] = [
        ("one question", [user("Hi")], {}),
        ("a talk", TALK, {}),
        ("a talk, no prompt", TALK, {"add_generation_prompt": False}),
        ("a talk with an end", [*TALK, assistant("Six.")], {"add_generation_prompt": False}),
        ("continued", [*TALK[:2], assistant("It is  ")], {"continue_final_message": True}),
        (
            "continued parts",
            [user(parts("Hi")), assistant(parts("One", "Two"))],
            {"continue_final_message": True},
        ),
        ("thinking on", THOUGHT, {"chat_template_kwargs": {"enable_thinking": True}}),
        (
            "thinking off",
            THOUGHT,
            {"chat_template_kwargs": {"enable_thinking": False, "thinking": False}},
        ),
        (
            "thoughts in the text",
            [THOUGHT[0], assistant("<think>\nHm.\n</think>\n\nEight."), THOUGHT[2]],
            {},
        ),
        (
            "thoughts only",
            [
                *THOUGHT[:1],
                assistant(None, reasoning_content="Hm.", tool_calls=[call("get_time", {})]),
            ],
            {},
        ),
        ("tools", [user("Hi")], {"tools": TOOLS}),
        ("tools and a system message", TALK, {"tools": TOOLS}),
        ("no tools", TALK, {"tools": []}),
        ("called", CALLED, {"tools": TOOLS}),
        ("called with words", wordy, {"tools": TOOLS}),
        ("called, arguments as text", spelled, {"tools": TOOLS}),
        ("called twice", twice, {"tools": TOOLS}),
        ("called without tools", CALLED, {}),
        ("parts", [system(parts("Be brief.")), user(parts("Look:", "a list"))], {}),
        (
            "parts of the user",
            [system("Be brief."), user(parts("Look:", "a list")), assistant("Yes."), user("So?")],
            {},
        ),
        ("documents", [user("Legs of ants?")], {"documents": documents}),
        ("developer", [{"role": "developer", "content": "Be brief."}, user("Hi")], {}),
        ("two users", [user("Hi"), user("Hello?")], {}),
        ("an assistant first", [assistant("Welcome."), user("Hi")], {}),
        (
            "variables",
            [user("Hi")],
            {
                "chat_template_kwargs": {
                    "date_string": "1 May 2026",
                    "reasoning_effort": "low",
                    "functions": "[]",
                    "datetime": "now",
                }
            },
        ),
        ("empty", [user("")], {}),
    ]
    for name, messages, options in tried:
        yield Case(name, template, messages, options)


def language() -> list[Case]:
    """What templates are made of, one thing at a time, on one conversation."""
    text = (Path(__file__).parent / "golden" / "templates.jinja").read_text(encoding="utf-8")
    _, *found = re.split(r"^##### (.*)\n", text, flags=re.MULTILINE)
    return [
        Case(name, template.removesuffix("\n"), TALK)
        for name, template in zip(found[::2], found[1::2], strict=True)
    ]


_CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_BRACKETS = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content | trim }} {{ eos_token }}{% endif %}{% endfor %}"
)
_CALLS = """{% if tools %}Tools:
{% for tool in tools %}
- {{ tool.function | tojson }}
{% endfor %}
{% endif %}
{% for m in messages %}
<{{ m.role }}{% if m.name %} name={{ m.name }}{% endif %}>
{% if m.tool_calls %}
{% for call in m.tool_calls %}
{{ call.function.name }}:
{% for k, v in call.function.arguments.items() %}
  {{ k }}={{ v | tojson }}{{ "," if not loop.last }}
{% endfor %}
{% endfor %}
{% else %}
{{ m.content }}
{% endif %}
{% endfor %}
"""
_PARTS = """{% for m in messages %}
{{ m.role }}:
{% if m.content is string %}
{{ m.content }}
{% else %}
{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}

{% endif %}
{% endfor %}"""
_THOUGHTS = """{% for m in messages %}
{{ m.role }}: {% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}

{{ m.content }}
{% endfor %}
{% if add_generation_prompt %}
assistant: {% if not enable_thinking | default(true) %}<think></think>{% endif %}
{% endif %}"""
_DOCUMENTS = """{% for d in documents or [] %}
[{{ loop.index }}] {{ d['title'] }}: {{ d.text }}
{% endfor %}
{{ messages[-1].content }}"""
_ANSWER = [user("Count."), assistant("One, two, ")]

CONVERSATIONS = [
    Case("brackets", _BRACKETS, TALK[1:]),
    Case("brackets, an answer at the end", _BRACKETS, TALK[1:3]),
    Case("tools", _CALLS, CALLED, {"tools": TOOLS}),
    Case("tool calls without tools", _CALLS, CALLED),
    Case("no tools", _CALLS, TALK, {"tools": []}),
    Case("arguments as text", "{{ messages[2].tool_calls[0].function.arguments }}", CALLED),
    Case("parts", _PARTS, [user(parts("One", "Two")), assistant("Three"), user(parts("Four"))]),
    Case("texts where parts are known", _PARTS, TALK),
    Case(
        "no content",
        "{% for m in messages %}{{ m.content is defined }}{{ m.tool_calls is none }};{% endfor %}",
        CALLED,
    ),
    Case(
        "keys without a value",
        "{% for m in messages %}{{ m.keys()|list }}{% endfor %}",
        [{"role": "user", "content": "x", "name": None}],
    ),
    Case("thoughts of a turn", _THOUGHTS, THOUGHT),
    Case("thinking off", _THOUGHTS, THOUGHT, {"chat_template_kwargs": {"enable_thinking": False}}),
    Case(
        "thoughts by another name",
        _THOUGHTS,
        [user("x"), {"role": "assistant", "content": "y", "thinking": "hm"}],
    ),
    Case(
        "a variable in place of a token",
        "{{ bos_token }}",
        TALK,
        {"chat_template_kwargs": {"bos_token": "[B]"}},
    ),
    Case(
        "documents",
        _DOCUMENTS,
        TALK,
        {"documents": [{"title": "T", "text": "x"}, {"title": "U", "text": "y"}]},
    ),
    Case("no prompt", _CHATML, TALK, {"add_generation_prompt": False}),
    Case("continued", _CHATML, _ANSWER, {"continue_final_message": True}),
    Case("continued where it is trimmed", _BRACKETS, _ANSWER, {"continue_final_message": True}),
    Case(
        "continued parts",
        _PARTS,
        [user("x"), assistant(parts("One", "Two "))],
        {"continue_final_message": True},
    ),
    Case(
        "continued thought", _THOUGHTS, THOUGHT[:2], {"continue_final_message": "reasoning_content"}
    ),
    Case(
        "continued, but not written",
        "{{ messages[0].content }}",
        _ANSWER,
        {"continue_final_message": True},
    ),
    Case(
        "continued, but changed",
        "{{ messages[1].content|upper }}",
        _ANSWER,
        {"continue_final_message": True},
    ),
    Case("continued, without content", _CALLS, CALLED[:3], {"continue_final_message": True}),
    Case(
        "continued and a prompt",
        _CHATML,
        _ANSWER,
        {"continue_final_message": True, "add_generation_prompt": True},
    ),
    Case("nothing said", _CHATML, []),
]

CASES = [*language(), *CONVERSATIONS]
