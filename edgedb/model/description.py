"""A model's pass in plain words: what it has that a plain Llama has not.

Read off its program: a family is told by what it does, not by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any

from ..ops.program import Block, Program
from ..ops.values import Value
from .config import ModelConfig
from .families import FAMILIES, program_of

_NORMS = ("rms_norm", "layer_norm")
_NAMES = {"silu": "SiLU", "gelu": "GELU", "gelu_tanh": "GELU (tanh)", "relu": "ReLU"}


def describe(config: ModelConfig) -> str:
    """Whose pass it is, and a phrase for each thing that a plain Llama has not."""
    found = ", ".join(phrases(config)) or "as a plain Llama"
    return f"{FAMILIES[config.model_type].models}: {found}"


def phrases(config: ModelConfig) -> list[str]:
    """What the pass has beside a plain Llama's; nothing for one."""
    program = program_of(config)
    parts = (_positions, _attention, _norms, _feed_forward, _biases, _logits)
    return [phrase for part in parts for phrase in part(config, program)]


def where(layers: Collection[int], n_layers: int) -> str:
    """``in every other layer``, for those who would count."""
    if len(layers) == n_layers:
        return "in every layer"
    for period in range(2, n_layers // 2 + 1):
        patterns = [set(range(first, n_layers, period)) for first in range(period)]
        if set(layers) in patterns:
            return f"in every {_ordinal(period)} layer"
        if set(range(n_layers)) - set(layers) in patterns:
            return f"in all but every {_ordinal(period)} layer"
    return f"in {len(layers)} of {n_layers} layers"


def _ordinal(number: int) -> str:
    words = {2: "other", 3: "third", 4: "fourth", 5: "fifth", 6: "sixth"}
    return words.get(number, f"{number}th")


def _layers(program: Program, has: Callable[[Value], object]) -> set[int]:
    """The layers with an operation that ``has`` it."""
    kinds = [any(has(value) for value in kind.operations) for kind in program.kinds]
    return {i for i, kind in enumerate(program.layers) if kinds[kind]}


def _told(program: Program, name: str) -> set[Any]:
    """What the layers' attention has as ``name``."""
    return {value.attributes.get(name) for value in program.attentions()} - {None}


def _positions(c: ModelConfig, program: Program) -> Iterator[str]:
    turning = _layers(program, lambda value: value.op == "rope")
    learned = any(value.op == "position" for value in program.first.operations)
    if learned:
        yield "learned positions"
    if _told(program, "slopes"):
        yield "scores that fall with the distance (ALiBi)"
    if not turning:
        return
    if len(turning) < c.n_layers:
        yield f"no rotary embedding {where(set(range(c.n_layers)) - turning, c.n_layers)}"
    if c.rotary_dim not in (None, c.head_dim):
        yield f"{c.rotary_dim} of {c.head_dim} channels of a head turned"
    if c.rope_scaling.type != "default":
        yield f"angles scaled for long contexts ({c.rope_scaling.type})"
    if c.windowed_rope is not None:
        yield f"theta {c.windowed_rope.theta:,g} in layers with a window, else {c.rope_theta:,g}"
    if c.query_growth is not None:
        yield "queries that grow with their position"


def _attention(c: ModelConfig, program: Program) -> Iterator[str]:
    windows = [value["window"] for value in program.attentions()]
    for window in sorted({window for window in windows if window is not None}):
        layers = [i for i, one in enumerate(windows) if one == window]
        yield f"a window of {window:,} tokens {where(layers, c.n_layers)}"
    for cap in sorted(_told(program, "cap")):
        yield f"scores softly capped at {cap:g}"
    if any(value.attributes.get("sinks") for value in program.attentions()):
        yield "a sink in the softmax of each head"


def _norms(c: ModelConfig, program: Program) -> Iterator[str]:
    norms = [value for block in program.kinds for value in block.operations if value.op in _NORMS]
    if any(value.op == "layer_norm" for value in norms):
        yield "norms that take the mean away"
    of_heads = {value["heads"] > 1 for value in norms if value.args[0].op == "slice"}
    if of_heads:
        yield f"norms of {'the heads of' if True in of_heads else 'whole'} queries and keys"
    if any(value["weight"].endswith("_post_norm") for value in norms):
        before = any(value["weight"] == "attn_norm" for value in norms)
        yield f"norms behind attention and feed-forward{'' if before else ', none before'}"
    if c.norms_behind:
        yield "norms of the stream, behind each addition, and none before the head"
    if any(value.op in _NORMS for value in program.first.operations):
        yield "a norm of the embedding"


def _feed_forward(c: ModelConfig, program: Program) -> Iterator[str]:
    operations = [value for block in program.kinds for value in block.operations]
    gated = any(value.op == "mul" for value in operations)
    for name, text in _NAMES.items():
        if any(value.op == name for value in operations) and (name != "silu" or not gated):
            yield f"{text} as gate" if gated else f"{text} without a gate"
    if any(value.op == "clamped_gate" for value in operations):
        yield "clamped gates"
    for n_experts, chosen in sorted(
        {(value.width, value["chosen"]) for value in operations if value.op == "route"}
    ):
        layers = _layers(program, lambda value: value.op == "route")
        yield f"{n_experts} experts {where(layers, c.n_layers)}, {chosen} of them for a token"
    if any(map(_is_parallel, program.kinds)):
        yield "attention and feed-forward side by side"


def _is_parallel(layer: Block) -> bool:
    """Whether a product neither feeds attention nor reads what it gives."""
    (attention,) = (value for value in layer.operations if value.op == "attention")
    before = Block(attention).operations
    return any(
        value.op == "linear" and value not in before and attention not in Block(value).operations
        for value in layer.operations
    )


def _biases(c: ModelConfig, program: Program) -> Iterator[str]:
    products = {name for block in program.kinds for name in block.matrices}
    biased = {name for name in products if any(f"{name}.bias" in b.vectors for b in program.kinds)}
    if biased == products:
        yield "biases in all products"
    elif biased == {"attn_qkv"}:
        yield "biases of queries, keys and values"
    elif biased:
        attention = {name for name in biased if name.startswith("attn_")}
        parts = [("attention", attention), ("feed-forward", biased - attention)]
        yield f"biases in {' and '.join(name for name, found in parts if found)}"


def _logits(c: ModelConfig, program: Program) -> Iterator[str]:
    if program.head.vectors:
        yield "a bias of the logits"
    for value in program.head.operations:
        if value.op == "softcap":
            yield f"logits softly capped at {value['cap']:g}"
