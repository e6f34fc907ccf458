"""``docs/models.md`` and the README list the families that there are."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from families import SUPPORTED
from places import ROOT

from edgedb.model.families import FAMILIES, Family

PAGE, README = ROOT / "docs" / "models.md", ROOT / "README.md"
HEAD = (
    "| `model_type` | models | from safetensors | from GGUF | compared with |\n"
    "|---|---|---|---|---|\n"
)
COUNT = re.compile(r"\b\d+(?= families of models)|(?<=any model of )\d+(?= families)")
TABLE = re.compile(re.escape(HEAD) + r"(\|.*\n)*")


def compared_with(name: str) -> str:
    """The folders of tiny checkpoints of a family, with settings beside the usual ones."""
    folders = {
        folder: [variant for variant in variants if variant != "v4"]
        for folder, variants in SUPPORTED.items()
        if next(t for t in (folder, folder.partition("_")[0]) if t in FAMILIES) == name
    }
    told = [
        f"`{folder}`" + "".join(f", `{variant}`" for variant in variants)
        for folder, variants in folders.items()
    ]
    return "; ".join(told)


def row(name: str, family: Family) -> str:
    classes = ", ".join(f"`{found}`" for found in family.classes)
    gguf = f"`{family.architecture}`" if family.architecture else ""
    cells = (f"`{name}`", family.models, classes, gguf, compared_with(name))
    return f"| {' | '.join(cells)} |\n"


@pytest.mark.parametrize(("page", "part"), [(PAGE, TABLE), (README, COUNT)], ids=["page", "README"])
def test_families_on_the_pages(page: Path, part: re.Pattern[str]) -> None:
    """``EDGEDB_WRITE_DOCS=1`` writes them anew."""
    text = page.read_text(encoding="utf-8")
    assert part.search(text)
    table = HEAD + "".join(row(name, family) for name, family in FAMILIES.items())
    new = table if part is TABLE else str(len(FAMILIES))
    current = part.sub(lambda _: new, text)
    if os.environ.get("EDGEDB_WRITE_DOCS"):
        page.write_text(current, encoding="utf-8")
    else:
        assert current == text


def test_every_family_is_compared_with_something() -> None:
    assert all(compared_with(name) for name in FAMILIES)
