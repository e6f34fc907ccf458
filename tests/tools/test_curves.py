"""The picture of a training's log."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from edgedb.errors import EdgeDBError
from tools.curves import draw, draw_if_possible, read_log


def write_log(folder: Path) -> Path:
    lines = [{"step": i, "kl": 1 / i, "kl_sampled": 1 / i, "kl_real": 2 / i} for i in range(1, 40)]
    quality = {"kl": 0.5, "ppl": 30.0, "teacher_ppl": 20.0, "top1": 0.6}
    lines += [{"step": step, "validation": "held-out", **quality} for step in (20, 39)]
    log = folder / "log.jsonl"
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return log


def test_a_png_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw(write_log(tmp_path), tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(EdgeDBError, match="pip install"):
        draw(write_log(tmp_path), tmp_path / "curves.png")
    draw_if_possible(tmp_path)  # a training does not fail for want of a picture
    assert "matplotlib" in capsys.readouterr().out


def test_a_damaged_line_is_named_and_a_cut_last_one_dropped(tmp_path: Path) -> None:
    log = write_log(tmp_path)
    with log.open("a") as file:
        file.write('{"step": 4')
    assert len(read_log(log)) == 41
    log.write_text('{"step": 1\n{"step": 2}\n')
    with pytest.raises(EdgeDBError, match="line 1"):
        read_log(log)
    with pytest.raises(EdgeDBError, match="No such file"):
        read_log(tmp_path / "none.jsonl")
