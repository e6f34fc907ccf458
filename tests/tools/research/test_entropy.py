"""Ranks, tenths of a text, and what foretells an error, against plain arithmetic."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch: make test installs its CPU build")

from checkpoints import weights, write_hf  # noqa: E402
from tiny import TinySource  # noqa: E402

from tools.decoder import load_teacher  # noqa: E402
from tools.research.__main__ import main  # noqa: E402
from tools.research.entropy import (  # noqa: E402
    Measured,
    foretold,
    mass_by_tenth,
    rank_correlation,
    ranks,
    tenths,
)
from tools.research.results import Results  # noqa: E402


def test_ranks_share_ties() -> None:
    assert ranks(np.array([3.0, 1.0, 3.0, 2.0, 3.0])).tolist() == [3, 0, 3, 1, 3]
    a = np.array([1.0, 2.0, 3.0, 4.0])
    assert rank_correlation(a, np.exp(a)) == pytest.approx(1)
    assert rank_correlation(a, -(a**3)) == pytest.approx(-1)
    assert rank_correlation(a, np.array([1.0, 1.0, 2.0, 1.5])) == pytest.approx(3.5 / 22.5**0.5)
    assert rank_correlation(a, np.ones(4)) == 0


def test_tenths_hold_a_tenth_of_the_text_each() -> None:
    counts = np.array([1.0] * 50 + [5.0] * 10)  # of 100
    of = tenths(counts)
    assert np.bincount(of, weights=counts).tolist() == [10.0] * 10
    assert set(of[50:]) == set(range(5))  # the frequent ones come first
    assert mass_by_tenth(counts, of) == pytest.approx([0.1] * 10)
    heavy = tenths(np.array([0.0, 35.0, 65.0]))
    assert heavy.tolist() == [9, 6, 0]


def test_measured_is_plain_arithmetic() -> None:
    teacher, student = load_teacher(TinySource()), load_teacher(TinySource(seed=1))
    rng = np.random.default_rng(0)
    ids = torch.from_numpy(rng.integers(0, 96, (3, 20)))
    counts = rng.integers(1, 9, 96).astype(np.float64)
    measured = Measured(teacher, {"x": ids}, counts)
    found = measured.of(student, entropies=True)["x"]
    log_ps, log_pt = (
        model.logits(ids)[:, :-1].flatten(0, 1).double().log_softmax(-1).detach().numpy()
        for model in (student, teacher)
    )
    ps, pt = np.exp(log_ps), np.exp(log_pt)
    targets = ids[:, 1:].flatten().numpy()
    kl = (pt * (log_pt - log_ps)).sum(1)
    nll, exact = (-log[np.arange(57), targets] for log in (log_ps, log_pt))
    assert found["kl"] == pytest.approx(kl.mean(), rel=1e-4)
    assert found["ppl"] == pytest.approx(np.exp(nll.mean()), rel=1e-4)
    assert found["teacher_ppl"] == pytest.approx(np.exp(exact.mean()), rel=1e-4)
    mine, theirs = -(ps * log_ps).sum(1), -(pt * log_pt).sum(1)
    told = found["foretold"]
    assert told["teacher_entropy"] == pytest.approx(rank_correlation(kl, theirs), abs=1e-3)
    assert told["student_entropy"] == pytest.approx(rank_correlation(kl, mine), abs=1e-3)
    twin = theirs**0.3 * mine**0.7
    assert told["twin_0.3"] == pytest.approx(rank_correlation(kl, twin), abs=1e-3)
    assert told["added_by_teacher_entropy"] == pytest.approx(
        rank_correlation(nll - exact, theirs), abs=1e-3
    )
    of = tenths(counts)
    expected = [ps.mean(0)[of == i].sum() for i in range(10)]
    assert found["mass"] == pytest.approx(expected, rel=1e-4)
    assert sum(found["text_mass"]) == pytest.approx(1)
    assert "foretold" not in measured.of(student)["x"]


def test_a_perfect_student_has_no_error_to_foretell() -> None:
    teacher = load_teacher(TinySource())
    measured = Measured(teacher, {"x": torch.arange(40).view(2, 20)}, np.ones(96))
    exact = measured.exact["x"]
    assert foretold(exact, exact)["added_by_teacher_entropy"] == 0


def test_the_command_measures_each_model_once(
    tmp_path: Path, tiny_bpe: bytes, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    teacher = write_hf(tmp_path / "teacher", tiny_bpe)
    other = write_hf(tmp_path / "other", tiny_bpe, tensors=weights(seed=1))
    text = tmp_path / "text.txt"
    text.write_text("She lived in a small house near the sea, and she liked to play. " * 9)
    np.save(tmp_path / "ids.npy", np.arange(3, 300, dtype=np.uint16))
    arguments = [
        "entropy", teacher, f"other={other}", "--text", f"book={text}", "--text",
        f"ids={tmp_path / 'ids.npy'}", "--frequency", text, "--windows", 3, "--length", 16,
        "--out", tmp_path / "r.jsonl",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["research", *map(str, arguments)])
    main()
    (record,) = Results(tmp_path / "r.jsonl").read()
    assert record["key"] == "entropy/other/book+ids/3x16"
    assert set(record["quality"]) == {"book", "ids"}
    assert len(record["quality"]["book"]["by_entropy"]) == 10
    main()
    assert len(Results(tmp_path / "r.jsonl").read()) == 1
    monkeypatch.setattr(sys, "argv", ["research", *map(str, [*arguments, "--text", "nothing"])])
    with pytest.raises(SystemExit):
        main()
    assert "expected NAME=FILE" in capsys.readouterr().err
