"""Where the tests find what is not theirs."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"  # data sets and checkpoints of families, where there are any
