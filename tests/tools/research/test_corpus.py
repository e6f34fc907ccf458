"""Text in the first ids of a tokenizer, against a tokenizer that knows no others."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch: make test installs its CPU build")

from tiny_tokenizers import TEXT  # noqa: E402

from edgedb.errors import EdgeDBError  # noqa: E402
from edgedb.text.spec import TokenizerSpec  # noqa: E402
from edgedb.text.tokenizer import load_tokenizer  # noqa: E402
from tools.research.corpus import early_pieces, restrict, windows, write_corpus  # noqa: E402
from tools.text import TextMix  # noqa: E402


def early(data: bytes, size: int) -> bytes:
    """The tokenizer without its later merges."""
    document = json.loads(data)
    vocabulary = document["model"]["vocab"]
    document["model"]["vocab"] = {t: i for t, i in vocabulary.items() if i < size}
    document["model"]["merges"] = [
        merge for merge in document["model"]["merges"] if vocabulary["".join(merge)] < size
    ]
    return json.dumps(document).encode()


@pytest.mark.parametrize("size", [259, 260, 275, 319, 320])
def test_later_tokens_become_what_they_were_merged_of(tiny_bpe: bytes, size: int) -> None:
    spec = TokenizerSpec("tokenizers", tiny_bpe)
    small = load_tokenizer(replace(spec, data=early(tiny_bpe, size)))
    text = "".join(TEXT) + " and something new: 1234, ünd."
    ids = np.array(load_tokenizer(spec).encode(text, add_bos=False))
    found = restrict(ids, early_pieces(spec, size))
    assert found.tolist() == small.encode(text, add_bos=False)
    assert found.max() < size


def test_what_has_no_early_ids_is_refused(tiny_bpe: bytes) -> None:
    spec = TokenizerSpec("tokenizers", tiny_bpe)
    with pytest.raises(EdgeDBError, match="do not hold all bytes"):
        early_pieces(spec, 100)
    with pytest.raises(EdgeDBError, match="BPE"):
        early_pieces(TokenizerSpec("sentencepiece", b""), 300)
    document = json.loads(tiny_bpe)
    document["model"]["merges"].reverse()
    with pytest.raises(EdgeDBError, match="order of its merges"):
        early_pieces(replace(spec, data=json.dumps(document).encode()), 300)


def test_windows_are_spread_over_a_stream() -> None:
    found = windows(np.arange(100), 10, 4)
    assert found[:, 0].tolist() == [0, 30, 60, 90] and found.shape == (4, 10)
    assert len(windows(np.arange(25), 10, 4)) == 2
    with pytest.raises(EdgeDBError, match="less than one window"):
        windows(np.arange(9), 10, 4)


def test_a_corpus_is_what_a_training_reads(tmp_path: Path, tiny_bpe: bytes) -> None:
    (tmp_path / "a.txt").write_text("Once upon a time. " * 40)
    np.save(tmp_path / "ids.npy", np.arange(300, 320, dtype=np.uint16).reshape(2, 10))
    spec = TokenizerSpec("tokenizers", tiny_bpe)
    out = tmp_path / "out"
    counts = write_corpus(
        spec, out, [tmp_path / "a.txt", tmp_path / "ids.npy"], {"held": tmp_path / "a.txt"},
        size=280, length=8, count=3,
    )  # fmt: skip
    mix = TextMix(out, 16, real_share=1.0)
    mix.check(280)
    assert mix.n_real == counts["a"] + counts["ids"]
    assert np.load(out / "held-out" / "held.npy").shape == (3, 8)
