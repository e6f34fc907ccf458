"""Training text as token ids: shards on disk, and batches that depend on the step alone.

A folder holds ``sampled-*.npy`` (integers ``[sequences, length]``, written by ``tools.generate``)
and ``real-*.npy`` (one stream of tokens each). What a step reads is a function of the seed and
the step, so a training that was killed and resumed sees the same text.

``python -m tools.text SOURCE OUT FILE...`` turns text files into streams.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgedb.errors import EdgeDBError
from edgedb.files import read_text
from edgedb.text.spec import TokenizerSpec
from edgedb.text.tokenizer import Tokenizer, load_tokenizer

from .command import Arguments, one_line_errors, say

Ids = NDArray[np.int64]


class TextMix:
    """Batches ``[batch, length]`` of sampled and real text.

    real_share: part of the sequences that are windows of the real streams, each stream drawn in
    proportion to its length. Sampled sequences shorter than ``length``, or than those of other
    shards, are put one after another.
    Raises ``EdgeDBError`` when the folder lacks what the share asks for.
    """

    def __init__(self, folder: Path, length: int, *, real_share: float, seed: int = 0) -> None:
        self.folder, self.length = folder, length
        self.real_share, self.seed = real_share, seed
        sampled, streams = (
            [load_ids(path, ndim) for path in sorted(folder.glob(pattern))]
            for pattern, ndim in (("sampled-*.npy", 2), ("real-*.npy", 1))
        )
        widest = max((shard.shape[1] for shard in sampled), default=1)
        self._sampled = [_widened(shard, widest, folder) for shard in sampled]
        self._streams = [stream for stream in streams if len(stream) > length]
        if real_share < 1 and not self._sampled:
            raise EdgeDBError(f"{folder}: no sampled-*.npy; run tools.generate, or --real-share 1")
        if real_share > 0 and not self._streams:
            raise EdgeDBError(
                f"{folder}: no real-*.npy longer than {length} tokens; run tools.text, "
                "or --real-share 0"
            )
        self._ends = np.cumsum([len(shard) for shard in self._sampled])

    def check(self, vocab_size: int) -> None:
        """Raise ``EdgeDBError`` if the text was made with a larger vocabulary than the model's."""
        for part in (*self._sampled, *self._streams):
            if part.size and part.max() >= vocab_size:
                raise EdgeDBError(
                    f"{self.folder}: holds token {part.max()}, the model knows {vocab_size}; "
                    "the text was made with another tokenizer"
                )

    @property
    def n_sampled(self) -> int:
        """Distinct sampled tokens."""
        return sum(shard.size for shard in self._sampled)

    @property
    def n_real(self) -> int:
        """Distinct tokens of real text."""
        return sum(len(stream) for stream in self._streams)

    def batch(self, step: int, size: int, length: int | None = None) -> Ids:
        """The ``size`` sequences of one step, int64 ``[size, length]``, real ones first."""
        length = length or self.length
        rng = np.random.default_rng((self.seed, step))
        rows = [self._window(rng, length) for _ in range(self._draw_real(rng, size))]
        if len(rows) < size:
            rows += self._sequences(step * size, size - len(rows), length)
        return np.stack(rows)

    def n_real_rows(self, step: int, size: int) -> int:
        """How many of a step's sequences are real text."""
        return self._draw_real(np.random.default_rng((self.seed, step)), size)

    def _draw_real(self, rng: np.random.Generator, size: int) -> int:
        # The share is met on average over steps, not exactly in each.
        return min(int(np.floor(size * self.real_share + rng.random())), size)

    def _window(self, rng: np.random.Generator, length: int) -> Ids:
        sizes = np.array([len(stream) for stream in self._streams], np.float64)
        stream = self._streams[rng.choice(len(sizes), p=sizes / sizes.sum())]
        start = rng.integers(0, len(stream) - length)
        return np.asarray(stream[start : start + length], np.int64)

    def _sequences(self, first: int, n: int, length: int) -> list[Ids]:
        """Without replacement within an epoch, in another order in each."""
        rows = []
        total = int(self._ends[-1])
        per_row = -(-length // self._sampled[0].shape[1])
        for i in range(n):
            parts = []
            for j in range(per_row):
                # Steps take disjoint stretches of an endless shuffled sequence, and leave out as
                # much of it as they have real text.
                epoch, index = divmod((first + i) * per_row + j, total)
                parts.append(self._sequence(_shuffled(index, total, self.seed + epoch)))
            rows.append(np.concatenate(parts)[:length])
        return rows

    def _sequence(self, row: int) -> Ids:
        shard = int(np.searchsorted(self._ends, row, side="right"))
        first = int(self._ends[shard - 1]) if shard else 0
        return np.asarray(self._sampled[shard][row - first], np.int64)


def load_ids(path: Path, ndim: int | None) -> NDArray[Any]:
    """Token ids of a ``.npy`` file, mapped. Raises ``EdgeDBError`` for one that holds no whole
    numbers of ``ndim`` axes; None: of any number of them.
    """
    try:
        ids = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise EdgeDBError(f"{path}: cannot be read as .npy ({error})") from None
    axes = "" if ndim is None else f" of {ndim} axes"
    if not isinstance(ids, np.ndarray) or ids.dtype.kind not in "iu" or (axes and ids.ndim != ndim):
        raise EdgeDBError(f"{path}: expected token ids, whole numbers{axes}")
    return ids


def _widened(shard: NDArray[Any], width: int, folder: Path) -> NDArray[Any]:
    """Neighbouring sequences joined to ``width`` tokens, so that one shuffle serves all shards."""
    if width % shard.shape[1]:
        raise EdgeDBError(f"{folder}: sequences of {shard.shape[1]} and {width} tokens do not mix")
    joined = width // shard.shape[1]
    return shard[: len(shard) // joined * joined].reshape(-1, width)


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


def read_stream(paths: Sequence[Path], spec: TokenizerSpec | None, vocab_size: int) -> Ids:
    """All of some texts one after another, int64: ``.npy`` files of ids, or UTF-8 text.

    Raises ``EdgeDBError`` for a file that is neither, or of another tokenizer.
    """
    parts = []
    for path in paths:
        if path.suffix == ".npy":
            ids = np.asarray(load_ids(path, None), np.int64).ravel()
        elif spec is None:
            raise EdgeDBError(f"{path}: the model has no tokenizer; give a .npy of token ids")
        else:
            ids = np.array(load_tokenizer(spec).encode(read_text(path), add_bos=False), np.int64)
        if ids.size and not 0 <= ids.min() <= ids.max() < vocab_size:
            raise EdgeDBError(f"{path}: expected token ids from 0 to {vocab_size - 1}")
        parts.append(ids)
    return np.concatenate(parts)


def encode_files(paths: Sequence[Path], tokenizer: Tokenizer, out: Path) -> dict[str, int]:
    """Write each UTF-8 text as ``out/real-NAME.npy``; returns tokens per file."""
    out.mkdir(parents=True, exist_ok=True)
    counts = {}
    for path in paths:
        text = path.read_text(encoding="utf-8", errors="replace")
        ids = np.array(tokenizer.encode(text, add_bos=False), id_dtype(tokenizer.vocab_size))
        np.save(out / f"real-{path.stem}.npy", ids)
        counts[path.name] = len(ids)
    return counts


def id_dtype(vocab_size: int) -> type[np.uint16] | type[np.uint32]:
    """The smallest type that shards use for ids."""
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32


@one_line_errors
def main() -> None:
    """``python -m tools.text SOURCE OUT FILE...``."""
    from edgedb.convert.sources import open_source

    parser = Arguments(description="Text files as training streams.")
    parser.add_argument("source", help="Hugging Face directory or GGUF file of the teacher")
    parser.add_argument("out", type=Path)
    parser.add_argument("files", type=Path, nargs="+")
    args = parser.parse_args()
    tokenizer = load_tokenizer(open_source(args.source).tokenizer_spec)
    for name, count in encode_files(args.files, tokenizer, args.out).items():
        say(f"{name}: {count:,} tokens")


if __name__ == "__main__":
    main()
