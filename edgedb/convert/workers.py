"""Threads of the exporter, each at a product of its own.

BLAS cuts a product among its threads and lets them spin until the last one is done. Where other
work wants the cores, or products are as small as those of an attention head, that takes several
times as long as the product. Here BLAS has one thread, and whole products run side by side. What is
one product does not depend on the number of threads, so neither does any number.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

from threadpoolctl import threadpool_limits

from ..ops.cores import usable_cpus

Item = TypeVar("Item")
Result = TypeVar("Result")


class Each(Protocol):
    """Calls a function with every item and gives its results in the items' order."""

    def __call__(
        self, function: Callable[[Item], Result], items: Iterable[Item]
    ) -> Iterator[Result]: ...


def in_turn(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """One after the other, in the caller's thread."""
    return map(function, items)


class Workers:
    """So many threads, all usable cores by default. A context manager: inside it BLAS, of the whole
    process, has one thread."""

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads or usable_cpus()

    def __enter__(self) -> Workers:
        self._limits = threadpool_limits(1, user_api="blas")
        self._pool = ThreadPoolExecutor(self.threads)
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._limits.restore_original_limits()

    def each(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """An ``Each``. Few items are ahead of what the caller took, so that results that are large
        do not pile up."""
        ahead: deque[Future[Result]] = deque()
        for item in items:
            ahead.append(self._pool.submit(function, item))
            if len(ahead) > 2 * self.threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
