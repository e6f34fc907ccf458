"""Text in a small vocabulary: a model of 20M parameters is to be more than an embedding.

The first ids of a byte-level BPE are its special tokens, its bytes and its first merges, and text
that knows no later merge is what the tokenizer had before it applied one. So every later token is a
row of early ones, and a small vocabulary needs no tokenizer of its own.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgedb.errors import EdgeDBError
from edgedb.text.spec import TokenizerSpec

from ..text import id_dtype, load_ids, read_stream

Ids = NDArray[np.int64]


def early_pieces(spec: TokenizerSpec, size: int) -> list[tuple[int, ...]]:
    """For every id the ids below ``size`` that it is made of.

    Raises ``EdgeDBError`` for a tokenizer that is no BPE with its ids in the order of merges, or a
    ``size`` that does not hold all bytes.
    """
    document = json.loads(spec.data) if spec.kind == "tokenizers" else {}
    model = document.get("model", {})
    if model.get("type") != "BPE":
        raise EdgeDBError("a small vocabulary needs a tokenizer.json of BPE")
    vocabulary: dict[str, int] = model["vocab"]
    pieces: list[tuple[int, ...]] = [(i,) for i in range(max(vocabulary.values()) + 1)]
    last = -1
    for merge in model["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        made = vocabulary[left + right]
        if made <= last:
            raise EdgeDBError("the tokenizer's ids are not in the order of its merges")
        last = made
        if made >= size:
            pieces[made] = pieces[vocabulary[left]] + pieces[vocabulary[right]]
    if any(max(piece) >= size for piece in pieces):
        raise EdgeDBError(f"{size} ids do not hold all bytes and special tokens")
    return pieces


def restrict(ids: Ids, pieces: Sequence[tuple[int, ...]]) -> Ids:
    """``ids [n]`` with every token as its early pieces, int64."""
    lengths = np.array([len(piece) for piece in pieces])
    flat = np.concatenate([np.array(piece, np.int64) for piece in pieces])
    starts = np.concatenate(([0], np.cumsum(lengths)[:-1]))
    counts = lengths[ids]
    first = np.repeat(starts[ids], counts)
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return flat[first + within]


def windows(stream: Ids, length: int, count: int) -> Ids:
    """At most ``count`` windows ``[n, length]``, spread evenly over ``stream``."""
    n = min(count, len(stream) // length)
    if not n:
        raise EdgeDBError(f"{len(stream)} tokens are less than one window of {length}")
    starts = np.linspace(0, len(stream) - length, n).astype(int)
    return np.stack([stream[start : start + length] for start in starts])


def write_corpus(
    spec: TokenizerSpec,
    out: Path,
    train: Sequence[Path],
    held_out: dict[str, Path],
    *,
    size: int,
    length: int,
    count: int,
) -> dict[str, int]:
    """Streams to train on (``real-NAME.npy``, for ``tools.text.TextMix``) and windows to measure on
    (``held-out/NAME.npy``); the tokens of each.

    Files are UTF-8 text, or ``.npy`` of the tokenizer's own ids.
    """
    pieces = early_pieces(spec, size)
    (out / "held-out").mkdir(parents=True, exist_ok=True)
    kind, counts = id_dtype(size), {}
    for path in train:
        ids = restrict(read_stream([path], spec, len(pieces)), pieces)
        np.save(out / f"real-{path.stem}.npy", ids.astype(kind))
        counts[path.stem] = len(ids)
    for name, path in held_out.items():
        ids = restrict(read_stream([path], spec, len(pieces)), pieces)
        found = windows(ids, length, count)
        np.save(out / "held-out" / f"{name}.npy", found.astype(kind))
        counts[f"held-out/{name}"] = found.size
    return counts


def vocabulary_of(folder: Path) -> int:
    """One more than the largest id of a corpus."""
    return 1 + max(int(load_ids(path, 1).max()) for path in folder.glob("real-*.npy"))
