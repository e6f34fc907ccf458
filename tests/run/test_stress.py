"""A few runs of ``stress.py``, which says what is done; many are for an hour without tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import stress

from edgedb.ops import library

pytestmark = [
    pytest.mark.skipif(not library.available()[0], reason="needs the C library"),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks for Linux"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]


@pytest.mark.parametrize("work", ["native", "tokenize", "grammar"])
def test_leaving(sentencepiece_model: Path, work: str) -> None:
    if work == "grammar":
        pytest.importorskip("llguidance")
    assert set(stress.leave_often(sentencepiece_model, 3, "native", work)) == {"well"}


@pytest.mark.parametrize("model", ["tiny_model", "sentencepiece_model"])
def test_forks(request: pytest.FixtureRequest, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stress, "HANG_SECONDS", 10)
    ended = stress.fork_often(request.getfixturevalue(model), 3, "native")
    assert set(ended) == {"well"}


def test_a_fork_after_numba_has_started_its_threads(tiny_model: Path) -> None:
    command = [sys.executable, stress.__file__, "fork", str(tiny_model), "--backend", "numba"]
    done = subprocess.run([*command, "--runs", "2"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


def test_interrupts(tiny_model: Path) -> None:
    assert set(stress.interrupt_often(tiny_model, 10, "native")) == {"well"}


def test_event_loops(tiny_model: Path) -> None:
    assert set(stress.loop_often(tiny_model, 5, "native")) == {"well"}
