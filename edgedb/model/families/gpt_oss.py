"""gpt-oss 20B, 120B (arXiv 2508.10925): biases everywhere, a sink for each head, a window in every
other layer, and experts with a clamped gate."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...ops.recorder import Recorder
from ...ops.values import Value
from ..config import ModelConfig
from ..keys import Refusal, names
from .family import Settings
from .llama import FAMILY as LLAMA
from .llama import mlp, turned
from .mistral import LAYER_TYPES, WINDOW, windows
from .mixture import experts_of, with_experts


def layer(m: Recorder, c: ModelConfig, x: Value, i: int) -> Value:
    x = x + attention(m, c, m.rms_norm(x, "attn_norm"), i)
    h = m.rms_norm(x, "mlp_norm")
    return x + (mixture(m, c, h) if c.has_experts(i) else mlp(m, c, h))


def attention(m: Recorder, c: ModelConfig, x: Value, i: int) -> Value:
    q, k, v = m.linear(x, "attn_qkv", c.qkv_size, bias=True).split(c.q_size, c.kv_size, c.kv_size)
    q, k = turned(m, c, q, k, i)
    attended = m.attention(q, k, v, window=c.window(i), sinks="attn_sinks")
    return m.linear(attended, "attn_out", c.hidden_size, bias=True)


def mixture(m: Recorder, c: ModelConfig, x: Value) -> Value:
    logits = m.linear(x, "router", c.n_experts, bias=True)
    route = m.route(logits, c.experts_per_token, normalized=c.normalized_shares)
    gate_up = m.experts(x, route, "experts_gate_up", 2 * c.expert_size, parts=2, bias=True)
    gate, up = gate_up.split(gate_up.width // 2, gate_up.width // 2)
    h = m.clamped_gate(gate, up, c.gate_alpha, c.gate_limit)
    return m.mix(m.experts(h, route, "experts_down", c.hidden_size, own=True, bias=True), route)


def features(settings: Settings) -> dict[str, Any]:
    return {
        **experts_of(settings, 128, size="intermediate_size", normalized=True),
        "gate_alpha": settings["swiglu_alpha"],
        "gate_limit": settings["swiglu_limit"],
        **windows(settings, [i % 2 == 1 for i in range(settings["num_hidden_layers"])]),
    }


def _is_mxfp4(value: Any, settings: Settings) -> bool:
    return value == {} or (isinstance(value, dict) and value.get("quant_method") == "mxfp4")


# As transformers has it where config.json is silent.
_YARN = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}
_CONFIG, _METADATA = with_experts(LLAMA, "num_local_experts", "swiglu_alpha swiglu_limit", {})

FAMILY = replace(
    LLAMA,
    layer=layer,
    models="gpt-oss 20B, 120B",
    classes=("GptOssForCausalLM",),
    config=_CONFIG.but(
        honoured="initial_context_length",
        refused={
            **WINDOW,
            **LAYER_TYPES,
            "quantization_config": Refusal("is quantized in another way than MXFP4", _is_mxfp4),
        },
        harmless="experts_per_token",
    ),
    defaults={
        **LLAMA.defaults,
        "head_dim": 64,
        "max_position_embeddings": 131072,
        "num_experts_per_tok": 4,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "rope_parameters": _YARN,
        "rope_theta": 150000.0,
        "sliding_window": 128,
        "swiglu_alpha": 1.702,
        "swiglu_limit": 7.0,
    },
    nulls=names("is_causal num_key_value_heads sliding_window"),
    features=features,
    biases={},  # always there
    architecture="gpt-oss",
    metadata=_METADATA.but(fields={"attention.sliding_window": "sliding_window"}),
    implied=lambda settings: {"rope_scaling": {"truncate": False}},
    interleaved=False,
)
