"""Training text as token ids: shards on disk, and batches that depend on the step alone.

A folder holds ``sampled-*.npy`` (integers ``[sequences, length]``, written by ``tools.generate``) and
``real-*.npy`` (one stream of tokens each). What a step reads is a function of the seed and
the step, so a training that was killed and resumed sees the same text.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgedb.errors import EdgeDBError

Ids = NDArray[np.int64]


class TextMix:
    """Batches ``[batch, length]`` of sampled and real text.

    real_share: part of the sequences that are windows of the real streams, each stream drawn in
    proportion to its length. Sampled sequences shorter than ``length`` are put one after another.
    Raises ``EdgeDBError`` when the folder lacks what the share asks for.
    """

    def __init__(self, folder: Path, length: int, *, real_share: float, seed: int = 0) -> None:
        self.length, self.real_share, self.seed = length, real_share, seed
        self._sampled = [np.load(path, mmap_mode="r") for path in sorted(folder.glob("sampled-*.npy"))]
        streams = [np.load(path, mmap_mode="r") for path in sorted(folder.glob("real-*.npy"))]
        self._streams = [stream for stream in streams if len(stream) > length]
        if real_share < 1 and not self._sampled:
            raise EdgeDBError(f"{folder}: no sampled-*.npy; run tools.generate or use --real-share 1")
        if real_share > 0 and not self._streams:
            raise EdgeDBError(f"{folder}: no real-*.npy longer than {length} tokens; use --real-share 0")
        self._ends = np.cumsum([len(shard) for shard in self._sampled])

    @property
    def n_sampled(self) -> int:
        """Distinct sampled tokens."""
        return sum(shard.size for shard in self._sampled)

    @property
    def n_real(self) -> int:
        """Distinct tokens of real text."""
        return sum(len(stream) for stream in self._streams)

    def batch(self, step: int, size: int) -> Ids:
        """The ``size`` sequences of one step, int64 ``[size, length]``."""
        rng = np.random.default_rng((self.seed, step))
        # The share is met on average over steps, not exactly in each.
        n_real = int(np.floor(size * self.real_share + rng.random()))
        rows = [self._window(rng) for _ in range(min(n_real, size))]
        if len(rows) < size:
            rows += self._sequences(step, size - len(rows))
        return np.stack(rows)

    def _window(self, rng: np.random.Generator) -> Ids:
        sizes = np.array([len(stream) for stream in self._streams], np.float64)
        stream = self._streams[rng.choice(len(sizes), p=sizes / sizes.sum())]
        start = rng.integers(0, len(stream) - self.length)
        return np.asarray(stream[start : start + self.length], np.int64)

    def _sequences(self, step: int, n: int) -> list[Ids]:
        """Without replacement within an epoch, in another order in each."""
        rows = []
        total = int(self._ends[-1])
        per_row = -(-self.length // self._sampled[0].shape[1])
        for i in range(n):
            parts = []
            for j in range(per_row):
                # Steps take disjoint stretches of an endless shuffled sequence. Some numbers are
                # skipped where a step draws fewer than it may; the shuffle makes that harmless.
                epoch, index = divmod((step * n + i) * per_row + j, total)
                parts.append(self._sequence(_shuffled(index, total, self.seed + epoch)))
            rows.append(np.concatenate(parts)[: self.length])
        return rows

    def _sequence(self, row: int) -> Ids:
        shard = int(np.searchsorted(self._ends, row, side="right"))
        first = int(self._ends[shard - 1]) if shard else 0
        return np.asarray(self._sampled[shard][row - first], np.int64)


def _shuffled(index: int, total: int, seed: int) -> int:
    """Image of ``index`` under a permutation of ``range(total)`` that needs no memory.

    Four Feistel rounds on a square domain, repeated until the result falls inside.
    """
    side = int(np.ceil(np.sqrt(total)))
    while True:
        left, right = divmod(index, side)
        for key in range(4):
            mixed = (right * 2654435761 + (seed * 4 + key) * 40503 + 12345) & 0xFFFFFFFF
            mixed ^= mixed >> 15
            mixed = (mixed * 2246822519) & 0xFFFFFFFF
            left, right = right, (left + (mixed >> 7)) % side
        index = left * side + right
        if index < total:
            return index


def encode_files(paths: Sequence[Path], tokenizer: object, out: Path) -> dict[str, int]:
    """Write each text as ``out/real-NAME.npy``; returns tokens per file.

    ``tokenizer`` is edgedb's: ``encode(text, add_bos=...)`` and ``vocab_size``.
    """
    out.mkdir(parents=True, exist_ok=True)
    counts = {}
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32  # type: ignore[attr-defined]
    for path in paths:
        text = path.read_text(encoding="utf-8", errors="replace")
        ids = np.array(tokenizer.encode(text, add_bos=False), dtype)  # type: ignore[attr-defined]
        np.save(out / f"real-{path.stem}.npy", ids)
        counts[path.name] = len(ids)
    return counts
