"""Which tokenizers get tables, and that they say the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from tiny_tokenizers import byte_level_bpe, like_sentencepiece

from edgedb.convert import compaction
from edgedb.convert.compaction import compacted
from edgedb.ops.merges import can_merge
from edgedb.text.spec import TokenizerSpec
from edgedb.text.tokenizer import load_tokenizer

pytestmark = pytest.mark.skipif(not can_merge(), reason="needs the C library")


def spec_of(edit: Callable[[dict[str, Any]], object] = dict, data: bytes = b"") -> TokenizerSpec:
    document = json.loads(data or byte_level_bpe())
    edit(document)
    return TokenizerSpec("tokenizers", json.dumps(document).encode(), None, (2,))


def test_a_tokenizer_and_what_is_left_of_its_file() -> None:
    spec = spec_of()
    found = compacted(spec)
    assert (found.kind, found.eos_ids, len(found.data) < 3000) == ("bpe", (2,), True)
    assert found.to_metadata() == {**spec.to_metadata(), "kind": "bpe"}
    assert compacted(found) is found
    assert [t["id"] for t in json.loads(found.data)["added_tokens"]] == [0, 1, 2]
    assert load_tokenizer(found).encode("Once upon") == load_tokenizer(spec).encode("Once upon")


def test_words_that_merges_do_not_make() -> None:
    def edit(document: dict[str, Any]) -> None:
        document["model"]["ignore_merges"] = True
        # " the" is still a piece; its last merge is gone.
        merges = [m for m in document["model"]["merges"] if "".join(m) != "Ġthe"]
        document["model"]["merges"] = merges

    spec = spec_of(edit)
    found = compacted(spec)
    assert found.tables is not None
    assert "Ġthe" in [found.tables.piece(i) for i in found.tables.whole]
    texts = ("on the sea", " the", "the", " then")
    one, other = load_tokenizer(spec), load_tokenizer(found)
    assert [other.encode(text) for text in texts] == [one.encode(text) for text in texts]
    the = found.tables.find("Ġthe")
    assert the in other.encode(texts[0])
    assert the not in load_tokenizer(spec_of(lambda d: (edit(d), d["model"].update(
        ignore_merges=False)))).encode(texts[0])  # fmt: skip


def test_an_added_token_behind_the_vocabulary() -> None:
    token = {"id": 5, "content": "<new>", "special": False, "normalized": True}
    token |= dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
    spec = spec_of(lambda d: d["added_tokens"].append(token))  # whatever id the file says
    found = compacted(spec)
    assert found.kind == "bpe"
    assert load_tokenizer(found).encode("a<new>") == load_tokenizer(spec).encode("a<new>")
    assert load_tokenizer(found).encode("<new>") == [320]


def test_a_model_that_is_not_the_last_entry() -> None:
    document = json.loads(byte_level_bpe())
    first = {"model": document.pop("model"), **document}
    found = compacted(TokenizerSpec("tokenizers", json.dumps(first).encode(), None, (2,)))
    assert found == compacted(spec_of())


def spelled(document: dict[str, Any]) -> None:
    """Merges that make a control token."""
    vocab, merges = document["model"]["vocab"], document["model"]["merges"]
    for end in range(2, len("<|im_end|>") + 1):
        text = "<|im_end|>"[:end]
        vocab.setdefault(text, len(vocab))
        merges.append([text[:-1], text[-1]])


@pytest.mark.parametrize(
    "edit",
    [
        spelled,
        lambda d: d["model"].update(vocab={**d["model"]["vocab"], "x y": 400}),
        lambda d: (d["model"].update(unk_token="a"), d.update(pre_tokenizer=None)),
    ],
)
def test_what_tables_would_not_say_stays_as_it_was(edit: Callable[[Any], object]) -> None:
    spec = spec_of(edit)
    load_tokenizer(spec)
    assert compacted(spec) is spec


def test_an_unknown_token_that_no_text_reaches(tiny_sentencepiece: bytes) -> None:
    data = like_sentencepiece(tiny_sentencepiece, "always")
    assert compacted(spec_of(data=data)).kind == "bpe"
    assert compacted(spec_of(lambda d: d["model"].update(unk_token="a"))).kind == "bpe"
    without = spec_of(lambda d: d["model"]["vocab"].update({"<0x41>": 3, "A2": 68}), data)
    missing = json.loads(without.data)["model"]["vocab"]
    assert len(missing) == 401
    assert compacted(without).kind == "tokenizers"


def test_other_kinds_stay(tiny_sentencepiece: bytes) -> None:
    spec = TokenizerSpec("sentencepiece", tiny_sentencepiece, 1, (2,), True)
    assert compacted(spec) is spec
    unigram = {"type": "Unigram", "unk_id": 0, "vocab": [["a", 0.0]], "byte_fallback": False}
    spec = spec_of(lambda d: d.update(model=unigram, added_tokens=[]))
    assert compacted(spec) is spec


def test_what_does_not_agree_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    made = compaction.tables_of

    def wrong(model: dict[str, Any]) -> Any:
        tables = made(model)
        assert tables is not None
        tables.merges[1] = tables.merges[1][::-1].copy()
        return tables

    monkeypatch.setattr(compaction, "tables_of", wrong)
    spec = spec_of()
    assert compacted(spec) is spec
