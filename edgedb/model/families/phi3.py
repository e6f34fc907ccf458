"""Phi-3, Phi-3.5, Phi-4 (arXiv 2404.14219): Llama with its products fused in the checkpoint, a
share of each head turned, and longrope for long contexts."""

from __future__ import annotations

from dataclasses import replace

from ..keys import names
from .llama import FAMILY as LLAMA
from .mistral import WINDOW, features

FAMILY = replace(
    LLAMA,
    models="Phi-3, Phi-3.5 mini, Phi-4, Phi-4-mini",
    classes=("Phi3ForCausalLM",),
    config=LLAMA.config.but(
        honoured="partial_rotary_factor",
        refused=WINDOW,
        harmless="auto_map",  # what the class was before transformers had it
    ),
    defaults={
        **LLAMA.defaults,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "sliding_window": None,
    },
    nulls=names("is_causal sliding_window"),
    features=features,
    biases={},
    rope="partial_rotary_factor",
    architecture="phi3",
    metadata=LLAMA.metadata.but(
        fields={"attention.sliding_window": "sliding_window"}, honoured="rope.dimension_count"
    ),
    interleaved=False,
)
