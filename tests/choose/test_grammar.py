"""Answers in a given form: always valid, or out of tokens."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from places import ROOT

import edgedb
from edgedb import EdgeDBError

pytest.importorskip("llguidance", reason="needs pip install '.[grammar]'")
jsonschema = pytest.importorskip("jsonschema")

PROMPT = [5, 9, 2, 40, 17, 23, 8]
NAME = {"type": "string", "maxLength": 12}
SCHEMAS: list[dict[str, Any]] = [
    {"type": "boolean"},
    {"type": "null"},
    {"type": "integer", "minimum": -20, "maximum": 300},
    {"type": "number", "minimum": 0, "maximum": 1},
    {"type": "string", "maxLength": 20},
    {"type": "string", "minLength": 3, "maxLength": 5},
    {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{1,3}$"},
    {"type": "string", "format": "date"},
    {"enum": ["red", "green", "blue", 3, None, "Grün"]},
    {"const": {"version": [1, 2]}},
    {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "maxItems": 5},
    {"type": "array", "items": NAME, "minItems": 2, "maxItems": 3},
    {
        "type": "array",
        "prefixItems": [{"type": "boolean"}, {"type": "null"}],
        "items": False,
        "minItems": 2,
    },
    {
        "type": "object",
        "properties": {"name": NAME, "age": {"type": "integer", "minimum": 0, "maximum": 150}},
        "required": ["name", "age"],
        "additionalProperties": False,
    },
    {
        "type": "object",
        "properties": {"a": {"type": "boolean"}, "b": {"type": "null"}, "c": NAME},
        "additionalProperties": False,
    },
    {
        "type": "object",
        "properties": {
            "city": {"enum": ["Paris", "São Paulo", "東京"]},
            "position": {
                "type": "object",
                "properties": {
                    "x": {"type": "integer", "minimum": -9, "maximum": 9},
                    "y": {"type": "integer", "minimum": -9, "maximum": 9},
                },
                "required": ["x", "y"],
                "additionalProperties": False,
            },
        },
        "required": ["city", "position"],
        "additionalProperties": False,
    },
    {"anyOf": [{"type": "boolean"}, NAME, {"type": "array", "items": False}]},
    {
        "type": "object",
        "properties": {"kind": {"const": "circle"}, "r": {"type": "number", "maximum": 10}},
        "required": ["kind", "r"],
        "additionalProperties": False,
    },
    {
        "$defs": {
            "tree": {
                "type": "object",
                "properties": {
                    "value": {"type": "boolean"},
                    "children": {
                        "type": "array",
                        "items": {"$ref": "#/$defs/tree"},
                        "maxItems": 2,
                    },
                },
                "required": ["value", "children"],
                "additionalProperties": False,
            }
        },
        "$ref": "#/$defs/tree",
    },
    {
        "type": "object",
        "additionalProperties": {"type": "integer", "minimum": 0, "maximum": 5},
        "maxProperties": 2,
    },
]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> edgedb.Model:
    return edgedb.load(tiny_model, threads=1)


def test_a_thousand_requests_are_valid_or_out_of_tokens(model: edgedb.Model) -> None:
    """Random weights ask for more nonsense than a real model would."""
    rng = np.random.default_rng(1)
    session = model.session()
    validators = [jsonschema.Draft202012Validator(schema) for schema in SCHEMAS]
    complete = 0
    for request in range(1000):
        which = int(rng.integers(len(SCHEMAS)))
        answer = session.generate(
            rng.integers(3, 320, 5).tolist(),
            json_schema=SCHEMAS[which],
            max_tokens=int(rng.integers(20, 200)),
            temperature=float(rng.choice([0.0, 0.7, 1.5, 5.0])),
            top_k=int(rng.choice([0, 1, 40])),
            seed=request,
        )
        if answer.finish_reason == "length":
            continue
        assert answer.finish_reason == "stop"
        validators[which].validate(json.loads(answer.text))
        complete += 1
    assert complete > 700


def test_regex_and_lark_grammar(model: edgedb.Model) -> None:
    for seed in range(20):
        options = {"seed": seed, "temperature": 3.0, "max_tokens": 40}
        text = model.generate(PROMPT, regex=r"[0-9]{3}-(ab|ü)?c", **options).text
        assert re.fullmatch(r"[0-9]{3}-(ab|ü)?c", text)
        text = model.generate(PROMPT, grammar='start: "yes" | "no " /[a-c]{2}/', **options).text
        assert re.fullmatch(r"yes|no [a-c]{2}", text)


def test_forms_of_a_model_that_puts_a_space_before_a_text(sentencepiece_model: Path) -> None:
    model = edgedb.load(sentencepiece_model, context=100)
    for prompt in ("What is it?", [1]):
        for seed in range(5):
            options = {"seed": seed, "temperature": 3.0, "max_tokens": 60}
            assert model.generate(prompt, regex="abc", **options).text == "abc"
            assert (
                model.generate(prompt, grammar='start: "the " /[a-c]{2}/', **options).text[:4]
                == "the "
            )
            text = model.generate(prompt, json_schema={"const": {"a b": [1, 2]}}, **options).text
            assert json.loads(text) == {"a b": [1, 2]}


def test_a_format_that_nobody_knows_is_an_annotation(model: edgedb.Model) -> None:
    schema = {"type": "string", "format": "colour", "pattern": "^[a-c]{3}$"}
    for given in (schema, json.dumps(schema)):
        text = model.generate(PROMPT, json_schema=given, temperature=3.0, max_tokens=20).text
        assert re.fullmatch('"[a-c]{3}"', text)
    assert schema["format"] == "colour", "the caller's own is left as it is"


def nested(depth: int, inner: Any) -> Any:
    for _ in range(depth):
        inner = {"type": "array", "items": inner, "minItems": 1, "maxItems": 1}
    return inner


def test_a_schema_nested_as_deeply_as_may_be(model: edgedb.Model) -> None:
    deep = nested(99, {"const": 7})
    options = {"seed": 1, "max_tokens": 90, "logit_bias": {2: -np.inf}}
    text = model.generate(PROMPT, json_schema=deep, **options).text
    assert text.startswith("[") and set(text) <= set("[ \n\t7]")


def holding_itself() -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "array"}
    schema["items"] = schema
    return schema


def test_an_answer_too_long_says_so(model: edgedb.Model) -> None:
    answer = model.generate(PROMPT, regex="[a-z]{30}", max_tokens=3)
    assert answer.finish_reason == "length" and len(answer.tokens) == 3
    assert re.fullmatch("[a-z]{1,29}", answer.text)


def test_a_schema_as_text_and_in_a_chat(model: edgedb.Model) -> None:
    answer = model.chat(
        [{"role": "user", "content": "Hi"}],
        json_schema='{"type": "array", "items": {"type": "boolean"}, "maxItems": 2}',
        max_tokens=50,
    )
    assert all(type(item) is bool for item in json.loads(answer.text))


def test_several_answers_have_a_parser_each(model: edgedb.Model) -> None:
    answers = model.generate(PROMPT, n=4, regex="[a-f]{5}", temperature=5.0, seed=1)
    assert len({a.text for a in answers}) > 1
    assert all(re.fullmatch("[a-f]{5}", a.text) for a in answers)


def test_the_same_text_without_a_word_to_forbid(model: edgedb.Model) -> None:
    """A grammar of everything changes no choice."""
    options = {"seed": 3, "temperature": 1.5, "max_tokens": 10}
    free = model.generate(PROMPT, logit_bias={2: -np.inf}, **options)
    ascii_only = all(model.tokenizer.token_bytes(i).isascii() for i in free.tokens)
    held = model.generate(PROMPT, regex=r"(.|\n)*", logit_bias={2: -np.inf}, **options)
    assert not ascii_only or held.tokens == free.tokens


REAL = ROOT / "models" / "smollm2-135m-instruct-db2.dbb"


def test_a_real_model_describes_a_person() -> None:
    model = edgedb.load(REAL, context=1024)
    schema = SCHEMAS[13]
    messages = [{"role": "user", "content": "Describe a girl named Lily as JSON: name and age."}]
    for seed in range(4):
        answer = model.chat(messages, json_schema=schema, max_tokens=80, seed=seed)
        assert answer.finish_reason == "stop"
        person = json.loads(answer.text)
        jsonschema.validate(person, schema)
        assert list(person) == ["name", "age"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"regex": "("}, "regex: "),
        ({"grammar": "start: nowhere"}, "grammar: .*nowhere"),
        ({"json_schema": {"type": "nonsense"}}, "json_schema: .*nonsense"),
        ({"json_schema": "{"}, "json_schema: "),
        ({"json_schema": 3}, "json_schema: "),
        ({"json_schema": {"pattern": "a("}}, r"json_schema: .*unclosed group, in a\($"),
        ({"json_schema": {"pattern": "(?=a)b"}}, "json_schema: .*look-around, .* not supported"),
        ({"json_schema": {"properties": {"a": {"pattern": "["}}}}, "unclosed character class"),
        ({"grammar": "start: /a(/"}, "grammar: .*unclosed group"),
        ({"regex": "(" * 5000 + ")" * 5000}, "regex: .*nest"),
        ({"regex": "\ud800"}, "regex = .*valid Unicode"),
        ({"json_schema": nested(100, {"type": "null"})}, "json_schema: nested more than 100 deep"),
        ({"json_schema": nested(50_000, 1)}, "json_schema: nested more than 100 deep"),
        ({"json_schema": {"enum": [nested(50_000, 1)]}}, "json_schema: nested more than 100 deep"),
        (
            {"json_schema": {"properties": {"a": nested(99, 1)}}},
            "json_schema: nested more than 100 deep",
        ),
        ({"json_schema": '{"items":' * 50_000}, "json_schema: nested more than 100 deep"),
        ({"json_schema": "[" * 50_000}, "json_schema: nested more than 100 deep"),
        ({"json_schema": holding_itself()}, "json_schema: nested more than 100 deep"),
        ({"regex": 3}, "regex = 3: expected a text"),
        ({"regex": "a", "grammar": 'start: "a"'}, "only one of"),
    ],
)
def test_forms_that_are_none(model: edgedb.Model, options: dict[str, Any], message: str) -> None:
    with pytest.raises(EdgeDBError, match=message) as error:
        model.generate(PROMPT, **options)
    assert "\n" not in str(error.value)


def test_without_the_extra(model: edgedb.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(EdgeDBError, match="pip install llguidance"):
        model.generate(PROMPT, regex="a")
