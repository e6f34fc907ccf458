"""Many sessions at once: every one has the text, the probabilities and the cache that it has alone.

Sequences begin, end and are cancelled at random places, share beginnings that end about a page's
edge, guess from earlier text, by a draft model or not at all, and run on every instruction set with
one to eight threads. EDGEDB_SLOW=N tries N times as many.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import edgedb
from edgedb.model.kvcache import KV_DTYPES
from edgedb.ops import library
from edgedb.run.speculative import find_continuation
from edgedb.run.stakes import Stakes

pytestmark = pytest.mark.skipif(
    not library.available()[0], reason="only the native backend promises bits"
)

ISAS = [name for name, _, runs in library.instruction_sets() if runs] if library.lib else []
SEEDS = 2 * int(os.environ.get("EDGEDB_SLOW", "1"))
EDGES = (255, 256, 257)
CONTEXT = 640


def repeating(ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Makes the model repeat its context in most places, so that guesses are right."""
    found = find_continuation(ids, 1)
    if found and len(ids) % 7:
        logits[found[0]] += 400
    return logits


class Asked(NamedTuple):
    """One sequence: a prompt, options, and whether somebody loses patience."""

    ids: list[int]
    options: dict[str, Any]
    after: int  # tokens that sequence number - 1 has written when this one begins
    cancel_at: int | None  # tokens; with none, asked again until it is patient


class Got(NamedTuple):
    """What came of it."""

    tokens: list[int]
    more: list[int]  # of a fork, and of another answer to half of the prompt
    text: str
    logprobs: list[tuple[int, float]]
    saved: bytes


def sequences(seed: int) -> list[Asked]:
    rng = np.random.default_rng(seed)
    common = [int(i) for i in rng.integers(3, 300, 300)]
    asked = []
    for number in range(6):
        shared = int(rng.choice([0, 30, *EDGES]))
        own = [int(i) for i in rng.integers(3, 300, int(rng.choice([1, 2, 40, 150])))]
        options: dict[str, Any] = {
            "max_tokens": int(rng.integers(1, 24)),
            "temperature": float(rng.choice([0, 1.5])),
            "seed": number,
        }
        if rng.random() < 0.5:  # else whoever computes may choose
            options["logprobs"] = int(rng.integers(0, 3))
        if rng.random() < 0.5:
            options |= {"prompt_lookup": 4, "processors": repeating}
        options["draft_tokens"] = int(rng.choice([0, 3, 16]))
        cancel_at = int(rng.integers(0, 12)) if rng.random() < 0.3 else None
        asked.append(Asked([*common[:shared], *own], options, int(rng.integers(0, 8)), cancel_at))
    return asked


def answer(
    model: edgedb.Model, asked: Asked, path: Path, wrote: Callable[[int], None] = lambda n: None
) -> Got:
    """The answer, the session's file behind it, and the tokens as they come."""
    session = model.session()
    written: list[int] = []
    options = dict(asked.options)
    if asked.cancel_at == 0:
        calls = iter(range(3))  # a part of the prompt may be read by then
        session.generate(asked.ids, cancelled=lambda: next(calls, None) is None, **options)
    elif asked.cancel_at is not None:
        options["cancelled"] = lambda: len(written) >= asked.cancel_at
    text, logprobs = "", []
    for chunk in session.generate(asked.ids, stream=True, **options):
        text += chunk.text
        if chunk.token is not None:
            written.append(chunk.token)
            wrote(len(written))
        if chunk.logprobs is not None:
            logprobs += [(one.token, one.logprob) for one in (chunk.logprobs, *chunk.logprobs.top)]
    forked = session.fork().generate([*session.tokens, 7], max_tokens=3, temperature=0).tokens
    # Another answer to half of the prompt: what others share of the rest is still theirs.
    again = session.generate([*asked.ids[: len(asked.ids) // 2], 9], max_tokens=3, temperature=0)
    session.logits()  # so that all of it is read
    session.save(path)
    return Got(written, forked + again.tokens, text, logprobs, path.read_bytes())


def together(model: edgedb.Model, all_asked: list[Asked], folder: Path) -> list[Got | None]:
    """Each on a thread of its own."""
    got: list[Got | None] = [None] * len(all_asked)
    reached = [[threading.Event() for _ in range(8)] for _ in all_asked]

    def work(number: int) -> None:
        if number:
            reached[number - 1][all_asked[number].after].wait(30)

        def wrote(n: int) -> None:
            for event in reached[number][: n + 1]:
                event.set()

        try:
            wrote(0)
            got[number] = answer(model, all_asked[number], folder / f"{number}.kv", wrote)
        finally:
            wrote(8)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(all_asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return got


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_every_sequence_is_as_it_is_alone(
    long_model: Path,
    other_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kv_dtype: str,
) -> None:
    # As many guesses as may be, whatever they cost; the loop still gives them spare rows alone.
    monkeypatch.setattr(Stakes, "_best", lambda _, most: most)

    def load(isa: str, threads: int, draft: Path | None = None) -> edgedb.Model:
        return edgedb.load(
            long_model, backend="native", isa=isa, threads=threads, context=CONTEXT,
            kv_dtype=kv_dtype, cache_tokens=4096, draft=draft, verify=False,
        )  # fmt: skip

    for seed in range(SEEDS):
        all_asked = sequences(seed)
        alone = [answer(load(ISAS[-1], 1), asked, tmp_path / "alone.kv") for asked in all_asked]
        for isa in ISAS:
            drafts = (long_model, other_model)  # always right where a choice is greedy; hardly ever
            for draft, threads in zip(drafts, (1 + seed % 2, 2 + (3 * seed) % 7), strict=True):
                found = together(load(isa, threads, draft), all_asked, tmp_path)
                for number, (one, other) in enumerate(zip(alone, found, strict=True)):
                    assert other is not None, (seed, isa, threads, number)
                    assert other == one, (seed, isa, threads, number)
