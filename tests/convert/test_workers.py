"""Products side by side: the same numbers in the same order, whatever the number of threads."""

from __future__ import annotations

import threading
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_info
from tiny import TinySource, ids_of

from edgedb.convert.calibrate import LayerInputs, Needs, hessians
from edgedb.convert.sensitivity import sensitivities
from edgedb.convert.workers import Each, Workers, in_turn


def blas_threads() -> list[int]:
    return [found["num_threads"] for found in threadpool_info() if found["user_api"] == "blas"]


def test_results_come_in_order_and_side_by_side() -> None:
    """Each of three items waits for the other two."""
    together = threading.Barrier(3)
    with Workers(3) as workers:

        def wait(item: int) -> int:
            together.wait(timeout=60)
            return item

        assert list(workers.each(wait, range(9))) == list(range(9))


def test_few_are_ahead_of_their_reader() -> None:
    begun = count()
    with Workers(2) as workers:
        results = workers.each(lambda _: next(begun), range(1000))
        next(results)
        assert next(begun) <= 6


def test_an_error_reaches_the_caller_and_ends_the_rest() -> None:
    done: list[int] = []

    def fail(item: int) -> None:
        done.append(item)
        if item == 3:
            raise ValueError("three")

    with pytest.raises(ValueError, match="three"), Workers(1) as workers:
        list(workers.each(fail, range(1000)))
    assert len(done) < 20


def test_blas_has_one_thread_inside_and_what_it_had_outside() -> None:
    before = blas_threads()
    with Workers(2):
        assert set(blas_threads()) == {1}
    assert blas_threads() == before


def test_a_hessian_is_the_whole_product() -> None:
    x = np.random.default_rng(0).normal(size=(50, 600)).astype(np.float32)
    (found,) = hessians(x)
    np.testing.assert_array_equal(found, found.T)
    np.testing.assert_allclose(found, x.T @ x / 50, rtol=1e-4, atol=1e-5)


def test_threads_change_no_number(tmp_path: Path) -> None:
    """Of what matrices cost and of what they are fitted for."""
    source = TinySource(tied=False)
    ids = ids_of(source, 40, 16)

    def everything(each: Each, file: Path) -> list[np.ndarray]:
        costs = sensitivities(source, ids, file, threads=1, each=each)
        found = [np.array(list(costs.values()))]

        def store(name: str, needs: Needs, expert: int | None) -> np.ndarray:
            assert needs.missing is not None
            found.extend([*needs.hessians, needs.missing])
            return source.tensor(name) * np.float32(0.9)

        inputs = LayerInputs(source, ids, each)
        for _ in range(source.config.n_layers):
            inputs.next_layer(store)
        return [*found, inputs.hidden, *inputs.head().hessians]

    with Workers(3) as workers:
        several = everything(workers.each, tmp_path / "a")
    with Workers(1):
        alone = everything(in_turn, tmp_path / "b")
    assert len(several) == len(alone)
    for a, b in zip(several, alone, strict=True):
        np.testing.assert_array_equal(a, b)
