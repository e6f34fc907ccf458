"""``python -m tests.fuzz --seconds 600``, or ``--replay FILE`` for one finding."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from .kinds import KINDS
from .report import Finding, table
from .runner import Plan, run
from .worker import attempt, limit_memory


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=0, help="of the whole run  [0]")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="[one a core]")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--keep", type=Path, default=Path(".cache/fuzz"), help="[.cache/fuzz]")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="try the input of a finding")
    options = parser.parse_args()
    # Threads of a library do not survive the fork that starts a worker.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["RUST_BACKTRACE"] = "0"  # a panic is caught; its backtrace would take a second
    if options.replay:
        return replay(options.replay)
    started = time.monotonic()
    plan = Plan(options.kinds, options.seed, options.workers)
    counts, found = run(plan, options.seconds, options.keep)
    print(table(counts, time.monotonic() - started))
    for signature in sorted({finding.signature for finding in found}):
        print(f"finding: {signature}")
    return 1 if found else 0


def replay(file: Path) -> int:
    """Try the input of a saved finding in this very process, so that a debugger can watch."""
    finding = Finding.load(file)
    with tempfile.TemporaryDirectory() as folder:
        kind = KINDS[finding.kind]
        kind.prepare(Path(folder))
        kind.open()
        limit_memory()
        what, detail, seconds = attempt(finding.kind, finding.files, Path(folder) / "input")
    print(f"was: {finding.what}\nnow: {what} ({seconds:.2f} s)\n{detail}")
    return 0 if what in ("accepted", "refused") else 1


if __name__ == "__main__":
    sys.exit(main())
