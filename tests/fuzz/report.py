"""Findings on disk, and the table of a run."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

from .kinds import Files


@dataclass(frozen=True)
class Finding:
    """One input that did what none may do. ``seed`` makes it again; ``files`` are kept too."""

    kind: str
    seed: str
    what: str  # the first line: crash, hang, traceback ...
    detail: str
    files: Files = field(repr=False)

    @property
    def signature(self) -> str:
        """Findings with the same one are taken for the same fault."""
        return f"{self.kind}: {self.what}"

    def save(self, folder: Path) -> Path:
        """Write it as a zip archive that ``--replay`` reads."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.kind}-{self.seed.replace(':', '-')}.zip"
        about = {"kind": self.kind, "seed": self.seed, "what": self.what, "detail": self.detail}
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("about.json", json.dumps(about, indent=1))
            for name, content in self.files.items():
                archive.writestr(f"input/{name}", content)
        path.write_bytes(packed.getvalue())
        return path

    @classmethod
    def load(cls, path: Path) -> Finding:
        with zipfile.ZipFile(path) as archive:
            about = json.loads(archive.read("about.json"))
            files = {
                name.removeprefix("input/"): archive.read(name)
                for name in archive.namelist()
                if name.startswith("input/")
            }
        return cls(files=files, **about)


@dataclass
class Count:
    """What became of the inputs of one kind."""

    accepted: int = 0
    refused: int = 0
    findings: int = 0
    slowest: float = 0.0  # seconds of processor time of one input

    @property
    def inputs(self) -> int:
        return self.accepted + self.refused + self.findings


def table(counts: dict[str, Count], seconds: float) -> str:
    """The figures of a run as a Markdown table."""
    rows = [*counts.items(), ("all", _sum(counts))]
    lines = [
        "| kind | inputs | accepted | refused | findings | slowest |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {name} | {count.inputs:,} | {count.accepted:,} | {count.refused:,} "
        f"| {count.findings:,} | {count.slowest:.2f} s |"
        for name, count in rows
    ]
    rate = _sum(counts).inputs / max(seconds, 1e-9)
    return "\n".join([*lines, "", f"{seconds:.0f} s, {rate:.0f} inputs a second"])


def _sum(counts: dict[str, Count]) -> Count:
    return Count(
        sum(c.accepted for c in counts.values()),
        sum(c.refused for c in counts.values()),
        sum(c.findings for c in counts.values()),
        max((c.slowest for c in counts.values()), default=0.0),
    )
