"""Qwen2, Qwen2.5 (arXiv 2407.10671): Llama with biases in the query, key and value projections."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...display import quoted
from ...errors import FormatError
from ...ops.recorder import Recorder
from ...ops.values import Value
from ..config import ModelConfig
from ..keys import names
from .family import Settings
from .llama import FAMILY as LLAMA
from .llama import mlp, turned
from .mistral import LAYER_TYPES, WINDOW, windows


def layer(m: Recorder, c: ModelConfig, x: Value, i: int) -> Value:
    x = x + attention(m, c, m.rms_norm(x, "attn_norm"), i)
    return x + mlp(m, c, m.rms_norm(x, "mlp_norm"))


def attention(m: Recorder, c: ModelConfig, x: Value, i: int) -> Value:
    qkv = m.linear(x, "attn_qkv", c.qkv_size, bias=True)
    q, k, v = qkv.split(c.q_size, c.kv_size, c.kv_size)
    q, k = turned(m, c, q, k, i)
    return m.linear(
        m.attention(q, k, v, window=c.window(i), cap=c.score_cap), "attn_out", c.hidden_size
    )


def features(settings: Settings) -> dict[str, Any]:
    """The window counts only with ``use_sliding_window``, in the layers that ``layer_types`` says;
    where it says nothing, from ``max_window_layers`` on."""
    if not settings["use_sliding_window"]:
        return {}
    n_layers, first = settings["num_hidden_layers"], settings["max_window_layers"]
    if type(first) is not int:
        raise FormatError(f"config.json: max_window_layers = {quoted(first)}, expected a number")
    return windows(settings, [i < first for i in range(n_layers)])


FAMILY = replace(
    LLAMA,
    layer=layer,
    models="Qwen2, Qwen2.5",
    classes=("Qwen2ForCausalLM",),
    config=LLAMA.config.but(
        honoured="max_window_layers use_sliding_window",
        refused={**WINDOW, **LAYER_TYPES},
    ),
    defaults={
        **LLAMA.defaults,
        "max_position_embeddings": 32768,
        "max_window_layers": 28,
        "sliding_window": 4096,
        "use_sliding_window": False,
    },
    nulls=names("is_causal num_key_value_heads sliding_window"),
    features=features,
    biases={},  # always there
    architecture="qwen2",
    interleaved=False,
)
