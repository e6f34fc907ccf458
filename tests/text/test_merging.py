"""A ``tokenizer.json`` over tables: what it stands in for, and files that nobody wrote."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import tokenizers
from texts import TRICKY, random_texts
from tiny_tokenizers import byte_level_bpe, like_sentencepiece

from edgedb.convert.compaction import compacted
from edgedb.errors import EdgeDBError, FormatError, UnsupportedModelError
from edgedb.ops.merges import can_merge
from edgedb.text import tokenizers_vocabulary
from edgedb.text.merging import MergingTokenizer
from edgedb.text.piece_tables import PieceTables
from edgedb.text.spec import TokenizerSpec
from edgedb.text.tokenizer import load_tokenizer

pytestmark = pytest.mark.skipif(not can_merge(), reason="needs the C library")


@pytest.fixture(scope="module", params=["byte level", "always", "first"])
def data(request: pytest.FixtureRequest, tiny_sentencepiece: bytes) -> bytes:
    if request.param == "byte level":
        return byte_level_bpe()
    return like_sentencepiece(tiny_sentencepiece, request.param)


def tables_of(data: bytes) -> tuple[bytes, PieceTables]:
    found = compacted(TokenizerSpec("tokenizers", data))
    assert found.kind == "bpe"
    assert found.tables is not None
    return found.data, found.tables


def test_ids_and_places_are_those_of_the_package(data: bytes) -> None:
    library = tokenizers.Tokenizer.from_buffer(data)
    merging = MergingTokenizer(*tables_of(data))
    for text in (*TRICKY, *random_texts(3, 100)):
        expected = library.encode(text, add_special_tokens=False)
        found = merging.encode(text)
        assert found.ids == expected.ids, repr(text)
        assert len(found.offsets) == len(found.ids)
        for (a, b), (start, end) in zip(found.offsets, expected.offsets, strict=True):
            assert a <= start <= end <= b  # of the word that a piece is in


def test_what_is_asked_of_a_vocabulary(data: bytes) -> None:
    library = tokenizers.Tokenizer.from_buffer(data)
    merging = MergingTokenizer(*tables_of(data))
    size = library.get_vocab_size()
    assert merging.get_vocab_size() == size
    for i in (0, 1, 2, 3, 50, size - 1, size):
        assert merging.id_to_token(i) == library.id_to_token(i)
    text = library.id_to_token(size - 1)
    assert merging.token_to_id(text) == size - 1
    assert merging.token_to_id("no such piece") is None
    for each in (merging, library):
        each.add_tokens([tokenizers.AddedToken(t, normalized=False) for t in ("<new>", text)])
        assert each.token_to_id("<new>") == size
        assert set(each.get_added_tokens_decoder()) == {0, 1, 2, size - 1, size}
    text = f"a<new>b{text}"
    assert merging.encode(text).ids == library.encode(text, add_special_tokens=False).ids


def test_without_a_c_library_the_package_opens_the_whole_file(
    data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = compacted(TokenizerSpec("tokenizers", data))
    here = load_tokenizer(spec)
    monkeypatch.setattr(tokenizers_vocabulary, "can_merge", lambda: False)
    there = load_tokenizer(spec)
    for text in TRICKY:
        for special in (False, True):
            assert here.encode(text, special=special) == there.encode(text, special=special)
    assert compacted(TokenizerSpec("tokenizers", data)).kind == "bpe"


def changed(edit: Callable[[dict[str, Any]], object]) -> tuple[bytes, PieceTables]:
    file, tables = tables_of(byte_level_bpe())
    document = json.loads(file)
    edit(document)
    return json.dumps(document).encode(), tables


@pytest.mark.parametrize(
    "edit",
    [
        lambda d: d.pop("model"),
        lambda d: d["model"].update(type="Unigram"),
        lambda d: d["model"].update(byte_fallback=3),
        lambda d: d["model"].update(dropout=0.5),
        lambda d: d["model"].update(end_of_word_suffix="</w>"),
        lambda d: d["added_tokens"][0].pop("id"),
        lambda d: d["added_tokens"][0].update(id=-1),
        lambda d: d["added_tokens"][0].update(id=1 << 21),
        lambda d: d["added_tokens"][0].update(content="\ud800"),
        lambda d: d.update(normalizer={"type": "Replace"}),
        lambda d: d.update(pre_tokenizer={"type": "Split", "pattern": {"Regex": ".*x"}}),
    ],
)  # fmt: skip
def test_files_that_are_refused(edit: Callable[[dict[str, Any]], object]) -> None:
    with pytest.raises((FormatError, UnsupportedModelError), match=r"^tokenizer[.:]"):
        MergingTokenizer(*changed(edit))


def test_added_tokens_with_the_ids_of_others_do_no_harm() -> None:
    """A file may say so; the ids stay inside of the vocabulary."""
    file, tables = changed(lambda d: [t.update(id=70) for t in d["added_tokens"]])
    tokenizer = load_tokenizer(TokenizerSpec("bpe", file, tables=tables))
    for text in TRICKY:
        try:
            ids = tokenizer.encode(text, special=True)
        except EdgeDBError:
            continue
        assert all(i < tokenizer.vocab_size for i in ids)
        tokenizer.decode(ids)


def test_empty_added_tokens_are_none() -> None:
    file, tables = changed(lambda d: d["added_tokens"][0].update(content=""))
    assert set(MergingTokenizer(file, tables).get_added_tokens_decoder()) == {1, 2}
