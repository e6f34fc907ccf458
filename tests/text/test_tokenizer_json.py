"""``tokenizer.json``: the library's own ids for good files, one line for every hostile one."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from quick import within
from tokenizers import Tokenizer as Library

from edgedb import EdgeDBError, FormatError
from edgedb.text.spec import TokenizerSpec
from edgedb.text.tokenizer import load_tokenizer
from edgedb.text.tokenizer_json import encode, open_tokenizer_json

TEXT = "Hello  wörld 日本語 😀 \n\n 12345 a a <|im_end|>"
SPLIT = {
    "type": "Split",
    "pattern": {"Regex": r"\p{N}{1,3}|\s+(?!\S)|\s+"},
    "behavior": "Isolated",
    "invert": False,
}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
BOMB = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 16}


@pytest.fixture
def document(tiny_bpe: bytes) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(tiny_bpe)
    return loaded


def encoded(document: Any) -> bytes:
    return json.dumps(document).encode()


def attempt(data: bytes) -> str | None:
    """The refusal of loading ``data`` and encoding a text with it, which must be quick."""

    def refusal() -> str | None:
        try:
            load_tokenizer(TokenizerSpec("tokenizers", data)).encode("a" * 500 + TEXT)
        except EdgeDBError as error:
            message = str(error)
            assert "\n" not in message and len(message) < 400
            return message
        return None

    return within(2, refusal)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"normalizer": {"type": "NFC"}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [SPLIT, BYTES]}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Sequence",
          "pretokenizers": [{"type": "Digits", "individual_digits": True}]}, BYTES]}},
        {"post_processor": {"type": "Sequence", "processors": [BYTES, {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}},
                       {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}],
            "special_tokens": {"<|im_start|>":
                {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}}}]}},
    ],
)  # fmt: skip
def test_it_is_what_the_library_reads(document: dict[str, Any], changes: dict[str, Any]) -> None:
    data = encoded({**document, **changes})
    ours, theirs = open_tokenizer_json(data), Library.from_buffer(data)
    assert ours.to_str() == theirs.to_str()
    for text in (TEXT, "", "model"):
        assert ours.encode(text).ids == theirs.encode(text).ids


def test_added_tokens_named_like_the_model(document: dict[str, Any]) -> None:
    """The word that the reader looks for may stand anywhere; it stops at the right one."""
    token = {**document["added_tokens"][0], "content": "model", "id": 320, "special": False}
    document["added_tokens"] += [token, {**token, "content": '"model": {', "id": 321}]
    for data in (encoded(document), json.dumps(document, indent=2).encode()):
        assert open_tokenizer_json(data).to_str() == Library.from_buffer(data).to_str()


def test_the_model_need_not_be_last(document: dict[str, Any]) -> None:
    first = encoded({"model": document["model"], **document})
    assert first.index(b'"model"') < 10
    assert open_tokenizer_json(first).to_str() == Library.from_buffer(first).to_str()
    assert attempt(first.replace(b'"normalizer": null', b'"normalizer": {"type": "X"}'))


def test_a_model_without_a_type_as_that_of_gpt2(document: dict[str, Any]) -> None:
    del document["model"]["type"]
    data = encoded(document)
    assert open_tokenizer_json(data).to_str() == Library.from_buffer(data).to_str()


def test_nothing_hides_behind_the_model(document: dict[str, Any]) -> None:
    data = encoded(document)
    assert data.endswith(b"}}")
    hostile = data[:-1] + b', "normalizer": ' + encoded({"type": "Nope"}) + b"}"
    assert "twice" in str(attempt(hostile))


def charsmap(trie_bytes: int, table: bytes = b"") -> dict[str, Any]:
    raw = trie_bytes.to_bytes(4, "little") + table
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(raw).decode()}


def sequence(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": list(parts)}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"normalizer": charsmap(0xFFFFFFFC, bytes(8))}, "trie"),  # an abort: 8 GB at once
        ({"normalizer": charsmap(4)}, "trie"),  # a panic
        ({"normalizer": charsmap(1024, b"\xff\xff\xff\x7f" * 256)}, "outside"),  # a panic at a text
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": 5}}, "base64"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "?"}}, "base64"),
        ({"normalizer": sequence(*[BOMB] * 3)}, "64 characters of one"),
        ({"normalizer": {**BOMB, "pattern": {"String": ""}}}, "String is no text"),
        ({"normalizer": {**BOMB, "content": "a" * 5000}}, "content"),
        ({"normalizer": {**BOMB, "pattern": {"Regex": "(a*)*b"}}}, "regular expression"),
        ({"normalizer": sequence(*[{"type": "ByteLevel"}] * 9)}, "ByteLevel is there twice"),
        ({"normalizer": sequence(*[{"type": "NFC"}] * 40)}, "too long"),
        ({"normalizer": sequence(sequence(sequence(sequence(sequence()))))}, "nested"),
        ({"normalizer": {"type": "BertNormalizer"}}, "BertNormalizer is not supported"),
        ({"normalizer": {"type": 3}}, "without a type"),
        ({"pre_tokenizer": {**SPLIT, "pattern": {"Regex": "(?:a?){40}a{40}"}}}, "regular"),
        ({"pre_tokenizer": {**SPLIT, "pattern": {"Regex": r"(\w+\s?)+$"}}}, "regular"),
        ({"pre_tokenizer": {**SPLIT, "pattern": {}}}, "pattern"),
        ({"pre_tokenizer": {"type": "FixedLength", "length": 0}}, "FixedLength"),  # a panic
        ({"post_processor": {"type": "TemplateProcessing", "single":
            [{"Sequence": {"id": "A", "type_id": 0}}] * 999, "special_tokens": {}}}, "one text"),
        ({"decoder": {"type": "CTC"}}, "decoder CTC is not supported"),
        ({"added_tokens": [{"content": "a"}]}, "added token"),
        ({"added_tokens": "a"}, "added_tokens"),
        ({"version": "2.0"}, "tokenizer.json"),
        ({"model": None}, "model"),
        ({"model": {"type": "WordLevel", "vocab": {}, "unk_token": "a"}}, "WordLevel"),
    ],
)  # fmt: skip
def test_hostile_parts(document: dict[str, Any], changes: dict[str, Any], reason: str) -> None:
    error = attempt(encoded({**document, **changes}))
    assert error is not None and reason in error


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"continuing_subword_prefix": "x" * 100}, "slice|range|not supported"),  # a panic
        ({"continuing_subword_prefix": ""}, None),
        ({"end_of_word_suffix": "</w>"}, "end_of_word_suffix"),
        ({"dropout": 0.5}, "random"),
        ({"vocab": {"a": 4294967295}, "merges": []}, "outside its vocabulary"),
        ({"vocab": {"a": 1 << 40}, "merges": []}, "tokenizer.json"),
        ({"vocab": [], "merges": []}, "tokenizer.json"),
        ({"merges": ["a"]}, "tokenizer.json"),
    ],
)
def test_hostile_models(
    document: dict[str, Any], changes: dict[str, Any], reason: str | None
) -> None:
    document["model"] |= changes
    error = attempt(encoded(document))
    if reason is None:
        assert error is None
    else:
        assert error is not None and any(word in error for word in reason.split("|"))


def test_a_panic_while_encoding_is_one_line(document: dict[str, Any]) -> None:
    """The library's own reader takes a trie that points outside of itself."""
    document["normalizer"] = charsmap(1024, b"\xff\xff\xff\x7f" * 256 + b"x\0")
    library = Library.from_buffer(encoded(document))
    with pytest.raises(EdgeDBError, match=r"fails at this text \(panic: .*\)$"):
        encode(library, TEXT)


def test_an_interrupt_goes_through(
    document: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(text: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Library, "from_str", interrupted)
    with pytest.raises(KeyboardInterrupt):
        open_tokenizer_json(encoded(document))


@pytest.mark.parametrize(
    "data", [b"[]", b"null", b"\xff", b'{"model": ', b'{"a": 1, "a": 2, "model": {}}', b"[" * 99999]
)
def test_what_is_no_tokenizer(data: bytes) -> None:
    with pytest.raises(FormatError, match=r"tokenizer\.file: not a tokenizer\.json"):
        open_tokenizer_json(data)
