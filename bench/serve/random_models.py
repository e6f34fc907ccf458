"""Models of a known shape with random weights that a server can serve: with a tokenizer of as many
words.

    python -m bench.serve.random_models FOLDER --shape llama-1.1b --formats TQ2_0 Q4_0

makes FOLDER/SHAPE.dbb, of one pair, and a GGUF for each format.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from edgedb.measure.shapes import SHAPES, word_tokenizer, write_random


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
    parser.add_argument("--formats", nargs="*", default=["TQ2_0", "Q4_0"])
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    print(random_dbb(args.folder / f"{args.shape}.dbb", args.shape))
    for name in args.formats:
        from ..peers.random_models import write_gguf

        path = args.folder / f"{args.shape}-{name}.gguf"
        if not path.exists():
            write_gguf(path, args.shape, name, words=True)
        print(path)


if __name__ == "__main__":
    main()
