"""``python -m tools.peers METHOD TEACHER OUT --text FILE``; see the package."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgedb.convert.calibrate import from_text
from edgedb.convert.sources import open_source
from edgedb.errors import EdgeDBError

from ..command import Arguments, one_line_errors
from ..scratch import scratch_folder
from .folder import split_tensors, write_folder

METHODS = ("hqq", "gptq", "auto-round")


def build_parser() -> argparse.ArgumentParser:
    parser = Arguments(
        prog="python -m tools.peers", description="Quantize the teacher by another package."
    )
    parser.add_argument("method", choices=METHODS)
    parser.add_argument("teacher", help="Hugging Face directory or GGUF file")
    parser.add_argument("out", type=Path, help="folder for the dequantized weights")
    parser.add_argument("--text", type=Path, help="UTF-8 calibration text (hqq needs none)")
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--length", type=int, default=2048, help="tokens of a sequence")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="NAME=JSON",
        help="an option of the method, such as iterations=1000 or axis=0",
    )
    return parser


def settings_of(pairs: list[str]) -> dict[str, Any]:
    """``["axis=0"]`` -> ``{"axis": 0}``. Raises ``EdgeDBError`` if a value is not JSON."""
    settings = {}
    for pair in pairs:
        name, found, value = pair.partition("=")
        try:
            settings[name] = json.loads(value)
        except json.JSONDecodeError:
            found = ""
        if not found:
            raise EdgeDBError(f"--set {pair}: expected NAME=JSON")
    return settings


@contextmanager
def complete_folder(out: Path) -> Iterator[Path]:
    """A folder to fill, which becomes ``out`` when that is done; after an error nothing is left.

    Raises ``EdgeDBError`` if something is there already.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise EdgeDBError(f"{out} exists already: name another folder, or remove it")
    with scratch_folder(out.with_name(out.name + ".partial")) as partial:
        yield partial
        partial.replace(out)


@one_line_errors
def main() -> None:
    args = build_parser().parse_args()
    settings = settings_of(args.settings)
    try:
        import torch

        from . import methods
    except ImportError as error:
        raise EdgeDBError(f"{error.name} is missing: pip install torch transformers") from None
    version = methods.version(args.method)
    source = open_source(args.teacher)
    ids, text = torch.zeros((0, args.length), dtype=torch.int64), None
    if args.method != "hqq":
        if args.text is None:
            raise EdgeDBError(f"{args.method} needs --text FILE to calibrate with")
        found = from_text(args.text, source.tokenizer_spec, args.sequences, args.length)
        ids, text = torch.from_numpy(found.ids.astype("int64")), found.record
    # It starts with the teacher's own weights: they must never be measured as the method's.
    with complete_folder(args.out) as out, tempfile.TemporaryDirectory() as scratch:
        folder = write_folder(source, Path(scratch) / "teacher")
        started = time.monotonic()
        model, record = methods.METHODS[args.method](folder, ids, device=args.device, **settings)
        seconds = time.monotonic() - started
        lost = methods.weight_error(model, split_tensors(source))
        record = {"method": args.method, "version": version, "text": text, **record}
        record |= {"levels": methods.most_levels(model), "error": round(lost, 4)}
        record |= {"seconds": round(seconds, 1), "device": args.device}
        write_folder(source, out)
        model.float().cpu().save_pretrained(out)
        (out / "peer.json").write_text(json.dumps(record, indent=2))
    print(json.dumps(record))


if __name__ == "__main__":
    main()
