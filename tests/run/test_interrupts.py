"""Ctrl-C between any two lines of an answer: the session goes on as if it had never been."""

from __future__ import annotations

import linecache
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

import edgedb
from edgedb.run.speculative import Lookup, find_continuation
from edgedb.run.stakes import Stakes

PACKAGE = Path(edgedb.__file__).parent
FILES = (
    *("session.py", "reader.py", "kvcache.py", "speculative.py", "network.py", "loop.py"),
    *("cached_tokens.py", "draft.py", "stakes.py"),
)
PROMPT = [5, 9, 40, 17, 23, 8, 60, 61, 62, 5, 9, 40, 17]


class Lines:
    """Counts the lines that run in the files that keep a session's state; may interrupt one."""

    def __init__(self, interrupt_at: int | None = None) -> None:
        self.seen: list[tuple[str, int, str]] = []
        self._at = interrupt_at

    def __call__(self, frame: FrameType, event: str, arg: Any) -> Any:
        path = Path(frame.f_code.co_filename)
        ours = path.is_relative_to(PACKAGE) and path.name in FILES
        return self._line if ours or path.name == "contextlib.py" else None

    def _line(self, frame: FrameType, event: str, arg: Any) -> Any:
        # Python looks for signals behind a call, so never between a lock of C's and its `with`.
        source = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
        if event in ("line", "return") and not source.lstrip().startswith("with gate.lock"):
            self.seen.append((frame.f_code.co_filename, frame.f_lineno, event))
            if len(self.seen) - 1 == self._at:
                raise KeyboardInterrupt
        return self._line

    def run(self, function: Callable[[], object]) -> None:
        before = sys.gettrace()
        sys.settrace(self)
        try:
            function()
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(before)


def repeating(ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Makes the model repeat its context in most places, so that guesses are right."""
    found = find_continuation(ids, 1)
    if found and len(ids) % 7:
        logits[found[0]] += 400
    return logits


@pytest.fixture
def model(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> edgedb.Model:
    measured = Lookup.measured
    monkeypatch.setattr(Lookup, "measured", lambda self, n, seconds: measured(self, n, 1e-9))
    monkeypatch.setattr(Stakes, "_best", lambda _, most: min(3, most))  # whatever it costs
    return edgedb.load(tiny_model, context=64, draft=tiny_model)


@pytest.mark.parametrize(("lookup", "draft"), [(0, 0), (4, 0), (0, 4)])
def test_between_any_two_lines(model: edgedb.Model, lookup: int, draft: int) -> None:
    options: dict[str, Any] = {"temperature": 0, "prompt_lookup": lookup, "draft_tokens": draft}
    if lookup:
        options["processors"] = repeating

    def answer(session: edgedb.Session, ids: list[int], n: int = 6) -> str:
        return session.generate(ids, max_tokens=n, **options).text

    def ready() -> edgedb.Session:
        session = model.session()
        answer(session, [*PROMPT[:6], 7], 2)  # so that there is something to rewind
        return session

    session, lines = ready(), Lines()
    lines.run(lambda: answer(session, PROMPT))
    first = {place: i for i, place in reversed(list(enumerate(lines.seen)))}
    last = {place: i for i, place in enumerate(lines.seen)}
    expected_files = FILES if draft else FILES[: 4 if lookup else 2]
    assert {Path(path).name for path, _, _ in first}.issuperset(expected_files)

    expected = {}
    for at in sorted({*first.values(), *last.values()}):
        session, lines = ready(), Lines(at)
        lines.run(lambda session=session: answer(session, PROMPT))  # type: ignore[misc]
        where = lines.seen[-1]
        tokens = session.tokens
        prompts = [[*tokens, 11, 12], tokens, PROMPT]
        for ids in prompts:
            key = tuple(ids)
            if key not in expected:
                expected[key] = answer(model.session(), ids)
            assert answer(session, ids) == expected[key], where
