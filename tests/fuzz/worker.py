"""The process that tries inputs, one after another, and says over a pipe what became of each."""

from __future__ import annotations

import faulthandler
import gc
import os
import re
import resource
import shutil
import time
import traceback
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any

from edgedb.errors import EdgeDBError

from .kinds import KINDS, Files, WrongMessage

MEMORY_BYTES = 1 << 30  # that one input may take beyond what the worker has
MESSAGE_CHARS = 2000
_COLLECT_EVERY = 200

Outcome = tuple[str, str, float]  # accepted, refused or what went wrong; detail; seconds


def input_of(kind: str, seed: str) -> Files:
    """The input that ``seed`` stands for."""
    return KINDS[kind].make(Random(f"{kind}:{seed}"))


def work(connection: Connection, jobs: Iterator[tuple[str, str]], folder: Path) -> None:
    """Try every job (kind, seed), announcing it before and sending its outcome behind."""
    quiet()
    opened: set[str] = set()
    for number, (kind, seed) in enumerate(jobs):
        if kind not in opened:
            KINDS[kind].open()
            opened.add(kind)
            limit_memory()
        connection.send((kind, seed))
        files = input_of(kind, seed)
        connection.send(attempt(kind, files, folder))
        if number % _COLLECT_EVERY == 0:
            gc.collect()


def attempt(kind: str, files: Files, folder: Path) -> Outcome:
    """Try one input in a folder of its own."""
    folder.mkdir(parents=True)
    started = time.process_time()
    try:
        KINDS[kind].use(files, folder)
        what, detail = "accepted", ""
    except EdgeDBError as error:
        what, detail = _refusal(str(error))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a panic of the tokenizer library is no Exception
        what, detail = _traceback(error, folder)
    seconds = time.process_time() - started
    shutil.rmtree(folder, ignore_errors=True)
    return what, detail, seconds


def _refusal(message: str) -> tuple[str, str]:
    if "\n" in message or "\r" in message or len(message) > MESSAGE_CHARS or not message.strip():
        return "a refusal that is not one line", repr(message[: 2 * MESSAGE_CHARS])
    return "refused", message


def _traceback(error: BaseException, folder: Path) -> tuple[str, str]:
    """A line that is the same for the same fault, and the whole of it."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if "/edgedb/" in f.filename or "/tools/" in f.filename]
    at = ours[-1] if ours else frames[-1]
    place = f"{Path(at.filename).parent.name}/{Path(at.filename).name}:{at.name}"
    name = "" if isinstance(error, WrongMessage) else f"{type(error).__name__} in {place}: "
    message = re.sub(r"\d+", "N", str(error).replace(str(folder), "..."))[:100]
    return f"{name}{message!r}", "".join(traceback.format_exception(error))[-6000:]


def quiet() -> None:
    """No output of libraries: one panic prints several lines, and there are thousands."""
    faulthandler.disable()
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)


def limit_memory() -> None:
    """Address space for one input: what there is now and ``MEMORY_BYTES`` more."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def unlimited() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def processor_seconds(pid: int) -> float:
    """Processor time of a process so far; 0 if it is gone."""
    try:
        fields: list[Any] = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
