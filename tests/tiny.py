"""Random models small enough for a test to train, as a checkpoint source would give them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from edgedb.convert.calibrate import embedded
from edgedb.convert.forward import Float32Program
from edgedb.format.tensors import DenseTensor, Experts, Weight
from edgedb.model.config import ModelConfig
from edgedb.model.families import program_of
from edgedb.model.rotary import Rope, RopeScaling
from edgedb.ops.values import Growth

_EXPERTS = {"n_experts": 5, "experts_per_token": 2, "expert_size": 36}

# One of each family, with everything that its program may have: what differs from a plain Llama.
FAMILY_CHANGES: dict[str, dict[str, Any]] = {
    "bloom": {"n_kv_heads": 4},
    "cohere2": {"sliding_window": 5, "windowed_layers": (1,), "unrotated_layers": (0,)},
    "gpt_neox": {
        "n_kv_heads": 4,
        "attention_bias": True,
        "parallel": True,
        "rotary_dim": 4,
    },
    "gpt2": {"n_kv_heads": 4, "activation": "gelu"},
    "gpt_oss": {
        **_EXPERTS,
        "normalized_shares": True,
        "gate_limit": 0.5,
        "sliding_window": 5,
        "windowed_layers": (0,),
    },
    "gemma": {},
    "gemma2": {
        "sliding_window": 5,
        "windowed_layers": (0,),
        "score_cap": 2.0,
        "logit_cap": 8.0,
        "activation": "gelu",
    },
    "gemma3_text": {
        "sliding_window": 5,
        "windowed_layers": (1,),
        "windowed_rope": Rope(300.0, RopeScaling("linear", 2.0)),
    },
    "falcon": {"parallel": True, "attention_bias": True, "mlp_bias": True},
    "gptj": {"n_kv_heads": 4, "rotary_dim": 8},
    "granite": {},
    "llama": {
        "attention_bias": True,
        "mlp_bias": True,
        "rope_scaling": RopeScaling(
            "yarn", 4.0, original_max_position_embeddings=16, attention_factor=1.1
        ),
    },
    "ministral3": {"sliding_window": 9, "query_growth": Growth(0.4, 3)},
    "mistral": {"sliding_window": 5},
    "mixtral": {**_EXPERTS, "normalized_shares": True, "sliding_window": 5},
    "olmo2": {"attention_bias": True},
    "olmo3": {
        "sliding_window": 5,
        "windowed_layers": (0,),
        "windowed_rope": Rope(1e4),
        "rope_scaling": RopeScaling("linear", 2.0),
    },
    "olmoe": _EXPERTS,
    "opt": {"n_kv_heads": 4, "norms_behind": True},
    "phi": {"n_kv_heads": 4, "rotary_dim": 8},
    "phi3": {
        "sliding_window": 7,
        "rotary_dim": 12,
        "rope_scaling": RopeScaling(
            "longrope",
            attention_factor=1.2,
            original_max_position_embeddings=128,
            short_factors=(1.0, 1.1, 1.2, 1.3, 1.4, 1.5),
            long_factors=(1.0, 2.0, 3.0, 4.0, 5.0, 6.0),
        ),
    },
    "qwen2": {"sliding_window": 5, "windowed_layers": (1,)},
    "qwen3": {},
    "qwen3_moe": {**_EXPERTS, "normalized_shares": True, "dense_layers": (0,)},
    "smollm3": {"attention_bias": True, "unrotated_layers": (1,)},
    "stablelm": {"attention_bias": True, "rotary_dim": 4},
    "starcoder2": {"attention_bias": True, "mlp_bias": True, "sliding_window": 7},
}
# Experts are refused by name there.
TRAINED = [name for name, changes in FAMILY_CHANGES.items() if "n_experts" not in changes]


class TinySource:
    """Random weights of a two-layer model whose columns are no multiple of 64 everywhere.

    changes: other values of its ``config``.
    """

    def __init__(
        self, *, tied: bool = True, vocab_size: int = 96, seed: int = 0, **changes: Any
    ) -> None:
        config = ModelConfig(
            model_type="llama",
            vocab_size=vocab_size,
            hidden_size=64,
            intermediate_size=100,
            n_layers=2,
            n_heads=4,
            n_kv_heads=2,
            head_dim=16,
            max_position_embeddings=256,
            tie_word_embeddings=tied,
        )
        self.config = replace(config, **changes).checked()
        self.seed = seed

    def tensor(self, name: str, rows: slice | None = None) -> np.ndarray:
        """float32, the same for the same name and seed; of a matrix, ``rows`` of it."""
        rng = np.random.default_rng((self.seed, *name.encode()))
        if name in program_of(self.config).vectors():
            return rng.uniform(0.5, 1.5, program_of(self.config).vectors()[name]).astype(np.float32)
        if count := program_of(self.config).stacks().get(name):
            return np.stack([self.expert(name, i) for i in range(count)])
        n, cols = program_of(self.config).matrices()[name]
        scale = 0.3 if name in ("embedding", "head") else cols**-0.5
        return rng.normal(0, scale, (n, cols)).astype(np.float32)[rows or slice(None)]

    def expert(self, name: str, expert: int) -> np.ndarray:
        """One matrix of a stack."""
        rng = np.random.default_rng((self.seed, expert, *name.encode()))
        rows, cols = program_of(self.config).matrices()[name]
        return rng.normal(0, cols**-0.5, (rows, cols)).astype(np.float32)


def family_source(name: str, **changes: Any) -> TinySource:
    """A tiny model of a family."""
    return TinySource(model_type=name, **FAMILY_CHANGES[name], **changes)


def plain_weights(source: Any) -> tuple[dict[str, Weight], dict[str, np.ndarray]]:
    """Matrices and vectors of a source as they are, in float32."""
    program = program_of(source.config)
    stacks = program.stacks()
    linears: dict[str, Weight] = {}
    for name, shape in program.matrices().items():
        plain = source.tensor(name)
        of_experts = Experts((plain,), *shape, "float32")
        linears[name] = of_experts if name in stacks else DenseTensor(plain)
    return linears, {name: source.tensor(name) for name in program.vectors()}


class Changed(TinySource):
    """With ``change`` added to a matrix."""

    def __init__(self, name: str = "", change: np.ndarray | float = 0.0, **more: bool) -> None:
        super().__init__(**more)
        self.name, self.change = name, change

    def tensor(self, name: str, rows: slice | None = None) -> np.ndarray:
        found = super().tensor(name)
        return (found + (self.change if name == self.name else 0))[rows or slice(None)]


def log_probabilities(source: TinySource, ids: np.ndarray) -> np.ndarray:
    """``[sequences, tokens, vocabulary]`` in float64."""
    program = program_of(source.config)
    forward = Float32Program(program, ids.shape[1])
    x = embedded(source, ids).astype(np.float64)
    for i, kind in enumerate(program.layers):
        block = program.kinds[kind]
        vectors = {n: source.tensor(f"layers.{i}.{n}") for n in block.vectors}
        weights = {n: source.tensor(f"layers.{i}.{n}") for n in block.matrices}
        x = forward.values(block, x, vectors, weights)[block.output]
    vectors = {n: source.tensor(n) for n in program.final.vectors}
    last = forward.values(program.final, x, vectors, {})[program.final.output]
    vectors = {n: source.tensor(n) for n in program.head.vectors}
    weights = {n: source.tensor(n) for n in program.head.matrices}
    logits = forward.values(program.head, last, vectors, weights)[program.head.output]
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def ids_of(source: TinySource, sequences: int, tokens: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, source.config.vocab_size, (sequences, tokens), dtype=np.int32)
