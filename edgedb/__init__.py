"""Large language models at two bits a weight on ordinary CPUs.

import edgedb

model = edgedb.load("model.dbb")
print(model.generate("Once upon a time", max_tokens=64).text)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import (
    BusyError,
    ContextFullError,
    EdgeDBError,
    FormatError,
    NativeError,
    TemplateError,
    UnsupportedModelError,
)

if TYPE_CHECKING:
    from .choose.sampling import SamplingParams
    from .run.completion import Chunk, Completion, Logprob, Stats, TokenLogprobs
    from .run.engine import Model, load
    from .run.session import Session

    __version__: str

__all__ = [
    "BusyError",
    "Chunk",
    "Completion",
    "ContextFullError",
    "EdgeDBError",
    "FormatError",
    "Logprob",
    "Model",
    "NativeError",
    "SamplingParams",
    "Session",
    "Stats",
    "TemplateError",
    "TokenLogprobs",
    "UnsupportedModelError",
    "load",
]

_LAZY = {
    "Chunk": "run.completion",
    "Completion": "run.completion",
    "Logprob": "run.completion",
    "TokenLogprobs": "run.completion",
    "Stats": "run.completion",
    "Model": "run.engine",
    "Session": "run.session",
    "load": "run.engine",
    "SamplingParams": "choose.sampling",
}


def __dir__() -> list[str]:
    return sorted([*__all__, "__doc__", "__version__"])


def __getattr__(name: str) -> Any:
    # `edgedb --help` and the exporter need neither the engine nor its imports.
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    if name == "__version__":  # what reads it costs half of a start that prints no version
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("edgedb-llm")
        except PackageNotFoundError:  # run from a source tree that was never installed
            return "0+unknown"
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
