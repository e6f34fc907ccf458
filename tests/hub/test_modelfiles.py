"""Which model is taken, and what is said of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from places import ROOT

from edgedb.errors import EdgeDBError
from edgedb.hub import modelfiles
from edgedb.hub.origin import write_origin
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
    for name in (*modelfiles.DEFAULT_NAMES, "smollm2-135m-instruct-db2.dbb"):
        (tmp_path / name).touch()
    with pytest.raises(EdgeDBError, match=r"; did you mean smollm2-135m-instruct-mixed\?$"):
        modelfiles.find_model("smollm2")
    assert modelfiles.find_model("other") == tmp_path / "other.dbb"
    assert modelfiles.find_model("folder/tiny.dbb") == Path("folder/tiny.dbb")


def test_names_of_what_was_pulled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGEDB_MODELS", str(tmp_path))
    assert str(modelfiles.absent("owner/tiny")) == "owner/tiny"
    with pytest.raises(
        EdgeDBError, match=r"owner/tiny is not on this disk.* edgedb pull owner/tiny"
    ):
        modelfiles.find_model("owner/tiny")
    folder = tmp_path / "owner--tiny"
    folder.mkdir()
    two, four = folder / "tiny-2.dbb", folder / "tiny-4.dbb"
    for second, path in enumerate((four, two)):
        path.touch()
        os.utime(path, (second, second))
        write_origin(path, {"revision": f"{second}" * 40, "asked": ("main", "next")[second]})
    assert modelfiles.find_model("owner/tiny") == two  # the one that was made last
    assert modelfiles.find_model("tiny-4") == modelfiles.find_model("tiny-4.dbb") == four
    assert modelfiles.find_model("owner/tiny@main") == four
    assert modelfiles.find_model("owner/tiny@1111111") == two
    assert modelfiles.absent("owner/tiny") is None
    for revision in ("111111", "2" * 40, "none"):  # too short for a commit, another, no branch
        assert modelfiles.absent(f"owner/tiny@{revision}") is not None
    (tmp_path / "no--re--po").mkdir()
    (tmp_path / "no--re--po" / "x.dbb").touch()
    assert modelfiles.known_models() == [two, four]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "tiny").touch()
    assert modelfiles.find_model("owner/tiny") == Path("owner/tiny")  # a path comes first
