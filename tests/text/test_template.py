"""Chat templates: what is rendered, and everything a hostile one can try."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest
from quick import within
from template_cases import CASES, Case
from template_oracle import GOLDEN, by_edgedb, by_transformers, differences

from edgedb import TemplateError
from edgedb.text.spec import TokenizerSpec
from edgedb.text.template import render

BY_TRANSFORMERS = json.loads(GOLDEN.read_text(encoding="utf-8"))
HELLO = [{"role": "user", "content": "Hello <b> & 'you'"}]


def spec_of(template: str | None) -> TokenizerSpec:
    return TokenizerSpec(
        "tokenizers", b"", chat_template=template, special_tokens={"bos_token": "<s>"}
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_same_text_as_transformers(case: Case) -> None:
    assert by_edgedb(case) == BY_TRANSFORMERS[case.name]


def test_what_transformers_makes_is_up_to_date() -> None:
    assert list(BY_TRANSFORMERS) == [case.name for case in CASES]
    rendered = [text for text in BY_TRANSFORMERS.values() if text is not None]
    assert len(rendered) >= 60
    if importlib.util.find_spec("transformers") is not None:
        assert {case.name: by_transformers(case) for case in CASES} == BY_TRANSFORMERS


def test_real_templates() -> None:
    """``EDGEDB_TEMPLATES`` names the folders; see ``template_oracle.py``."""
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("needs transformers")
    folders = [Path(p) for p in os.environ.get("EDGEDB_TEMPLATES", "").split(os.pathsep) if p]
    counts, wrong = differences(folders)
    assert counts["templates"] >= 1 and counts["equal"] >= 10
    assert not wrong


def test_chatml(tiny_spec: TokenizerSpec) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Bye"},
    ]
    expected = (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n"
    )
    assert render(tiny_spec, messages, add_generation_prompt=False) == expected
    assert render(tiny_spec, messages) == expected + "<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ bos_token }}{{ messages[0]['content'] }}", "<s>Hello <b> & 'you'"),
        ("{{ messages[0].content | tojson }}", "\"Hello <b> & 'you'\""),
        ("{{ {'é': [1]} | tojson(indent=1) }}", '{\n "é": [\n  1\n ]\n}'),
        ("  {% for m in messages %}\n{{ m.role }}\n  {% endfor %}\nx", "user\nx"),
        (
            "{% for x in 'abc' %}{% if x == 'b' %}{% continue %}{% endif %}{{ x }}"
            "{{ loop.index }}{{ loop.last }}{% endfor %}",
            "a1Falsec3True",
        ),
        ("{% for x in 'abc' %}{{ x }}{% break %}{% endfor %}", "a"),
        ("{% for x in 'ab' %}{{ loop.length }}{{ loop.first }}{% endfor %}", "2True2False"),
        ("{% for x in 'abc' if x != 'b' %}{{ x }}{% endfor %}", "ac"),
        ("{% for x in [] %}{% else %}none{% endfor %}", "none"),
        ("{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% endfor %}", "a1"),
        ("{% for x in missing %}{% endfor %}{{ tools is none }}", "True"),
        ("{% generation %}mine{% endgeneration %}", "mine"),
        (
            "{% set n = namespace(i=0) %}{% for x in 'ab' %}{% set n.i = n.i + 1 %}{% endfor %}"
            "{{ n.i }}",
            "2",
        ),
        ("{{ '-' * 3 }}{{ '%s!' % 'a' }}", "---a!"),
        ("{{ strftime_now('%Y')[:2] }}", "20"),
    ],
)
def test_what_published_templates_use(template: str, expected: str) -> None:
    assert render(spec_of(template), HELLO) == expected


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.__class__.x }}", "unsafe"),
        ("{{ cycler.__init__.__globals__.os.system('true') }}", "unsafe"),
        ("{{ render.__globals__ }}", "undefined"),
        ("{{ ''['__cla' ~ 'ss__'] }}{{ (''|attr('__class__')).x }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ messages[0].update(a=1) }}", "unsafe"),
        ("{% import 'os' as os %}", "loader"),
        ("{% include '/etc/passwd' %}", "loader"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "steps"),
        ("{{ range(10 ** 9) }}", "range"),
        ("{{ range(1000000000) | list }}", "range"),
        ("{{ 'a' * 1000000000 }}", "repetitions"),
        ("{{ 1000000000 * [1] }}", "repetitions"),
        ("{{ '%1000000000d' % 1 }}", "width"),
        ("{% for a in range(9999) %}{{ 'aaaaaaaaaaaaaaaa' * 4000 }}{% endfor %}", "characters"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "deeply"),
        ("{% if %}", "line 1"),
        ("\n\n{{ 'a", "line 3"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ messages[7].content.x }}", "element 7"),
        ("{{ raise_exception('roles must alternate\nsecond line') }}", "roles must alternate"),
    ],
)
def test_what_a_template_must_not_do(template: str, reason: str) -> None:
    def refusal() -> str:
        with pytest.raises(TemplateError, match=reason) as error:
            render(spec_of(template), HELLO)
        return str(error.value)

    message = within(10, refusal)
    assert message.startswith("chat template")
    assert "\n" not in message


def test_the_loop_budget_is_fresh_for_each_rendering() -> None:
    spec = spec_of("{% for a in range(99999) %}{% endfor %}x")
    assert [render(spec, HELLO) for _ in range(12)] == ["x"] * 12


def test_no_template_says_what_to_do() -> None:
    with pytest.raises(TemplateError, match="edgedb generate"):
        render(spec_of(None), HELLO)


@pytest.mark.parametrize(
    "messages",
    [["hi"], [{"content": "hi"}], [{"role": "user"}], [{"role": "user", "content": ["hi"]}]],
)
def test_messages_are_checked(messages: list[object]) -> None:
    with pytest.raises(TemplateError, match="message 1"):
        render(spec_of("x"), messages)  # type: ignore[arg-type]


def test_messages_are_not_changed() -> None:
    message = dict(HELLO[0])
    render(spec_of("{% set _ = messages[0] %}{{ messages }}"), [message])
    assert message == HELLO[0]


def test_a_message_cannot_be_a_template(tiny_spec: TokenizerSpec) -> None:
    assert "{{ 1 + 1 }}" in render(tiny_spec, [{"role": "user", "content": "{{ 1 + 1 }}"}])


def test_chat_ids_of_smollm2_decode_to_its_template(shared: Path) -> None:
    """The reference ids begin with the default system turn that SmolLM2's template writes."""
    ids = np.load(shared / "ref/smollm2_ref.npz")["chat_ids"]
    assert ids[0] == 1 and ids[-1] == 198
    template = (
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\nYou are S.<|im_end|>\n' }}{% endif %}"
        "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    spec = dataclasses.replace(spec_of(template), special_tokens={})
    assert render(spec, [{"role": "user", "content": "Hi"}]) == (
        "<|im_start|>system\nYou are S.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
