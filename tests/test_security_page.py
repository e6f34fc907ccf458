"""``docs/security.md`` says of the bounds what the code says."""

from __future__ import annotations

import importlib
import re

import pytest
from places import ROOT

PAGE = ROOT / "docs" / "security.md"
ROW = re.compile(r"^\|[^|]*\| *([\d,]+)[^|]*\| `([\w.]+)\.(\w+)` \|$", re.MULTILINE)
ROWS = ROW.findall(PAGE.read_text(encoding="utf-8"))


def test_every_bound_has_a_row() -> None:
    named = {(module, name) for _, module, name in ROWS}
    names = ("bounds", "bounded_regex", "charsmap", "piece_tables", "tokenizer_json")
    texts = [f"text.{name}" for name in names]
    for module in (*texts, "convert.sources.tekken"):
        full = f"edgedb.{module}"
        bounds = {name for name in vars(importlib.import_module(full)) if name.startswith("MAX_")}
        assert bounds == {name for found, name in named if found == full}


@pytest.mark.parametrize(("value", "module", "name"), ROWS)
def test_a_bound_is_what_the_page_says(value: str, module: str, name: str) -> None:
    assert getattr(importlib.import_module(module), name) == int(value.replace(",", ""))
