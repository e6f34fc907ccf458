"""Models of a known shape with random weights that a server can serve: with a tokenizer of as many
words.

    python -m bench.serve.random_models FOLDER --shape llama-1.1b --formats TQ2_0 Q4_0

makes FOLDER/SHAPE.dbb, of one pair, and a GGUF for each format; with ``--positions 8192`` they are
called SHAPE-8192.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from edgedb.measure.shapes import SHAPES, word_tokenizer, write_random


def with_positions(shape: str, positions: int) -> str:
    """Name of ``shape`` with so many positions in place of its own, on the list from here on: a
    prompt of 4,000 tokens has no room in every one."""
    name = f"{shape}-{positions}"
    SHAPES[name] = replace(SHAPES[shape], max_position_embeddings=positions)
    return name


def random_dbb(path: Path, shape: str, pairs: float = 1) -> Path:
    """The ``.dbb``, made if it is not there."""
    spec = word_tokenizer(SHAPES[shape].vocab_size)
    return write_random(path, shape, pairs, tokenizer=spec)


def main() -> None:
    """Make what is not there."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.serve.random_models",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", default="llama-1.1b")
    parser.add_argument("--positions", type=int, help="of a sequence [those of the shape]")
    parser.add_argument("--formats", nargs="*", default=["TQ2_0", "Q4_0"])
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    shape = with_positions(args.shape, args.positions) if args.positions else args.shape
    print(random_dbb(args.folder / f"{shape}.dbb", shape))
    for name in args.formats:
        from ..peers.random_models import write_gguf

        path = args.folder / f"{shape}-{name}.gguf"
        if not path.exists():
            write_gguf(path, shape, name, words=True)
        print(path)


if __name__ == "__main__":
    main()
