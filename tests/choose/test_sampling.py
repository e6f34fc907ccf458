"""Sampling: what each parameter keeps, repeatability, refusals; and stop strings."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgedb import EdgeDBError
from edgedb.choose.sampling import Sampler, SamplingParams
from edgedb.ops import library
from edgedb.ops.native_selection import NativeSelection
from edgedb.text.stopping import StopMatcher

OFF = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}


def logits_of(size: int, seed: int = 0, scale: float = 3.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, scale, size).astype(np.float32)


def test_forbidden_tokens_are_never_drawn() -> None:
    logits = np.array([0, -np.inf, 1, -50], np.float32)
    seen = {Sampler(SamplingParams(temperature=1, seed=s, **OFF)).sample(logits) for s in range(99)}  # type: ignore[arg-type]
    assert seen == {0, 2}


def test_greedy_takes_the_first_of_the_largest() -> None:
    sampler = Sampler(SamplingParams(temperature=0))
    assert sampler.sample(np.array([1, 3, 3, 2], np.float32)) == 1


def test_draws_follow_the_probabilities() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.2], np.float32))
    sampler = Sampler(SamplingParams(temperature=1.0, seed=4, **OFF))  # type: ignore[arg-type]
    counts = np.bincount([sampler.sample(logits) for _ in range(20000)], minlength=3) / 20000
    np.testing.assert_allclose(counts, [0.5, 0.3, 0.2], atol=0.015)


def test_temperature_sharpens_and_flattens() -> None:
    logits = np.array([1.0, 0.0], np.float32)

    def share(temperature: float) -> float:
        sampler = Sampler(SamplingParams(temperature=temperature, seed=0, **OFF))  # type: ignore[arg-type]
        return sum(sampler.sample(logits) == 0 for _ in range(2000)) / 2000

    shares = [share(t) for t in (100.0, 1.0, 0.3, 1e-300)]
    assert all(a < b for a, b in pairwise(shares))
    assert shares[-1] == 1.0


def test_a_seed_gives_known_tokens() -> None:
    """The same ids on every CPU and with every numpy."""
    logits = logits_of(1000, seed=5)
    sampler = Sampler(SamplingParams(temperature=1.0, seed=42))
    assert [sampler.sample(logits) for _ in range(8)] == [185, 803, 816, 220, 639, 182, 185, 185]


EVERY_WAY: list[dict[str, Any]] = [
    {},
    {"top_k": 0},
    {"top_k": 0, "top_p": 1.0},
    OFF,
    {"typical_p": 0.6},
    {"top_k": 0, "typical_p": 0.6, "top_p": 0.9},
    {"mirostat": 2, "mirostat_tau": 3.0},
    {"repetition_penalty": 1.3, "presence_penalty": 0.2, "frequency_penalty": 0.1},
    {"dry_multiplier": 0.8, "dry_allowed_length": 1},
    {"logit_bias": {3: 2.0, 9: -np.inf}},
    {"temperature": 0.0, "repetition_penalty": 2.0},
]


@pytest.mark.skipif(not library.available()[0], reason="needs the C library")
@pytest.mark.parametrize("options", EVERY_WAY, ids=str)
def test_every_backend_makes_the_same_choices(options: dict[str, Any]) -> None:
    rows = [logits_of(3000, seed=i) for i in range(30)]

    def choices(sampler: Sampler) -> list[int]:
        history: list[int] = []
        for row in rows:
            history.append(sampler.sample(row, history))
        return history

    params = SamplingParams(seed=1, **options)
    assert choices(Sampler(params)) == choices(Sampler(params, NativeSelection()))


def test_known_tokens_of_every_way() -> None:
    """The same ids on every CPU and with every numpy."""
    logits = logits_of(1000, seed=5)
    found = []
    for options in EVERY_WAY:
        sampler = Sampler(SamplingParams(**{"temperature": 1.0, "seed": 42, **options}))
        found.append([sampler.sample(logits, [185, 803, 185]) for _ in range(4)])
    assert found == KNOWN


KNOWN = [
    [185, 803, 816, 220],
    [185, 803, 816, 220],
    [185, 803, 816, 220],
    [803, 639, 871, 803],
    [220, 803, 185, 871],
    [615, 871, 58, 185],
    [220, 803, 185, 220],
    [816, 871, 58, 220],
    [185, 871, 816, 220],
    [185, 803, 816, 220],
    [639, 639, 639, 639],
]


def test_mirostat_holds_the_surprise() -> None:
    logits = logits_of(5000, scale=1.0)  # almost flat: 11 bits of entropy
    probabilities = np.exp(logits.astype(np.float64))
    probabilities /= probabilities.sum()
    for tau in (2.0, 6.0):
        params = SamplingParams(mirostat=2, mirostat_tau=tau, temperature=1.0, seed=1)
        sampler = Sampler(params)
        ids = [sampler.sample(logits) for _ in range(600)][200:]
        kept = np.sort(probabilities)[::-1][: len(set(ids))]
        assert np.log2(len(set(ids))) == pytest.approx(tau, abs=1.0)
        assert len(kept) < 200


def test_the_order_of_the_steps() -> None:
    """Bias comes before the penalties, processors before both."""
    seen = []

    def double(ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
        seen.append(ids.tolist())
        logits *= 2
        return logits

    params = SamplingParams(temperature=0, logit_bias={0: 1.0}, repetition_penalty=3.0)
    logits = np.array([1.0, 1.4], np.float32)
    # Doubled: 2, 2.8. Biased: 3, 2.8. Penalized: 1, 2.8. In another order: 5/3 or 4/3.
    assert Sampler(params, processors=[double]).sample(logits, [0]) == 1
    assert Sampler(params, processors=[double]).sample(logits, [1]) == 0
    assert seen == [[0], [1]] and logits.tolist() == [1.0, np.float32(1.4)]


def test_a_processor_must_return_logits() -> None:
    sampler = Sampler(SamplingParams(), processors=[lambda ids, logits: logits[:3]])
    with pytest.raises(EdgeDBError, match="processor"):
        sampler.sample(logits_of(10))


def test_no_token_left() -> None:
    params = SamplingParams(logit_bias={0: -np.inf, 1: -np.inf})
    with pytest.raises(EdgeDBError, match="no token is left"):
        Sampler(params).sample(np.zeros(2, np.float32))


def test_no_seed_differs_each_time() -> None:
    assert Sampler(SamplingParams()).seed != Sampler(SamplingParams()).seed
    assert Sampler(SamplingParams(seed=0)).seed == 0


def test_repetition_penalty_counts_recent_tokens_once() -> None:
    logits = np.array([2.0, 1.9, -1.0, -1.1], np.float32)
    before = logits.copy()
    params = SamplingParams(temperature=0, repetition_penalty=1.2, repetition_window=2)
    assert Sampler(params).sample(logits, [0, 0, 0]) == 1
    assert Sampler(params).sample(logits, [0, 3, 3]) == 0, "0 has left the window"
    assert Sampler(params).sample(np.array([-1.0, -1.1], np.float32), [0]) == 1
    np.testing.assert_array_equal(logits, before)
    off = SamplingParams(temperature=0, repetition_penalty=1.2, repetition_window=0)
    assert Sampler(off).sample(logits, [0]) == 0


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_finite(temperature: float, bad: float) -> None:
    logits = logits_of(100)
    logits[17] = bad
    with pytest.raises(EdgeDBError, match="not finite"):
        Sampler(SamplingParams(temperature=temperature)).sample(logits)
    with pytest.raises(EdgeDBError, match="no token is left"):
        Sampler(SamplingParams(temperature=temperature)).sample(np.full(4, -np.inf, np.float32))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", "hot"),
        ("temperature", True),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_p", 1.1),
        ("top_p", -0.1),
        ("min_p", 2),
        ("repetition_penalty", 0),
        ("repetition_window", -1),
        ("seed", -1),
        ("seed", "x"),
        ("typical_p", 1.5),
        ("presence_penalty", float("inf")),
        ("frequency_penalty", "much"),
        ("dry_multiplier", -1),
        ("dry_base", 0.5),
        ("dry_allowed_length", -1),
        ("dry_breakers", "\n"),
        ("dry_breakers", [""]),
        ("mirostat", 1),
        ("mirostat", True),
        ("mirostat_tau", 0),
        ("mirostat_eta", 2),
        ("logit_bias", [1]),
        ("logit_bias", {-1: 2.0}),
        ("logit_bias", {1: float("inf")}),
        ("logit_bias", {1: "x"}),
    ],
)
def test_values_out_of_range_are_named(name: str, value: object) -> None:
    with pytest.raises(EdgeDBError, match=name) as error:
        SamplingParams(**{name: value})  # type: ignore[arg-type]
    assert "expected" in str(error.value)


def test_stop_string_ends_the_text() -> None:
    matcher = StopMatcher(["\nUser:", "###"])
    assert matcher.push("Hello\nU") == "Hello"
    assert matcher.push("nder") == "\nUnder"
    assert matcher.push("#") == ""
    assert matcher.push("#") == ""
    assert matcher.push("# and more") == ""
    assert matcher.stopped
    assert matcher.push("ignored") == ""
    assert matcher.finish() == ""


def test_what_was_held_back_comes_at_the_end() -> None:
    matcher = StopMatcher(["END"])
    assert matcher.push("the EN") == "the "
    assert matcher.finish() == "EN"
    assert not matcher.stopped


def test_without_stop_strings_everything_passes_at_once() -> None:
    matcher = StopMatcher([])
    assert matcher.push("abc") == "abc"
    assert matcher.finish() == ""


@given(
    text=st.text("ab#", max_size=30),
    stops=st.lists(st.text("ab#", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(0, 30), max_size=8),
)
def test_the_result_does_not_depend_on_the_pieces(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    def run(pieces: list[str]) -> tuple[str, bool]:
        matcher = StopMatcher(stops)
        shown = "".join([matcher.push(piece) for piece in pieces])
        return shown + matcher.finish(), matcher.stopped

    edges = sorted({0, len(text), *(min(c, len(text)) for c in cuts)})
    assert run([text[a:b] for a, b in pairwise(edges)]) == run(list(text))
    shown, stopped = run([text])
    assert text.startswith(shown)
    assert not any(stop in shown for stop in stops)
    assert stopped == any(stop in text for stop in stops)
