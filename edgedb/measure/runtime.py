"""What runs a model here, and why: the facts behind ``edgedb info`` without a file."""

from __future__ import annotations

import os
from typing import Any

from .. import __version__, ops
from ..model.residence import describe_huge_pages
from .benchmark import Machine


def describe_runtime(
    backend: str | None = None, isa: str | None = None, threads: int | None = None
) -> dict[str, Any]:
    """The backend that ``edgedb.load`` would use with these arguments, and all others.

    Keys: ``version``; ``cpu``; ``cores`` this process may use; ``backend``, ``isa``, ``kernel``,
    ``threads`` in use; ``reason`` for that backend; ``backends`` (name, available, reason) and
    ``instruction_sets`` of the native library (name, description, supported, kernels), best first;
    ``huge_pages``, whether the system gives them, in words.
    Raises ``NativeError`` if a forced choice cannot run.
    """
    chosen = ops.create(backend, isa, threads)
    statuses = ops.statuses()
    machine = Machine.here()
    return {
        "version": __version__,
        "cpu": machine.cpu,
        "cores": machine.cores,
        "backend": chosen.name,
        "isa": chosen.isa,
        "kernel": chosen.kernel,
        "threads": chosen.threads,
        "reason": _reason(chosen.name, backend, isa, statuses),
        "backends": [vars(status) for status in statuses],
        "instruction_sets": _instruction_sets(),
        "huge_pages": describe_huge_pages(),
    }


def _reason(
    chosen: str, backend: str | None, isa: str | None, statuses: list[ops.BackendStatus]
) -> str:
    if backend:
        return "asked for with --backend"
    if os.environ.get("EDGEDB_BACKEND"):
        return "asked for with EDGEDB_BACKEND"
    if isa or os.environ.get("EDGEDB_ISA") or os.environ.get("EDGEDB_KERNEL"):
        return "the one that has instruction sets and kernels to choose from"
    missing = [f"{s.name}: {s.reason}" for s in statuses[: _index(statuses, chosen)]]
    return "; ".join(missing) if missing else "the fastest, and it can run here"


def _index(statuses: list[ops.BackendStatus], name: str) -> int:
    return next(i for i, status in enumerate(statuses) if status.name == name)


def _instruction_sets() -> list[dict[str, Any]]:
    from ..ops import library

    if not library.available()[0]:
        return []
    return [
        {
            "name": name,
            "description": description,
            "supported": supported,
            "kernels": library.kernels(name),
        }
        for name, description, supported in library.instruction_sets()
    ]
