"""Several answers at once: each in a thread of its own, so that one pass serves all of them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from queue import Empty, SimpleQueue

from ..errors import EdgeDBError
from .completion import Chunk

Cancelled = Callable[[], bool]
Begin = Callable[[Cancelled], Iterator[Chunk]]
AT_ONCE = 32  # more streams make a pass longer, and hardly any token cheaper
_LOOK_SECONDS = 1.0  # how often who waits for a chunk looks whether one can come


def together(
    answers: Sequence[Begin],
    at_once: int = AT_ONCE,
    cancelled: Cancelled = lambda: False,
) -> Iterator[Chunk]:
    """Chunks of all ``answers`` as they come, with their number as ``Chunk.index``.

    Each is begun with what asks whether to end, in order, ``at_once`` at a time; where that is one,
    in the calling thread. What one of them raises ends all, and so does a reader that goes away.
    """
    if min(at_once, len(answers)) < 2:
        for number, answer in enumerate(answers):
            for chunk in answer(cancelled):
                yield replace(chunk, index=number) if number else chunk
        return
    to_begin = deque(enumerate(answers))
    came: SimpleQueue[Chunk | Exception | None] = SimpleQueue()  # None: a thread has ended
    is_over = threading.Event()

    def begin() -> tuple[int, Begin] | None:
        with suppress(IndexError):  # all are begun
            return None if is_over.is_set() else to_begin.popleft()
        return None

    def work() -> None:
        try:
            for number, answer in iter(begin, None):
                for chunk in answer(lambda: is_over.is_set() or cancelled()):
                    came.put(replace(chunk, index=number))
        except Exception as error:
            came.put(error)
        finally:
            came.put(None)

    threads = [
        threading.Thread(target=work, name="edgedb answer", daemon=True)
        for _ in range(min(at_once, len(answers)))
    ]
    running = len(threads)
    try:
        for thread in threads:
            thread.start()
        while running:
            try:
                item = came.get(timeout=_LOOK_SECONDS)
            except Empty:
                if not any(thread.is_alive() for thread in threads):
                    raise EdgeDBError(
                        "answers that were begun before a fork do not go on"
                    ) from None
                continue
            if item is None:
                running -= 1
            elif isinstance(item, Exception):
                raise item
            else:
                yield item
    finally:
        is_over.set()
        for thread in threads:
            if thread.is_alive():
                thread.join()
