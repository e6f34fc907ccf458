"""The process: a socket, the event loop, the model that is loaded meanwhile, and signals."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..errors import EdgeDBError
from .app import App, with_cors
from .guard import is_loopback
from .served import Served
from .service import Service

_BACKLOG = 512
_KEEP_ALIVE_SECONDS = 30


class _Connection(H11Protocol):
    """A connection on which nothing complete arrives is closed in time, also its first."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._left = 0  # bytes to send, when it was last looked
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._wait()

    def timeout_keep_alive_handler(self) -> None:
        left = self.transport.get_write_buffer_size()
        if left and left == self._left:  # nobody takes what is still to be sent
            self.transport.abort()
        elif left:
            self._left, self.timeout_keep_alive_task = left, None
            self._wait()
        else:
            super().timeout_keep_alive_handler()

    def _wait(self) -> None:
        if self.timeout_keep_alive_task is None and not self.transport.is_closing():
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )


class Server(uvicorn.Server):
    """Serves one model until a signal or ``shut`` ends it."""

    def __init__(
        self,
        load: Callable[[], Served],
        sock: socket.socket,
        *,
        parallel: int = 16,
        max_queue: int = 64,
        seconds: float = 600.0,
        keys: Sequence[str] = (),
        origins: Sequence[str] = (),
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        """``load`` makes the model, in a thread, while ``/health`` answers already."""
        self._load, self._sock, self._say = load, sock, say
        self.service = Service(parallel=parallel, max_queue=max_queue, seconds=seconds)
        self.error: BaseException | None = None  # of loading
        self.ready = threading.Event()  # loaded, or ended
        self._signals: list[int] = []
        app = App(
            self.service,
            keys=keys,
            only_local=is_loopback(sock.getsockname()[0]),
            abort=self._abort,
        )
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        super().__init__(
            uvicorn.Config(
                with_cors(app, origins),
                http=_Connection,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                backlog=_BACKLOG,
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            )
        )

    def run_here(self) -> int:
        """Serve until the end; the signal that ended it, or 0. Raises what loading raised."""
        self.run(sockets=[self._sock])
        self.ready.set()
        if self.error is not None:
            raise self.error
        return self._signals[-1] if self._signals else 0

    def shut(self) -> None:
        """From any thread: what the first signal does, and, called again, the second."""
        with contextlib.suppress(RuntimeError):  # it has ended
            self._running.call_soon_threadsafe(self._end)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._running = asyncio.get_running_loop()
        await super().startup(sockets)
        threading.Thread(target=self._open, name="edgedb loading", daemon=True).start()

    def _open(self) -> None:
        try:
            served = self._load()
        except BaseException as error:
            self.error = error
            self._call(self._give_up)
        else:
            self._call(lambda: self._loaded(served))

    def _call(self, function: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):
            self._running.call_soon_threadsafe(function)

    def _loaded(self, served: Served) -> None:
        self.service.served = served
        self.ready.set()
        self._say(f"{served.name}: ready")

    def _give_up(self) -> None:
        self.should_exit = self.force_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Both signals drain; uvicorn's own would close the door on ``/health`` at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        wanted = [signal.SIGINT, signal.SIGTERM]
        before = {number: signal.signal(number, self._signalled) for number in wanted}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _signalled(self, number: int, frame: Any) -> None:
        self._signals.append(number)
        self._running.call_soon_threadsafe(self._end)

    def _end(self) -> None:
        if not self.service.is_draining:
            if self.service.desk.open:
                self._say(f"finishing {self.service.desk.open} answers; once more ends them")
            self.service.drain(self._leave)
        else:
            self.service.stop()
            self._running.call_later(1.0, self._leave_now)
            self.service.desk.when_empty(self._leave)

    def _leave(self) -> None:
        self.should_exit = True

    def _leave_now(self) -> None:
        self.should_exit = self.force_exit = True

    def _abort(self, scope: Any) -> None:
        for connection in list(self.server_state.connections):
            cycle = getattr(connection, "cycle", None)
            if cycle is not None and cycle.scope is scope:
                connection.transport.abort()


def listen(host: str, port: int) -> socket.socket:
    """A socket that others can connect to. Raises ``EdgeDBError`` if there can be none."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        # With the protocol: only by it asyncio knows that small writes must not wait (TCP_NODELAY).
        sock = socket.socket(family, kind, protocol)
        try:
            if sys.platform != "win32":  # where it would let two servers have one port
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
            sock.listen(_BACKLOG)
        except BaseException:
            sock.close()
            raise
        return sock
    except (OSError, UnicodeError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise EdgeDBError(f"{host}:{port} cannot be served: {reason}") from None
