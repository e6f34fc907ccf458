"""How checkpoints lay tensors out that edgedb has in another order, one place for all of it.

A layout speaks of one tensor under edgedb's name, its bias included: what shape it is stored in,
and how what was read becomes what the pass wants.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...model.config import ModelConfig

Float32 = NDArray[np.float32]
Shape = tuple[int, ...]


class Layout(ABC):
    """Of a matrix ``[rows, cols]``, its bias ``[rows]``, or a norm."""

    def stored(self, shape: Shape) -> Shape:
        """The shape in the checkpoint of what the pass has in ``shape``."""
        return shape

    @abstractmethod
    def read(self, stored: Float32, config: ModelConfig) -> Float32:
        """What the pass wants, from what is stored."""


class Transposed(Layout):
    """``[in, out]``, as GPT-2's Conv1D has its weights."""

    def stored(self, shape: Shape) -> Shape:
        return shape[::-1]

    def read(self, stored: Float32, config: ModelConfig) -> Float32:
        return np.ascontiguousarray(stored.T)


@dataclass(frozen=True)
class Behind(Layout):
    """Behind ``rows`` rows that no token reads (OPT's positions begin at 2)."""

    rows: int

    def stored(self, shape: Shape) -> Shape:
        return (shape[0] + self.rows, *shape[1:])

    def read(self, stored: Float32, config: ModelConfig) -> Float32:
        return stored[self.rows :]


class ByHead(Layout):
    """q, k and v of one key/value head after the other: the queries that share it, it, its values.
    So GPT-NeoX, BLOOM (where every query has a key of its own) and Falcon."""

    def read(self, stored: Float32, config: ModelConfig) -> Float32:
        shared = config.n_heads // config.n_kv_heads
        rows = stored.reshape(config.n_kv_heads, shared + 2, config.head_dim, *stored.shape[1:])
        parts = (rows[:, :shared], rows[:, shared], rows[:, shared + 1])
        return np.concatenate([part.reshape(-1, *stored.shape[1:]) for part in parts])


class Neighbours(Layout):
    """q, k, v of a rotary embedding that turns channels 2i and 2i + 1 of a head: of those that turn
    the even ones come first here, then the odd ones. A score does not see the order of channels, as
    long as q and k have the same."""

    def read(self, stored: Float32, config: ModelConfig) -> Float32:
        n = config.q_size + config.kv_size
        heads = stored[:n].reshape(n // config.head_dim, config.head_dim, *stored.shape[1:])
        dim = config.rotary_dim or config.head_dim
        parts = (heads[:, :dim:2], heads[:, 1:dim:2], heads[:, dim:])
        turned = np.concatenate(parts, axis=1)
        return np.concatenate([turned.reshape(n, *stored.shape[1:]), stored[n:]])


@dataclass(frozen=True)
class Alternating(Layout):
    """Rows of gate and of up in turn, where edgedb has all gates and then all ups; ``transposed``:
    they are columns. So gpt-oss."""

    transposed: bool = False

    def stored(self, shape: Shape) -> Shape:
        return shape[::-1] if self.transposed else shape

    def read(self, stored: Float32, config: ModelConfig) -> Float32:
        rows = stored.T if self.transposed else stored
        return np.ascontiguousarray(np.concatenate([rows[::2], rows[1::2]]))


class LessOne(Layout):
    """A norm's weights, less 1."""

    def read(self, stored: Float32, config: ModelConfig) -> Float32:
        return stored + np.float32(1)


Layouts = Mapping[str, Layout]  # by edgedb's name, without layer

_NORMS = ("attn_norm", "attn_post_norm", "mlp_norm", "mlp_post_norm", "q_norm", "k_norm")
_GEMMA = dict.fromkeys((*_NORMS, "final_norm"), LessOne())

# model_type -> layouts in Hugging Face's safetensors
HUGGING_FACE: Mapping[str, Layouts] = {
    "gpt_oss": {"experts_gate_up": Alternating(transposed=True), "experts_down": Transposed()},
    "bloom": {"attn_qkv": ByHead()},
    "cohere2": {"attn_qkv": Neighbours()},
    "falcon": {"attn_qkv": ByHead()},
    "gpt_neox": {"attn_qkv": ByHead()},
    "gemma": _GEMMA,
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "gptj": {"attn_qkv": Neighbours()},
    "gpt2": dict.fromkeys(("attn_qkv", "attn_out", "mlp_up", "mlp_down"), Transposed()),
    "opt": {"positions": Behind(2)},
}

# model_type -> layouts in GGUF
GGUF: Mapping[str, Layouts] = {"cohere2": {"attn_qkv": Neighbours()}}
