"""Training text on disk, and the batches made of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgedb.errors import EdgeDBError
from edgedb.text.spec import TokenizerSpec
from edgedb.text.tokenizer import load_tokenizer
from tools.text import TextMix, read_stream


def test_batches_depend_on_the_step_alone(text: Path) -> None:
    one, two = (TextMix(text, 32, real_share=0.5, seed=3) for _ in range(2))
    one.batch(0, 8)
    assert np.array_equal(one.batch(5, 8), two.batch(5, 8))
    assert not np.array_equal(one.batch(5, 8), one.batch(6, 8))


def test_an_epoch_of_sampled_text_repeats_nothing(text: Path) -> None:
    mix = TextMix(text, 24, real_share=0)
    rows = np.concatenate([mix.batch(step, 8) for step in range(4)])
    everything = np.concatenate([np.load(p) for p in sorted(text.glob("sampled-*.npy"))])
    assert sorted(map(tuple, rows)) == sorted(map(tuple, everything.astype(np.int64)))


def test_text_of_another_tokenizer_is_refused(text: Path) -> None:
    mix = TextMix(text, 8, real_share=0.5)
    mix.check(96)
    with pytest.raises(EdgeDBError, match="another tokenizer"):
        mix.check(50)


def test_shards_of_other_lengths_are_joined(tmp_path: Path) -> None:
    ids = np.arange(16 * 8, dtype=np.uint16)
    np.save(tmp_path / "sampled-a.npy", ids[:64].reshape(16, 4))
    np.save(tmp_path / "sampled-b.npy", ids[64:].reshape(8, 8))
    mix = TextMix(tmp_path, 8, real_share=0)
    assert sorted(mix.batch(0, 16).ravel()) == list(range(128))
    np.save(tmp_path / "sampled-c.npy", ids[:30].reshape(10, 3))
    with pytest.raises(EdgeDBError, match="do not mix"):
        TextMix(tmp_path, 8, real_share=0)


def test_text_that_is_no_text_is_named(tmp_path: Path) -> None:
    np.save(tmp_path / "sampled-a.npy", np.arange(64, dtype=np.uint16).reshape(8, 8))
    for name, array in (("sampled-b", np.arange(8)), ("real-a", np.zeros((2, 3), int))):
        np.save(tmp_path / f"{name}.npy", array)
        with pytest.raises(EdgeDBError, match=rf"{name}\.npy: expected token ids"):
            TextMix(tmp_path, 8, real_share=0)
        (tmp_path / f"{name}.npy").write_bytes(b"cut short")
        with pytest.raises(EdgeDBError, match=rf"{name}\.npy: cannot be read"):
            TextMix(tmp_path, 8, real_share=0)
        (tmp_path / f"{name}.npy").unlink()


def test_missing_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(EdgeDBError, match="sampled"):
        TextMix(tmp_path, 8, real_share=0)
    with pytest.raises(EdgeDBError, match="real"):
        TextMix(tmp_path, 8, real_share=1)


def test_texts_of_all_kinds_are_one_stream(tmp_path: Path, tiny_spec: TokenizerSpec) -> None:
    words, stream, rows = (tmp_path / name for name in ("a.txt", "b.npy", "c.npy"))
    words.write_text("the cat and the dog")
    np.save(stream, np.arange(5, dtype=np.uint16))
    np.save(rows, np.arange(6, dtype=np.uint32).reshape(2, 3))
    found = read_stream([words, stream, rows], tiny_spec, 320)
    first = load_tokenizer(tiny_spec).encode("the cat and the dog", add_bos=False)
    assert found.tolist() == [*first, *range(5), *range(6)] and found.dtype == np.int64
    assert read_stream([rows], None, 320).tolist() == list(range(6))
    with pytest.raises(EdgeDBError, match=r"b\.npy: expected token ids from 0 to 3"):
        read_stream([stream], None, 4)
    with pytest.raises(EdgeDBError, match="has no tokenizer"):
        read_stream([words], None, 320)
