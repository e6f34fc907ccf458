"""What everyone starts from: teachers, a text to calibrate with, and a text to measure on.

SmolLM2 is published as Q4_1, so a format that shares that grid would look better than it is. The
fair teacher has continuous weights; there is a second one, the same function with rows of 768, for
llama.cpp's formats in blocks of 256 (``continuous_teacher.py`` says how both are made).
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgedb.errors import EdgeDBError
from edgedb.files import read_text

# The held-out book of docs/quality.md stays unseen.
HELD_OUT = "pg_doyle_adventures.txt"
# Characters and pieces of the calibration: of llama.cpp's importance matrix, which takes 30,720
# tokens and settles with fewer, and of edgedb, whose Hessians want more.
CALIBRATION = (160_000, 64)
LONG_CALIBRATION = (1_000_000, 256)

WINDOW, WINDOWS = 2048, 10


@dataclass(frozen=True)
class Sources:
    """Files that are no part of the project, and the folder for what is made of them."""

    shared: Path
    gguf: Path
    made: Path

    @property
    def text(self) -> Path:
        """What perplexity and KL are measured on."""
        return self._there(self.shared / "data" / "wikitext2" / "wiki.test.raw")

    @property
    def questions(self) -> Path:
        """Folder of zero-shot questions."""
        return self._there(self.shared / "data" / "zeroshot")

    def teacher(self, *, padded: bool = False) -> Path:
        """The teacher's GGUF, made if it is not there."""
        path = self.made / ("teacher-padded.gguf" if padded else "teacher.gguf")
        if not path.exists():
            program = self._there(self.shared / "tools" / "continuous_teacher.py")
            _make(path, [sys.executable, str(program), str(self.gguf)], ["pad"] * padded)
        return path

    def calibration(self) -> Path:
        """Pieces spread evenly over novels, speeches and WikiText-2's training split."""
        return self._spread(self.made / "calibration.txt", *CALIBRATION)

    def long_calibration(self) -> Path:
        """More of the same texts."""
        return self._spread(self.made / "calibration-long.txt", *LONG_CALIBRATION)

    def _spread(self, path: Path, chars: int, pieces: int) -> Path:
        if not path.exists():
            folder = self._there(self.shared / "data" / "calib")
            files = [f for f in sorted(folder.glob("*.txt")) if f.name != HELD_OUT]
            path.write_text(spread("".join(map(read_text, files)), chars, pieces), encoding="utf-8")
        return path

    def _there(self, path: Path) -> Path:
        if not path.exists():
            raise EdgeDBError(
                f"{path} is not there: teachers and texts are no part of this project"
            )
        return path


def spread(text: str, chars: int, pieces: int) -> str:
    """``pieces`` pieces of a text at even distances, whole lines each, ``chars`` in all or more."""
    size, step = chars // pieces, len(text) // pieces
    found = []
    for start in range(0, step * pieces, step):
        begin = text.find("\n", start) + 1
        end = text.find("\n", begin + size) + 1
        found.append(text[begin : end or None])
    return "".join(found)


def _make(path: Path, before: list[str], after: list[str]) -> None:
    """Run ``before PATH after`` for a file that appears once it is complete."""
    partial = path.with_name(path.name + ".partial")
    run([*before, str(partial), *after], f"cannot make {path.name}")
    partial.replace(path)


def run(
    command: list[str], complaint: str, *, progress: Callable[[str], None] | None = None
) -> str:
    """Output of a command, both streams; ``EdgeDBError`` with its last line if it fails.

    ``progress`` is told each line.
    """
    lines: list[str] = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if progress is not None:
                progress(line.rstrip())
    if process.returncode:
        raise EdgeDBError(f"{complaint}: {''.join(lines[-1:]).strip()}")
    return "".join(lines)
