"""The C library's threads: shared, asleep, forked."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from kernels import activations, assert_same_bits, bits, matmul, ops_of, pair_tensor

from edgedb.ops.native import NativeOps


def test_threads_share_one_context() -> None:
    ops = NativeOps(threads=2)
    tensor = pair_tensor(700, 300, 2)
    matrix = ops.matrix(tensor)
    inputs = [activations(n, 300, seed=n) for n in (1, 2, 9, 40)]
    expected = [matmul(ops_of(), tensor, x) for x in inputs]
    wrong: list[int] = []

    def work(index: int) -> None:
        x, out = ops.wrap(inputs[index]), ops.buffer((len(inputs[index]), 700))
        for _ in range(60):
            out.array[...] = 0
            ops.matmul(matrix, x, out, len(inputs[index]))
            if not np.array_equal(bits(out.array), bits(expected[index])):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_pool_sleeps_and_wakes() -> None:
    ops = NativeOps(threads=3)
    tensor, x = pair_tensor(640, 128, 1), activations(1, 128)
    expected = matmul(ops_of(), tensor, x)
    for pause in (0, 0.00002, 0.0001, 0.002) * 20:
        time.sleep(pause)
        assert_same_bits(matmul(ops, tensor, x), expected)


def test_idle_pool_uses_no_cpu() -> None:
    ops = NativeOps(threads=3)
    matmul(ops, pair_tensor(640, 128, 1), activations(1, 128))
    time.sleep(0.05)

    def used() -> float:  # by all threads, of which other tests may have left some
        before = time.process_time()
        time.sleep(0.3)
        return time.process_time() - before

    assert min(used() for _ in range(3)) < 0.03


def test_bits_stay_while_other_processes_want_the_cores() -> None:
    """More threads than cores and busy neighbours: threads lose their cores within a chunk."""
    busy = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"])
        for _ in range(os.cpu_count() or 1)
    ]
    try:
        tensor = pair_tensor(1500, 512, 2)
        pools = [NativeOps(threads=threads) for threads in (2, 3, 8)]
        inputs = [activations(n, 512, seed=n) for n in (1, 1, 1, 20)]
        expected = [matmul(ops_of(), tensor, x) for x in inputs]
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            for ops, (x, y) in itertools.product(pools, zip(inputs, expected, strict=True)):
                assert_same_bits(matmul(ops, tensor, x), y)
    finally:
        for process in busy:
            process.kill()
            process.wait()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_child_of_fork_computes_the_same() -> None:
    ops = NativeOps(threads=3)
    tensor, x = pair_tensor(640, 128, 1), activations(4, 128)
    expected = matmul(ops, tensor, x)
    old_context = ops.context
    child = os.fork()
    if child == 0:
        try:
            same = np.array_equal(bits(matmul(ops, tensor, x)), bits(expected))
            new_pool = ops.context is not old_context
            ops.context = old_context  # whose threads are the parent's
            same &= np.array_equal(bits(matmul(ops, tensor, x)), bits(expected))
            os._exit(0 if same and new_pool else 1)
        finally:
            os._exit(2)
    deadline = time.monotonic() + 20
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done or time.monotonic() > deadline:
            break
        time.sleep(0.01)
    if not done:
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert done and status == 0
    assert_same_bits(matmul(ops, tensor, x), expected)
