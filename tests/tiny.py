"""Random models small enough for a test to train, as a checkpoint source would give them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from edgedb.model.config import ModelConfig, RopeScaling
from edgedb.model.families import program_of

# One of each family, with everything that its program may have: what differs from a plain Llama.
FAMILY_CHANGES: dict[str, dict[str, Any]] = {
    "granite": {},
    "llama": {
        "attention_bias": True,
        "mlp_bias": True,
        "rope_scaling": RopeScaling(
            "yarn", 4.0, original_max_position_embeddings=16, attention_factor=1.1
        ),
    },
    "mistral": {"sliding_window": 5},
    "qwen2": {"sliding_window": 5, "windowed_layers": (1,)},
    "qwen3": {},
}


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
        n, cols = program_of(self.config).matrices()[name]
        scale = 0.3 if name in ("embedding", "head") else cols**-0.5
        return rng.normal(0, scale, (n, cols)).astype(np.float32)[rows or slice(None)]


def family_source(name: str, **changes: Any) -> TinySource:
    """A tiny model of a family."""
    return TinySource(model_type=name, **FAMILY_CHANGES[name], **changes)
