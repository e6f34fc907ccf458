"""Where the tests find what is not theirs."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"  # data sets and checkpoints of families, where there are any
# Why a test is skipped that compares with them: one reason, so that all of them are one line.
NOT_HERE = "compares with reference data that is no part of the source tree"
