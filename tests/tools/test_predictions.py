"""Entropy, head mass and deviation by entropy against plain arithmetic."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install '.[train]'")

from checkpoints import weights, write_hf  # noqa: E402
from tiny import TinySource  # noqa: E402

from tools.compare import Recorded  # noqa: E402
from tools.decoder import load_teacher  # noqa: E402
from tools.predictions import BINS, by_entropy, head_shares, main, predict  # noqa: E402


def test_predictions_equal_plain_arithmetic() -> None:
    teacher, student = load_teacher(TinySource()), load_teacher(TinySource(seed=1))
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, 96, (3, 20)))
    recorded = Recorded(teacher, ids, rows=2)
    found, exact = predict(student, recorded), predict(teacher, recorded)
    log_ps, log_pt = (
        model.logits(ids)[:, :-1].flatten(0, 1).double().log_softmax(-1).detach().numpy()
        for model in (student, teacher)
    )
    ps, pt = np.exp(log_ps), np.exp(log_pt)
    assert found.entropy == pytest.approx(-(ps * log_ps).sum(1), rel=1e-4)
    assert found.kl == pytest.approx((pt * (log_pt - log_ps)).sum(1), rel=1e-3)
    assert found.nll == pytest.approx(-log_ps[np.arange(57), ids[:, 1:].flatten()], rel=1e-4)
    assert np.array_equal(found.agrees, log_ps.argmax(1) == log_pt.argmax(1))
    assert found.mass == pytest.approx(ps.mean(0), rel=1e-4)
    assert found.likeliest.sum() == pytest.approx(1)
    assert abs(exact.kl).max() < 1e-5 and exact.agrees.all()

    bins = by_entropy(found, exact)
    entropies = [b["teacher_entropy"] for b in bins]
    assert len(bins) == BINS and entropies == sorted(entropies)
    surest = np.argsort(exact.entropy)[:6]  # 57 predictions in ten bins: the first have six
    assert bins[0]["kl"] == pytest.approx(found.kl[surest].mean())


def test_head_shares_follow_the_given_order() -> None:
    mass = np.full(200, 1 / 400)
    mass[50:60] += 1 / 20
    order = np.roll(np.arange(200), -50)
    assert head_shares(mass, order) == pytest.approx([0.525, 0.75, 1, 1])


def test_the_command_writes_a_report_and_a_picture(
    tmp_path: Path, tiny_bpe: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    teacher = write_hf(tmp_path / "teacher", tiny_bpe)
    other = write_hf(tmp_path / "other", tiny_bpe, tensors=weights(seed=1))
    text = tmp_path / "text.txt"
    text.write_text("She lived in a small house near the sea, and she liked to play. " * 9)
    arguments = [
        teacher, f"other={other}", "--held-out", text, "--held-out-window", 8, "--skip", 0,
        "--frequency", text, "--out", tmp_path / "r.json", "--plot", tmp_path / "r.png",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["predictions", *map(str, arguments)])
    main()
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["models"]["teacher"]["kl"] == pytest.approx(0, abs=1e-6)
    assert report["models"]["other"]["kl"] > 0.01
    assert report["text_head"][2:] == [1, 1]  # 1,000 tokens are more than the tokenizer has
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")


def test_a_report_that_cannot_be_written_is_found_before_measuring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("edgedb.convert.sources.open_source", None)  # would raise if called
    for out, what in (("no/such/folder/r.json", "no folder"), (".", "is a folder")):
        arguments = ["teacher", "--held-out", "t", "--frequency", "t", "--out", tmp_path / out]
        monkeypatch.setattr(sys, "argv", ["predictions", *map(str, arguments)])
        with pytest.raises(SystemExit):
            main()
        assert what in capsys.readouterr().err
