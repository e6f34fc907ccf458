"""Lines answered on this machine, many at once."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence

from .answering import Cancelled
from .lines import Line
from .records import Record

Answer = Callable[[Line, Callable[[], bool]], Record]


def answer_here(answer: Answer, lines: Sequence[Line], parallel: int) -> Iterator[Record]:
    """Records as they are done, ``parallel`` lines at a time, begun in their order.

    When this is left early, what is being answered is given up within 100 ms.
    """
    todo: queue.SimpleQueue[Line] = queue.SimpleQueue()
    done: queue.SimpleQueue[Record] = queue.SimpleQueue()
    for line in lines:
        todo.put(line)
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            try:
                done.put(answer(todo.get_nowait(), stop.is_set))
            except (queue.Empty, Cancelled):
                return

    threads = [threading.Thread(target=work) for _ in range(min(parallel, len(lines)))]
    try:
        for thread in threads:
            thread.start()
        for _ in lines:
            yield _next(done)
    finally:
        stop.set()
        for thread in threads:
            if thread.ident is not None:
                thread.join()


def _next(done: queue.SimpleQueue[Record]) -> Record:
    while True:
        try:
            return done.get(timeout=1)  # Ctrl-C ends no wait without an end everywhere
        except queue.Empty:
            pass
