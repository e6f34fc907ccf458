"""Command R7B, Aya (Cohere): one norm for attention and feed-forward, which run in parallel; layers
with a window turn, the others do not. Their rotary embedding turns neighbours, and is Llama's once
rows are in its order."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...display import quoted
from ...errors import FormatError
from ...ops.recorder import Recorder
from ...ops.values import Value
from ..config import ModelConfig
from ..keys import names, needs, only
from .family import Fold, Settings
from .granite import positive
from .llama import FAMILY as LLAMA
from .llama import attention, mlp
from .mistral import LAYER_TYPES, WINDOW, windows


def layer(m: Recorder, c: ModelConfig, x: Value, i: int) -> Value:
    h = m.layer_norm(x, "attn_norm", bias=False)
    return x + attention(m, c, h, i) + mlp(m, c, h)


def final(m: Recorder, c: ModelConfig, x: Value) -> Value:
    return m.layer_norm(x, "final_norm", bias=False)


def full_layers(settings: Settings) -> list[bool]:
    """For each layer whether it sees all keys: each so many, where ``layer_types`` is silent; in
    GGUF also said of each that does not."""
    n_layers, every = settings["num_hidden_layers"], settings["sliding_window_pattern"]
    kinds = settings.get("layer_types")
    if kinds is not None:
        return [kind != "sliding_attention" for kind in kinds]
    if isinstance(every, list) and all(type(one) is bool for one in every):
        return [not windowed for windowed in every]
    if type(every) is not int or every < 1:
        raise FormatError(f"config.json: sliding_window_pattern = {quoted(every)}")
    return [(i + 1) % every == 0 for i in range(n_layers)]


def features(settings: Settings) -> dict[str, Any]:
    full = full_layers(settings)
    still = tuple(i for i, one in enumerate(full) if one)
    return {"unrotated_layers": still, **windows(settings, full)}


def fold(settings: Settings, config: ModelConfig) -> Fold:
    """The head is the embedding as well, so its factor goes into the norm before it."""
    return Fold(config, {"final_norm": positive(settings, "logit_scale")})


FAMILY = replace(
    LLAMA,
    layer=layer,
    final=final,
    models="Command R7B, Aya",
    classes=("Cohere2ForCausalLM",),
    config=LLAMA.config.but(
        fields={"layer_norm_eps": "norm_eps"},
        honoured="logit_scale sliding_window_pattern",
        refused={
            **WINDOW,
            **LAYER_TYPES,
            "position_embedding_type": needs("other positions", only("rope_gptj")),
            "use_gated_activation": needs("a feed-forward without a gate", only(True)),
            "use_parallel_block": needs("attention before the feed-forward", only(True)),
        },
        harmless="layer_switch order_of_interleaved_layers rms_norm_eps use_embedding_sharing "
        "use_parallel_embedding",
    ),
    defaults={
        "layer_norm_eps": 1e-5,
        "logit_scale": 0.0625,
        "max_position_embeddings": 8192,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "sliding_window_pattern": 4,
        "tie_word_embeddings": True,
    },
    nulls=names("is_causal sliding_window"),
    features=features,
    biases={"attention_bias": "attn_qkv"},
    fold=fold,
    architecture="cohere2",
    metadata=LLAMA.metadata.but(
        fields={
            "attention.layer_norm_epsilon": "layer_norm_eps",
            "attention.sliding_window": "sliding_window",
            "attention.sliding_window_pattern": "sliding_window_pattern",
            "logit_scale": "logit_scale",
        },
        harmless="attention.layer_norm_rms_epsilon",
    ),
    interleaved=False,
)
