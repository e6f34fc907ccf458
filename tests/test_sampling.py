"""Sampling: what each parameter keeps, repeatability, refusals; and stop strings."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgedb import EdgeDBError
from edgedb.sampling import Sampler, SamplingParams, _kept
from edgedb.stopping import StopMatcher

OFF = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}


def logits_of(size: int, seed: int = 0, scale: float = 3.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, scale, size).astype(np.float32)


def kept_by_definition(logits: np.ndarray, params: SamplingParams) -> list[int]:
    """The slow definition: sort everything, then cut."""
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    if params.top_k:
        order = order[: params.top_k]
    weights = np.exp(logits[order].astype(np.float64) - logits.max())
    probability = weights / weights.sum()
    n_nucleus = len(order)
    if params.top_p < 1:
        n_nucleus = int(np.searchsorted(np.cumsum(probability), params.top_p)) + 1
    n_min = int((weights >= params.min_p).sum())
    return order[: max(1, min(n_nucleus, n_min))]


@pytest.mark.parametrize("size", [1, 7, 63, 65, 4096, 49152])
@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 40, "top_p": 1.0, "min_p": 0.0},
        {"top_k": 1, "top_p": 0.9, "min_p": 0.0},
        {"top_k": 1000, "top_p": 0.5, "min_p": 0.0},
        {"top_k": 0, "top_p": 0.3, "min_p": 0.0},
        {"top_k": 0, "top_p": 0.999, "min_p": 0.0},
        {"top_k": 0, "top_p": 0.999, "min_p": 0.01},
        {"top_k": 50, "top_p": 0.9, "min_p": 0.1},
        {"top_k": 3, "top_p": 1e-9, "min_p": 0.0},
    ],
)
@pytest.mark.parametrize("scale", [0.01, 3.0, 30.0])
def test_what_is_kept_follows_the_definition(
    size: int, options: dict[str, float], scale: float
) -> None:
    params = SamplingParams(**options)  # type: ignore[arg-type]
    logits = logits_of(size, seed=size, scale=scale)
    kept = _kept(logits, float(logits.max()), params).tolist()
    expected = kept_by_definition(logits, params)
    # Where nothing is cut there is no order either.
    assert kept == (expected if len(expected) < size else sorted(expected)) or kept == expected


def test_equal_logits_keep_the_lowest_ids() -> None:
    logits = np.zeros(5000, np.float32)
    logits[4000] = 1
    ids = _kept(logits, 1.0, SamplingParams(top_k=5, top_p=1.0, min_p=0.0))
    assert ids.tolist() == [4000, 0, 1, 2, 3]


def test_nothing_is_cut_when_all_is_off() -> None:
    logits = np.array([0, -np.inf, 1, -50], np.float32)
    assert _kept(logits, 1.0, SamplingParams(**OFF)).tolist() == [0, 1, 2, 3]  # type: ignore[arg-type]
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
    with pytest.raises(EdgeDBError, match="not finite"):
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


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(EdgeDBError, match="empty"):
        StopMatcher(["a", ""])


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
