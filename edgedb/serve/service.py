"""The server's state, and how one request is carried from its body to its answer."""

from __future__ import annotations

import asyncio
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from ..run.completion import Chunk, Stats
from ..run.request import Sink
from .asked import Reply, Task
from .body import parse_body, read_body
from .desk import Desk, Seat
from .errors import Refused, refusal
from .metrics import Metrics
from .served import Served
from .transport import PING_SECONDS, Sender, to_json
from .worker import Bell, Worker

Read = Callable[[Served, Any], tuple[Task, Reply]]
_READERS = 2  # threads that parse and tokenize, so that the event loop need not


class Service:
    """One model and those who ask it. Belongs to the event loop's thread."""

    def __init__(self, *, parallel: int, max_queue: int, seconds: float) -> None:
        """``seconds``: that a client may take to send a request, or to take some of its answer."""
        self.served: Served | None = None  # until it is loaded
        self.desk = Desk(parallel, max_queue)
        self.metrics = Metrics()
        self.seconds = seconds
        self.is_draining = self.is_stopped = False
        self._readers = ThreadPoolExecutor(_READERS, "edgedb reader")
        self._jobs: set[asyncio.Task[None]] = set()
        self._bell: Bell | None = None

    def drain(self, then: Callable[[], None]) -> None:
        """Let nobody in any more, and call ``then`` when all answers are sent."""
        self.is_draining = True
        self.desk.when_empty(then)

    def stop(self) -> None:
        """End all answers now."""
        self.is_draining = self.is_stopped = True
        for job in list(self._jobs):
            job.cancel()

    def ready(self) -> Served:
        """The model. Raises ``Refused`` while it is loaded and when the server goes away."""
        if self.is_draining:
            raise Refused(503, "the server is shutting down", code="draining")
        if self.served is None:
            headers = {"Retry-After": "1"}
            raise Refused(503, "the model is being loaded", code="loading", headers=headers)
        return self.served

    async def read(self, scope: Any, receive: Any, use: Callable[[Served, Any], Any]) -> Any:
        """What ``use`` makes of the model and the request's body, in a thread."""
        served = self.ready()
        data = await read_body(scope, receive, self.seconds)

        def work() -> Any:
            return use(served, parse_body(data))

        return await asyncio.get_running_loop().run_in_executor(self._readers, work)

    async def answer(
        self, scope: Any, receive: Any, sender: Sender, read: Read, last: bytes
    ) -> None:
        """Have the engine answer; ``last`` ends a stream."""
        served, arrived = self.ready(), time.perf_counter()
        data = await read_body(scope, receive, self.seconds)
        self.ready()  # still
        seat = self.desk.enter()
        gone = asyncio.ensure_future(_gone(receive))
        work = self._answer(served, data, read, seat, sender, last, arrived)
        job = asyncio.ensure_future(work)
        self._jobs.add(job)
        try:
            await asyncio.wait({gone, job}, return_when=asyncio.FIRST_COMPLETED)
            if job.done() and not job.cancelled():
                job.result()
            elif self.is_stopped:
                await sender.refuse(Refused(503, "the server was stopped", code="draining"))
        finally:
            for task in (gone, job):
                task.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await task
            self._jobs.discard(job)
            seat.leave()

    async def _answer(
        self,
        served: Served,
        data: bytes,
        read: Read,
        seat: Seat,
        sender: Sender,
        last: bytes,
        arrived: float,
    ) -> None:
        loop = asyncio.get_running_loop()
        asked, reply = await loop.run_in_executor(
            self._readers, lambda: read(served, parse_body(data))
        )
        if asked.stream:  # so that who waits hears that somebody is there
            await sender.begin()
            await sender.events(reply.begin())
        pulse = None
        if asked.stream:
            pulse = asyncio.ensure_future(self._pulse(sender, asyncio.current_task()))
        worker = None
        try:
            at_once = await seat.turn(asked.answers)
            work = self._work(served, asked, reply, arrived, at_once)
            if self._bell is None:
                self._bell = Bell()
            worker = Worker(work, seat, self._bell)
            worker.start()
            if asked.stream:
                await _send_stream(worker, reply, sender)
            else:
                await worker.ended.wait()
            if worker.error is not None:
                raise worker.error
        finally:
            if pulse is not None:
                pulse.cancel()
            if worker is not None:
                worker.cancel()
        if asked.stream:
            await sender.end(last)
        else:
            await sender.document(200, worker.result)

    def _work(self, served: Served, asked: Task, reply: Reply, arrived: float, at_once: int) -> Any:
        """What a worker's thread does."""

        def work(
            put: Callable[[Any], None], flush: Callable[[], None], cancelled: Callable[[], bool]
        ) -> bytes:
            begun: dict[int, Stats] = {}  # of answers that have not ended
            is_first = True

            def progress(done: int, total: int) -> None:
                put((done, total))
                flush()

            def take(item: Any) -> None:
                nonlocal is_first
                if asked.stream:
                    put(item)
                else:
                    reply.push(item)
                if not isinstance(item, Chunk):
                    return
                if is_first and item.token is not None:
                    is_first = False
                    self.metrics.first.add(time.perf_counter() - arrived)
                begun[item.index] = item.stats
                if item.finish_reason is not None:
                    self.metrics.answer(item.finish_reason, begun.pop(item.index))

            if not asked.stream:
                reply.begin()
            heard = progress if asked.progress else None
            sink = Sink(take, flush)
            try:
                for item in asked.chunks(served, cancelled, heard, at_once, sink):
                    take(item)
                    flush()
            except Exception:
                for stats in begun.values() or (Stats(),):
                    self.metrics.answer(None, stats)
                raise
            self.metrics.whole.add(time.perf_counter() - arrived)
            if asked.stream:
                return b""
            reply.finish()
            return to_json(reply.document())

        return work

    async def _pulse(self, sender: Sender, job: asyncio.Task[Any] | None) -> None:
        """Ping who waits, and give up on who does not read."""
        while True:
            await asyncio.sleep(min(PING_SECONDS, self.seconds) / 4)
            if sender.stuck() > self.seconds and job is not None:
                sender.abort()
                job.cancel()
            elif not sender.stuck() and sender.idle() >= PING_SECONDS:
                await sender.ping()

    async def carry(self, sender: Sender, handle: Any) -> None:
        """Run ``handle``; what it raises is answered."""
        try:
            await handle
        except ConnectionResetError:  # nobody is there to be answered
            pass
        except Exception as error:
            refused = refusal(error)
            if refused.status == 500:
                traceback.print_exception(error, file=sys.stderr)
            await sender.refuse(refused)


async def _send_stream(worker: Worker, reply: Reply, sender: Sender) -> None:
    is_over = False
    while not is_over:
        await worker.woken.wait()
        is_over = worker.ended.is_set()
        events: list[Any] = []
        for item in worker.take():
            events += reply.reading(*item) if isinstance(item, tuple) else reply.push(item)
        await sender.events(events)
    if worker.error is None:
        await sender.events(reply.finish())


async def _gone(receive: Any) -> None:
    """Returns when the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass
