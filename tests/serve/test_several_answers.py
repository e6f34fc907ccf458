"""Several answers to one request: written together, each in a place of its own."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest
from passes import Passes

from edgedb.serve.desk import Desk, Seat
from edgedb.serve.served import Served

httpx = pytest.importorskip("httpx")

HI = [{"role": "user", "content": "Hi there"}]
PROMPTS = ["Once upon", "A dog", "The end of"]


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch, served: Served) -> Passes:
    return Passes(monkeypatch, served.model)


def completions(http: Any, **options: Any) -> dict[int, str]:
    """Texts by their index, as one document or from the events of a stream."""
    body = {"max_tokens": 30, "seed": 5, "prompt_lookup": 0, **options}
    answer = http.post("/v1/completions", json=body)
    assert answer.status_code == 200
    if not options.get("stream"):
        return {one["index"]: one["text"] for one in answer.json()["choices"]}
    found: dict[int, str] = {}
    events = [event.removeprefix("data: ") for event in answer.text.split("\n\n") if event]
    for event in map(json.loads, events[:-1]):
        for choice in event["choices"]:
            found[choice["index"]] = found.get(choice["index"], "") + choice["text"]
    return found


@pytest.mark.parametrize("stream", [False, True])
def test_answers_of_one_request_share_passes(
    http: Any, served: Served, passes: Passes, stream: bool
) -> None:
    options = {"params": served.params, "max_tokens": 30, "prompt_lookup": 0}
    alone = [
        served.model.generate(prompt, seed=5 + i, **options).text
        for prompt in PROMPTS
        for i in range(2)
    ]
    passes.hold(0, 2)
    found = completions(http, prompt=PROMPTS, n=2, stream=stream)
    assert [found[i] for i in range(6)] == alone
    assert passes.most > 1, "prompts of one request were not read together"
    passes.hold(1, 4)
    found = completions(http, prompt=PROMPTS[0], n=6, stream=stream)
    assert [found[i] for i in range(2)] == alone[:2]
    assert passes.most >= 4, "answers to one prompt were not written together"


def test_the_prompt_of_several_answers_is_read_once(http: Any, passes: Passes) -> None:
    prompt = [5 + 7 * i * i % 50 for i in range(100)]
    answer = http.post(
        "/v1/completions", json={"prompt": prompt, "n": 5, "max_tokens": 4, "prompt_lookup": 0}
    ).json()
    assert sum(map(sum, passes.read)) <= len(prompt) + 4 + 5 * 4
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}


def test_echoed_probabilities_of_several_answers(http: Any, served: Served) -> None:
    body = {"prompt": "Once upon", "max_tokens": 3, "seed": 5, "echo": True, "logprobs": 1}
    one = http.post("/v1/completions", json=body).json()["choices"][0]
    first, second = http.post("/v1/completions", json={**body, "n": 2}).json()["choices"]
    assert first == one
    n = len(served.model.tokenize("Once upon"))
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        assert second["logprobs"][name][:n] == one["logprobs"][name][:n]
        assert len(second["logprobs"][name]) == n + 3


def test_answers_take_places(serve: Any, slowly: None) -> None:
    """Of a request with more answers than places, as many as there are; others wait."""
    server = serve(parallel=4)
    desk = server.server.service.desk
    body = {"messages": HI, "max_tokens": 300, "stream": True, "n": 6}
    with httpx.stream("POST", server.address + "/v1/chat/completions", json=body):
        while not desk.running:
            time.sleep(0.001)
        assert desk.running == 4
        assert httpx.get(server.address + "/health").json()["slots_idle"] == 0


async def _enter(desk: Desk, answers: int, got: list[str], name: str) -> Seat:
    seat = desk.enter()

    async def wait() -> None:
        got.append(f"{name}{await seat.turn(answers)}")

    seat.task = asyncio.ensure_future(wait())  # type: ignore[attr-defined]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return seat


def test_places_at_the_desk() -> None:
    async def run() -> None:
        desk, got = Desk(4, 10), []  # type: ignore[var-annotated]
        a = await _enter(desk, 3, got, "a")
        b = await _enter(desk, 9, got, "b")  # all four
        c = await _enter(desk, 1, got, "c")  # has room, but is not before its turn
        assert (got, desk.running, desk.waiting) == (["a3"], 3, 2)
        b.task.cancel()  # type: ignore[attr-defined]
        for _ in range(5):
            await asyncio.sleep(0)
        assert (got, desk.running) == (["a3", "c1"], 4)
        d = await _enter(desk, 4, got, "d")
        a.done(counts=True)
        await asyncio.sleep(0)
        assert (got, desk.running) == (["a3", "c1"], 1)
        c.done(counts=False)
        for _ in range(5):
            await asyncio.sleep(0)
        assert (got, desk.running) == (["a3", "c1", "d4"], 4)
        d.done(counts=True)
        assert (desk.running, desk.waiting) == (0, 0)

    asyncio.run(run())
