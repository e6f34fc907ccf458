"""What callers may hand to a chat template."""

from __future__ import annotations

from collections import UserDict
from dataclasses import dataclass
from enum import Enum
from typing import Any

import pytest
from template_cases import TOOLS, assistant, call, parts, user

from edgedb import EdgeDBError, TemplateError
from edgedb.text.messages import plain_messages, plain_objects, plain_variables
from edgedb.text.spec import TokenizerSpec
from edgedb.text.template import render

TEXTS = "{% for m in messages %}<{{ m.role }}>{{ m['content'] + '|' }}{% endfor %}"
READS_PARTS = (
    "{% for m in messages %}<{{ m.role }}>{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}({{ part.text }}){% endfor %}{% endif %}{% endfor %}"
)


class Role(str, Enum):
    USER = "user"


@dataclass
class Said:
    role: str
    content: Any


class Dumped:
    """Like a message of the openai package."""

    def model_dump(self) -> dict[str, Any]:
        return {"role": "user", "content": "x", "refusal": None}


def text_of(template: str, messages: Any, **options: Any) -> str:
    spec = TokenizerSpec("tokenizers", b"", chat_template=template, special_tokens={})
    return str(render(spec, messages, **options))


def looped() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ("Hi", "messages: expected a list .* not str"),
        (b"Hi", "not bytes"),
        (None, "not NoneType"),
        (user("Hi"), "not dict"),
        ([], "no messages"),
        (["Hi"], "message 1: expected a dictionary"),
        ([user("Hi"), None], "message 2: expected a dictionary"),
        ([{"content": "Hi"}], "message 1: role must be a text"),
        ([{"role": "", "content": "Hi"}], "role must be a text"),
        ([{"role": 3, "content": "Hi"}], "role must be a text"),
        ([{"role": "user"}], "message 1: content is missing"),
        ([{"role": "user", "contents": "Hi"}], "content is missing"),
        ([user(3)], "content must be a text, a list of text parts or None, not int"),
        ([user(b"Hi")], "bytes is no JSON value"),
        ([user({"text": "Hi"})], "not dict"),
        ([user(["Hi"])], "message 1: part 1 that is str; this model reads text parts only"),
        ([user([{"type": "image_url", "image_url": {"url": "x"}}])], "part 1 of type 'image_url'"),
        ([user([*parts("Look:"), {"type": "image"}])], "part 2 of type 'image'"),
        ([user([{"type": "text"}])], "part 1 has no text"),
        ([user([{"type": "text", "text": None}])], "part 1 has no text"),
        ([assistant(None, tool_calls="x")], "message 1: tool_calls must be a list of objects"),
        ([assistant(None, tool_calls=["x"])], "tool_calls must be a list of objects"),
        ([{**user("Hi"), "at": {1, 2}}], "message 1: set is no JSON value"),
        ([{**user("Hi"), "at": object}], "message 1: type is no JSON value"),
        ([{**user("Hi"), ("a",): 1}], "message 1: tuple is no name"),
        ([{**user("Hi"), "at": looped()}], "message 1: nested more than 64 deep"),
    ],
)
def test_what_is_no_conversation(messages: Any, reason: str) -> None:
    with pytest.raises(TemplateError, match=reason) as error:
        plain_messages(messages)
    assert "\n" not in str(error.value)


def test_messages_of_other_libraries_become_plain() -> None:
    given = [Said(Role.USER, "Hi"), Dumped(), UserDict(role="user", content="y")]
    plain = plain_messages(iter(given))  # type: ignore[arg-type]
    assert plain == [user("Hi"), user("x"), user("y")]
    assert type(plain[0]["role"]) is str


def test_messages_are_copies() -> None:
    given = [assistant(parts("x"), tool_calls=[call("f", {"a": [1]})])]
    (plain,) = plain_messages(given)
    plain["content"][0]["text"] = "y"
    plain["tool_calls"][0]["function"]["arguments"]["a"].append(2)
    assert given == [assistant(parts("x"), tool_calls=[call("f", {"a": [1]})])]


def test_keys_without_a_value_are_left_out() -> None:
    (plain,) = plain_messages([assistant(None, tool_calls=[call("f", {})], name=None)])
    assert plain.keys() == {"role", "tool_calls"}


def test_thoughts_go_by_every_name() -> None:
    (plain,) = plain_messages([assistant("x", reasoning="hm")])
    assert plain["reasoning_content"] == plain["thinking"] == "hm"


