"""What families of experts share: the feed-forward, and how a checkpoint's settings speak of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...display import quoted
from ...errors import FormatError
from ...ops.recorder import Recorder
from ...ops.values import Value
from ..config import ModelConfig
from ..keys import Keys, needs, only
from .family import Family, Settings
from .llama import mlp


def feed_forward(m: Recorder, c: ModelConfig, x: Value, i: int) -> Value:
    return mixture(m, c, x) if c.has_experts(i) else mlp(m, c, x)


def mixture(m: Recorder, c: ModelConfig, x: Value) -> Value:
    logits = m.linear(x, "router", c.n_experts)
    route = m.route(logits, c.experts_per_token, normalized=c.normalized_shares)
    gate_up = m.experts(x, route, "experts_gate_up", 2 * c.expert_size, parts=2)
    gate, up = gate_up.split(gate_up.width // 2, gate_up.width // 2)
    down = m.experts(m.silu(gate) * up, route, "experts_down", c.hidden_size, own=True)
    return m.mix(down, route)


def experts_of(settings: Settings, count: int, *, size: str, normalized: object) -> dict[str, Any]:
    """The features of a model with experts; ``count`` of them where settings do not say, under
    either of their two names; ``size``: the key of ``expert_size``."""
    count = settings.get("num_local_experts", settings.get("num_experts", count))
    other = settings.get("num_experts", count)
    if other != count:
        raise FormatError(
            f"config.json: num_local_experts = {quoted(count)}, but num_experts = {quoted(other)}"
        )
    return {
        "n_experts": count,
        "experts_per_token": settings.get("num_experts_per_tok"),
        "expert_size": settings.get(size),
        "normalized_shares": normalized,
        "dense_layers": _dense_layers(settings),
    }


def _dense_layers(settings: Settings) -> tuple[int, ...]:
    """As transformers' Qwen MoE: those listed, and all but each ``decoder_sparse_step``-th."""
    listed, step = settings.get("mlp_only_layers") or [], settings.get("decoder_sparse_step", 1)
    if not isinstance(listed, list) or any(type(i) is not int for i in listed):
        raise FormatError(f"config.json: mlp_only_layers = {quoted(listed)}, expected numbers")
    if type(step) is not int or step < 1:
        raise FormatError(f"config.json: decoder_sparse_step = {quoted(step)}, expected 1 or more")
    layers = range(settings["num_hidden_layers"])
    return tuple(i for i in layers if i in listed or (i + 1) % step)


_SHARED = needs("experts that every token goes to", only(0))
_GROUPS = needs("experts in groups", only(0, 1))
_SCORES = needs("another score of experts than softmax", only("softmax"))


def with_experts(
    family: Family, count: str, honoured: str, metadata: Mapping[str, str]
) -> tuple[Keys, Keys]:
    """The keys of config.json and of GGUF of a family that is ``family`` with experts.

    count: what config.json calls their number; honoured: what it says of them beside; metadata:
    fields of GGUF's own keys beside the two numbers.
    """
    config = family.config.but(
        honoured=f"num_experts num_local_experts num_experts_per_tok {honoured}",
        refused={
            "n_group": _GROUPS,
            "n_shared_experts": _SHARED,
            "num_shared_experts": _SHARED,
            "routed_scaling_factor": needs("scaled shares of experts", only(1.0)),
            "scoring_func": _SCORES,
            "shared_expert_intermediate_size": _SHARED,
            "topk_group": _GROUPS,
        },
    )
    return config, family.metadata.but(
        fields={"expert_count": count, "expert_used_count": "num_experts_per_tok", **metadata},
        refused={
            "expert_gating_func": needs("another score of experts than softmax", only(0, 1)),
            "expert_group_count": _GROUPS,
            "expert_shared_count": _SHARED,
            "expert_shared_feed_forward_length": _SHARED,
            "expert_weights_scale": needs("scaled shares of experts", only(0.0, 1.0)),
            "interleave_moe_layer_step": needs("layers without experts", only(0, 1)),
            "leading_dense_block_count": needs("layers without experts", only(0)),
        },
    )
