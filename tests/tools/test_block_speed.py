"""What block-wise training of a shape takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install '.[train]'")
torch.set_num_threads(1)  # more cost more than they give on matrices this small

from tiny import TinySource  # noqa: E402

from tools import block_speed  # noqa: E402


def test_a_few_layers_speak_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(block_speed.SHAPES, "llama-1.1b", TinySource(tied=False).config)
    flags = ["--tokens", "64", "--length", "16", "--epochs", "1", "--scale-steps", "1",
             "--gradient-tokens", "16", "--device", "cpu"]  # fmt: skip
    monkeypatch.setattr("sys.argv", ["block_speed", "llama-1.1b", "--layers", "1", *flags])
    block_speed.main()
    found = json.loads(capsys.readouterr().out)
    assert found["tokens"] == 64 and len(found["seconds_a_layer"]) == 1
    assert found["hours_of_all_layers"] >= 0 and found["main_memory_gb"] > 0
    assert not list(tmp_path.iterdir())