def test_tools_documents_and_variables_are_checked() -> None:
    assert plain_objects(TOOLS, "tools") == TOOLS and plain_objects(None, "tools") is None
    assert plain_variables({"enable_thinking": False}) == {"enable_thinking": False}
    assert plain_variables(None) == {}
    wrong: Any
    for wrong in ("x", ["x"], {"a": 1}, 3):
        with pytest.raises(TemplateError, match="tools: expected a list of objects"):
            plain_objects(wrong, "tools")
    wrong = [print]
    with pytest.raises(TemplateError, match="tools: give the JSON schema of a function"):
        plain_objects(wrong, "tools")
    for wrong in ("x", [1], {1: 2}):
        with pytest.raises(TemplateError, match="chat_template_kwargs: expected names and values"):
            plain_variables(wrong)
    with pytest.raises(TemplateError, match="chat_template_kwargs: tools is an option of its own"):
        plain_variables({"tools": []})


def test_flags_are_flags() -> None:
    for name in ("add_generation_prompt", "continue_final_message"):
        with pytest.raises(EdgeDBError, match=f"{name} = 1: expected True or False"):
            text_of(TEXTS, [user("Hi")], **{name: 1})


def test_parts_are_text_where_a_template_knows_only_that() -> None:
    talk = [user(parts("One", "Two")), assistant("Three"), user(parts("Four"))]
    assert text_of(TEXTS, talk) == "<user>One\nTwo|<assistant>Three|<user>Four|"
    assert text_of("{{ messages[0].content }}", talk) == "One\nTwo"
    assert text_of("{{ messages[0].content|tojson }}", talk) == '"One\\nTwo"'
    assert text_of(READS_PARTS, talk) == "<user>(One)(Two)<assistant>Three<user>(Four)"


def test_each_message_is_looked_at_by_itself() -> None:
    template = "{{ messages[0].content|trim }}{% set messages = messages[1:] %}" + READS_PARTS
    talk = [{"role": "system", "content": parts("Be", "brief.")}, user(parts("One", "Two"))]
    assert text_of(template, talk) == "Be\nbrief.<user>(One)(Two)"


def test_an_empty_list_of_parts_is_an_empty_text() -> None:
    assert text_of(TEXTS, [user([])]) == "<user>|"


def test_no_content_is_an_empty_text_where_a_template_needs_one() -> None:
    talk = [user("Hi"), assistant(None, tool_calls=[call("f", {"a": 1})]), user(None)]
    assert text_of(TEXTS, talk) == "<user>Hi|<assistant>|<user>|"
    assert text_of("{{ messages[1].content is defined }}", talk) == "False"
    with pytest.raises(TemplateError, match="missing"):
        text_of("{{ messages[1].missing.x }}", talk)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ messages[1].content }} END", "One, "),
        ("{{ messages[1].content|trim }}END", "One,"),
        ("{{ messages[1].content }}-{{ messages[1].content|trim }}END", "One, -One,"),
    ],
)
def test_the_last_message_stays_open(template: str, expected: str) -> None:
    assert (
        text_of(template, [user("x"), assistant("One, ")], continue_final_message=True) == expected
    )
    listed = text_of(READS_PARTS, [assistant(parts("One", "Two "))], continue_final_message=True)
    assert listed == "<assistant>(One)(Two "


def test_another_field_than_the_content_stays_open() -> None:
    template = "{{ messages[0].reasoning_content }}</think>{{ messages[0].content }}"
    talk = [assistant("x", thinking="Hm")]
    assert text_of(template, talk, continue_final_message="reasoning_content") == "Hm"


@pytest.mark.parametrize(
    ("template", "messages", "options", "reason"),
    [
        (TEXTS, [user(None)], {}, "the last message has no content"),
        (TEXTS, [user("x")], {"continue_final_message": "thinking"}, "has no thinking"),
        ("x", [user("x")], {}, "does not write the last message as it is"),
        ("{{ messages[0].content[:3] }}", [user("long")], {}, "does not write"),
        (TEXTS, [user("x")], {"add_generation_prompt": True}, "exclude each other"),
    ],
)
def test_what_cannot_be_continued(
    template: str, messages: Any, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(TemplateError, match=reason):
        text_of(template, messages, **{"continue_final_message": True, **options})
