"""Which model is taken, and what is said of it."""

from __future__ import annotations

from pathlib import Path

from places import ROOT

from edgedb.hub import modelfiles
from edgedb.model.dbb import read_dbb

MODELS = ROOT / "models"


def test_the_default_model_and_no_other_has_a_remark(tiny_model: Path) -> None:
    """A default of another fingerprint fails here: write its line, or none, in modelfiles.py."""
    default = read_dbb(MODELS / modelfiles.DEFAULT_NAMES[0])
    remark = modelfiles.remark(default.fingerprint)
    assert remark is not None and "\n" not in remark and len(remark) < 100
    assert modelfiles.remark(read_dbb(tiny_model).fingerprint) is None


def test_the_source_tree_is_where_its_project_file_is() -> None:
    assert (modelfiles.CHECKOUT / "pyproject.toml").is_file()
