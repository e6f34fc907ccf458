"""docs/python-api.md: its examples run from top to bottom, its tables are those of the code."""

from __future__ import annotations

import re
import shutil
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest
from places import ROOT

import edgedb
from edgedb.choose.sampling import SamplingParams
from edgedb.run.request import Request

PAGE = ROOT / "docs" / "python-api.md"
TEXT = PAGE.read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def test_the_examples_run(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("llguidance", reason="needs pip install '.[grammar]'")
    for name in ("model", "draft"):
        shutil.copy(tiny_model, tmp_path / f"{name}.dbb")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    assert len(EXAMPLES) >= 9
    for example in EXAMPLES:
        exec(compile(example, str(PAGE), "exec"), names)


def test_every_sampling_field_is_there_with_its_default() -> None:
    for field in fields(SamplingParams):
        value = {} if field.default is MISSING else field.default
        shown = str(value) if isinstance(value, dict) else None
        if isinstance(value, (int, float)):
            shown = f"{value:g}"
        elif isinstance(value, tuple):
            shown = repr(value).replace("'\"'", "§").replace("'", '"').replace("§", "'\"'")
        elif value is None:
            shown = "None"
        assert f"`{field.name}={shown}`" in TEXT.replace("\n", " "), field.name


def test_every_option_is_there() -> None:
    renamed = {"grammar": "json_schema"}
    for field in fields(Request):
        if field.name == "sink":  # the server's own way to take chunks
            continue
        assert f"`{renamed.get(field.name, field.name)}`" in TEXT, field.name


def test_the_formula_of_a_session(tiny_model: Path) -> None:
    lines = re.findall(r"^    (cache|logits|ids|scratch) +(.*?)(?:  .*)?$", TEXT, re.MULTILINE)
    assert [name for name, _ in lines] == ["cache", "logits", "ids", "scratch"]
    model = edgedb.load(tiny_model, context=333)
    c = model.config
    sizes = {
        "n_layers": c.n_layers,
        "n_kv_heads": c.n_kv_heads,
        "row": 2 * c.head_dim,
        "context": 333,
        "batch": 128,
        "hidden": c.hidden_size,
        "qkv": c.qkv_size,
        "q": c.q_size,
        "intermediate": c.intermediate_size,
        "vocabulary": c.vocab_size,
    }
    *session, scratch = (eval(formula, sizes) for _, formula in lines)
    assert model.session().size_bytes == sum(session)
    assert model.scratch_bytes == scratch
