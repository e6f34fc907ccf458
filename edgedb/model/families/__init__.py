"""The families of models, one file each: ``FAMILIES`` is the only list of them.

A family says its pass by asking a recorder: ``first``, ``layer``, ``final`` and ``head``. It may
ask ``edgedb.ops.program`` and other families.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Protocol

from ...config import DEFAULT_CONTEXT, ModelConfig
from ...errors import FormatError
from ...ops.program import Block, Program, Recorder, Value, distinct
from ...rope import rope_table
from . import granite, llama, mistral, qwen2, qwen3


class Family(Protocol):
    """What a family's file says."""

    def first(self, m: Recorder, c: ModelConfig) -> Value:
        """Ids to the residual stream."""

    def layer(self, m: Recorder, c: ModelConfig, x: Value, i: int) -> Value:
        """Layer ``i``: the residual stream to itself."""

    def final(self, m: Recorder, c: ModelConfig, x: Value) -> Value:
        """The residual stream to what the head reads."""

    def head(self, m: Recorder, c: ModelConfig, x: Value) -> Value:
        """To logits."""


# model_type of a checkpoint -> who says its pass.
FAMILIES: Mapping[str, Family] = {
    "granite": granite,
    "llama": llama,
    "mistral": mistral,
    "qwen2": qwen2,
    "qwen3": qwen3,
}


# What a session takes beside the weights: 512 MiB are for any model, 8 bytes a weight for large
# ones. SmolLM2-135M takes 0.2 GB of the 1.6 that are its, Llama 2 7B 2.2 of 54.
_FREE_BYTES, _BYTES_PER_WEIGHT = 1 << 29, 8


@lru_cache(maxsize=16)
def program_of(config: ModelConfig) -> Program:
    """The program of a model.

    Raises ``FormatError`` if its sizes do not fit together, or ask for far more memory than its
    weights justify.
    """
    family = FAMILIES[config.model_type]
    m = Recorder(config.norm_eps, config.head_dim, rope_table(config))
    x = m.input(config.hidden_size)
    kinds, layers = distinct([Block(family.layer(m, config, x, i)) for i in range(config.n_layers)])
    final = family.final(m, config, x)
    program = Program(
        Block(family.first(m, config)),
        kinds,
        layers,
        Block(final),
        Block(family.head(m, config, m.input(final.width))),
    )
    n_weights = sum(rows * cols for rows, cols in program.matrices().values())
    beside = program.session_bytes(min(config.max_position_embeddings, DEFAULT_CONTEXT))
    if beside > _FREE_BYTES + _BYTES_PER_WEIGHT * n_weights:
        raise FormatError(
            f"config: {n_weights:,} weights would need {beside / 1e9:.1f} GB beside them; "
            "no model has such a shape"
        )
    return program
