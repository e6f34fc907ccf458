"""``python -m tools.peers METHOD TEACHER OUT --text FILE``; see the package."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from edgedb.errors import EdgeDBError

from ..calibrate import from_text
from ..command import one_line_errors
from ..sources import open_source
from .folder import split_tensors, write_folder

METHODS = ("hqq", "gptq", "auto-round")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
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
    with tempfile.TemporaryDirectory() as scratch:
        folder = write_folder(source, Path(scratch) / "teacher")
        started = time.monotonic()
        model, record = methods.METHODS[args.method](folder, ids, device=args.device, **settings)
        seconds = time.monotonic() - started
        lost = methods.weight_error(model, split_tensors(source))
        write_folder(source, args.out)
        model.float().cpu().save_pretrained(args.out)
    record = {"method": args.method, "version": version, "text": text, **record}
    record |= {"levels": methods.most_levels(model), "error": round(lost, 4)}
    record |= {"seconds": round(seconds, 1), "device": args.device}
    (args.out / "peer.json").write_text(json.dumps(record, indent=2))
    print(json.dumps(record))


if __name__ == "__main__":
    main()
