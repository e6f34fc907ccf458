"""What is done with a checkpoint: it is exported, and what was written must load and run."""

from __future__ import annotations

import warnings
from pathlib import Path
from random import Random
from typing import Any

from edgedb.errors import EdgeDBError
from tools.export import Options, export
from tools.sources import open_source

from ... import checkpoints
from . import models
from .kind import WrongMessage

CONFIG: dict[str, Any] = {
    **checkpoints.CONFIG,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
_METHODS = ("dense32", "dense32", "dense16", "int8", "rtn")


def method_of(rng: Random) -> bytes:
    """How to store the weights; it is part of an input."""
    return rng.choice(_METHODS).encode()


def export_and_use(source: Path, out: Path, method: str) -> None:
    """Export ``source`` and use the file. What is written must never be refused."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a key that is on no list
        opened = open_source(source)
        options = Options(method=method, pairs=1, calibration="none")
        export(opened, out, options, threads=1)
        try:
            model = models.load(out)
        except EdgeDBError as error:
            raise WrongMessage(f"the exporter wrote what edgedb refuses: {error}") from None
    models.use(model)  # it may overflow, or its template refuse a conversation: in one line
