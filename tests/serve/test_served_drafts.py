"""A server whose model has a draft: the same answers, and how many guesses were right."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import edgedb
from edgedb.ops import library
from edgedb.run.stakes import Stakes
from edgedb.serve.served import Served

pytestmark = pytest.mark.skipif(
    not library.available()[0], reason="a draft needs the native backend"
)


def test_answers_beside_each_other(
    serve: Callable[..., Any], served: Served, long_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Stakes, "_best", lambda _, most: most)  # whatever it costs
    httpx = pytest.importorskip("httpx")
    model = edgedb.load(long_model, context=2048, threads=1, cache_tokens=8192, draft=long_model)
    running = serve(lambda: Served(model, params=served.params))
    answers: dict[int, Any] = {}

    def ask(seed: int) -> None:
        body = {"prompt": f"Once {seed % 3}", "max_tokens": 40, "seed": seed, "temperature": 0}
        body |= {"draft_tokens": 0} if seed % 4 == 3 else {}
        answer = httpx.post(f"{running.address}/v1/completions", json=body, timeout=60)
        answers[seed] = answer.json()

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, answer in answers.items():
        alone = served.model.generate(f"Once {seed % 3}", max_tokens=40, temperature=0)
        assert answer["choices"][0]["text"] == alone.text
    ask(8)  # alone, so that it has rows to spare
    timings = answers[8]["timings"]
    assert 0 <= timings.get("draft_n_accepted", 0) <= timings.get("draft_n", 0)
    assert "draft_n" not in answers[3]["timings"]
    metrics = httpx.get(f"{running.address}/metrics").text
    drafted = sum(one["timings"].get("draft_n", 0) for one in answers.values())
    assert f"edgedb_drafted_tokens_total {drafted}\n" in metrics and drafted
    assert "edgedb_accepted_tokens_total" in metrics


def test_a_bound_that_is_none(http: Any) -> None:
    answer = http.post("/v1/completions", json={"prompt": "Once", "draft_tokens": -1})
    assert answer.status_code == 400 and "draft_tokens" in answer.text
