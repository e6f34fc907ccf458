"""The families of models, one file each; ``FAMILIES`` is the only list of them.

A family says its pass by asking a recorder, and how its checkpoints' settings are read. It may ask
``edgedb.ops.recorder``, the lists of keys beside this folder, and other families.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from ...display import quoted
from ...errors import FormatError, UnsupportedModelError
from ...ops.program import Block, Program, distinct
from ...ops.recorder import Recorder
from ..config import DEFAULT_CONTEXT, ModelConfig
from . import (
    bloom,
    cohere2,
    falcon,
    gemma,
    gemma2,
    gemma3_text,
    gpt2,
    gpt_neox,
    gpt_oss,
    gptj,
    granite,
    llama,
    ministral3,
    mistral,
    mixtral,
    olmo2,
    olmo3,
    olmoe,
    opt,
    phi,
    phi3,
    qwen2,
    qwen3,
    qwen3_moe,
    smollm3,
    stablelm,
    starcoder2,
)
from .family import Family, Fold

__all__ = ["FAMILIES", "Family", "Fold", "family_of", "program_of"]

# model_type of config.json -> family
FAMILIES: Mapping[str, Family] = {
    "bloom": bloom.FAMILY,
    "cohere2": cohere2.FAMILY,
    "falcon": falcon.FAMILY,
    "gemma": gemma.FAMILY,
    "gemma2": gemma2.FAMILY,
    "gemma3_text": gemma3_text.FAMILY,
    "gpt2": gpt2.FAMILY,
    "gpt_neox": gpt_neox.FAMILY,
    "gpt_oss": gpt_oss.FAMILY,
    "gptj": gptj.FAMILY,
    "granite": granite.FAMILY,
    "llama": llama.FAMILY,
    "ministral3": ministral3.FAMILY,
    "mistral": mistral.FAMILY,
    "mixtral": mixtral.FAMILY,
    "olmo2": olmo2.FAMILY,
    "olmo3": olmo3.FAMILY,
    "olmoe": olmoe.FAMILY,
    "opt": opt.FAMILY,
    "phi": phi.FAMILY,
    "phi3": phi3.FAMILY,
    "qwen2": qwen2.FAMILY,
    "qwen3": qwen3.FAMILY,
    "qwen3_moe": qwen3_moe.FAMILY,
    "smollm3": smollm3.FAMILY,
    "stablelm": stablelm.FAMILY,
    "starcoder2": starcoder2.FAMILY,
}


def family_of(model_type: object) -> Family:
    """Raises ``UnsupportedModelError`` for a ``model_type`` that is none of ``FAMILIES``."""
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise UnsupportedModelError(
            f"model_type {quoted(model_type)} is not supported; "
            f"this version runs {', '.join(FAMILIES)}"
        )
    return FAMILIES[model_type]


# What a session takes beside the weights: 512 MiB are for any model, 8 bytes a weight for large
# ones. SmolLM2-135M takes 0.2 GB of the 1.6 that are its, Llama 2 7B 2.2 of 54.
_FREE_BYTES, _BYTES_PER_WEIGHT = 1 << 29, 8


@lru_cache(maxsize=16)
def program_of(config: ModelConfig) -> Program:
    """The program of a model.

    Raises ``UnsupportedModelError`` for an unknown family, ``FormatError`` if sizes do not fit
    together, or ask for far more memory than the weights justify.
    """
    family = family_of(config.model_type)
    m = Recorder(config.norm_eps, config.head_dim)
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
    n_weights = sum(program.sizes().values())
    beside = program.session_bytes(min(config.max_position_embeddings, DEFAULT_CONTEXT))
    if beside > _FREE_BYTES + _BYTES_PER_WEIGHT * n_weights:
        raise FormatError(
            f"config: {n_weights:,} weights would need {beside / 1e9:.1f} GB beside them; "
            "no model has such a shape"
        )
    return program
