"""The k largest logits and their exponentials: C against numpy, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgedb.ops import library
from edgedb.ops.exactmath import exp
from edgedb.ops.native_selection import NativeSelection
from edgedb.ops.selection import NumpySelection

BOTH = [NumpySelection(), NativeSelection()] if library.available()[0] else [NumpySelection()]
backends = pytest.mark.parametrize("selection", BOTH, ids=lambda s: type(s).__name__)


def by_definition(logits: np.ndarray, k: int) -> list[int]:
    def rank(i: int) -> tuple[bool, float, int]:
        value = float(logits[i])
        return (value == value, -value if value == value else 0.0, i)

    return sorted(range(len(logits)), key=rank)[:k]


@backends
@pytest.mark.parametrize("size", [1, 7, 63, 64, 65, 129, 4096, 20000])
@pytest.mark.parametrize("k", [1, 2, 40, 64, 1000, 20000])
@pytest.mark.parametrize("order", ["random", "rising", "falling", "equal", "few values"])
def test_the_largest(selection: NumpySelection, size: int, k: int, order: str) -> None:
    rng = np.random.default_rng(size + k)
    logits = rng.normal(0, 3, size).astype(np.float32)
    if order == "few values":
        logits = rng.integers(-2, 3, size).astype(np.float32)
    elif order == "equal":
        logits[:] = -1.5
    elif order != "random":
        logits = np.sort(logits)[:: 1 if order == "rising" else -1].copy()
    k = min(k, size)
    ids, values = selection.largest(logits, k)
    assert ids.tolist() == by_definition(logits, k)
    assert values.tobytes() == logits[ids].tobytes()


special = st.sampled_from([0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0, 3e38, 1e-45])


@backends
@settings(deadline=None)
@given(
    logits=arrays(np.float32, st.integers(1, 200), elements=st.floats(width=32) | special),
    k=st.integers(1, 200),
)
def test_infinities_and_nan(selection: NumpySelection, logits: np.ndarray, k: int) -> None:
    k = min(k, len(logits))
    ids, _ = selection.largest(logits, k)
    assert ids.tolist() == by_definition(logits, k)


@backends
def test_weights_have_the_bits_of_exactmath(selection: NumpySelection) -> None:
    rng = np.random.default_rng(1)
    edges = [0, -0.0, np.nan, np.inf, -np.inf, 709.79, 709.8, -708.5, -745.2, -750, 1e30, -1e30]
    logits = np.concatenate([rng.uniform(-760, 720, 50001), rng.normal(0, 1, 5001), edges])
    logits = logits.astype(np.float32)
    for top, temperature in ((0.0, 1.0), (3.25, 0.7), (-1.0, 2.0)):
        expected = exp((logits.astype(np.float64) - top) / temperature)
        assert selection.softmax_weights(logits, top, temperature).tobytes() == expected.tobytes()
    tiny = selection.softmax_weights(np.array([1, 2], np.float32), 2.0, 1e-300)
    assert tiny.tolist() == [0, 1]


@pytest.mark.skipif(len(BOTH) < 2, reason="needs the C library")
def test_arguments_that_c_refuses() -> None:
    from edgedb.errors import NativeError

    logits = np.zeros(5, np.float32)
    for k in (0, -1, 6):
        with pytest.raises((NativeError, ValueError)):
            NativeSelection().largest(logits, k)
    with pytest.raises(NativeError):
        NativeSelection().softmax_weights(np.zeros(0, np.float32), 0.0)
