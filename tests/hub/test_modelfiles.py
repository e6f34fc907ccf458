"""Which model is taken, and what is said of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from places import ROOT

from edgedb.errors import EdgeDBError
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


def test_an_unknown_name_is_told_what_there_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EDGEDB_MODELS", str(tmp_path))
    with pytest.raises(EdgeDBError, match=f"in {tmp_path}; no model is there"):
        modelfiles.find_model("tiny")
    (tmp_path / "other.dbb").touch()
    with pytest.raises(EdgeDBError, match="there: other"):
        modelfiles.find_model("tiny")
    assert modelfiles.find_model("other") == tmp_path / "other.dbb"
    assert modelfiles.find_model("folder/tiny.dbb") == Path("folder/tiny.dbb")
