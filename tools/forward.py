"""The forward pass in plain numpy over many tokens at once, one layer's float32 weights at a time.

The runtime's forward (``edgedb.llama``) keeps a whole model and quantizes activations; the exporter
needs the opposite: float32 arithmetic, thousands of tokens, and the inputs of every matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from edgedb.config import ModelConfig
from edgedb.rope import rope_tables

Float32 = NDArray[np.float32]

# Called before each matrix of a layer with its kind ("attn_qkv", ...) and its input
# [tokens, cols]; returns the weight [rows, cols] to multiply with.
WeightAt = Callable[[str, Float32], Float32]


# Tokens whose gate and up activations exist at one time: they are the widest of all.
_CHUNK_TOKENS = 512


def rms_norm(x: Float32, weight: Float32, eps: float) -> Float32:
    """``x / rms(x) * weight`` along the last axis."""
    mean_square = np.einsum("...i,...i->...", x, x)[..., None] / np.float32(x.shape[-1])
    return x / np.sqrt(mean_square + np.float32(eps)) * weight


class Decoder:
    """A decoder layer applied to ``[sequences, tokens, hidden]``; weights come from the caller."""

    def __init__(self, config: ModelConfig, length: int) -> None:
        self.config = config
        cos, sin = rope_tables(config, length)  # [length, head_dim / 2]
        self._cos, self._sin = np.asarray(cos), np.asarray(sin)

    def layer(self, x: Float32, norms: Mapping[str, Float32], weight_at: WeightAt) -> None:
        """Add one layer's output to ``x [sequences, tokens, hidden]``, in place."""
        eps = self.config.norm_eps
        flat = x.reshape(-1, x.shape[-1])
        h = rms_norm(flat, norms["attn_norm"], eps)
        qkv = h @ weight_at("attn_qkv", h).T
        att = self._attention(qkv.reshape(*x.shape[:2], -1)).reshape(len(flat), -1)
        del qkv
        flat += att @ weight_at("attn_out", att).T
        h = rms_norm(flat, norms["mlp_norm"], eps)
        weight = weight_at("mlp_gate_up", h).T
        hidden = np.empty((len(h), self.config.intermediate_size), np.float32)
        for start in range(0, len(h), _CHUNK_TOKENS):
            part = slice(start, start + _CHUNK_TOKENS)
            hidden[part] = swiglu(h[part] @ weight)
        flat += hidden @ weight_at("mlp_down", hidden).T

    def rotate(self, heads: Float32) -> Float32:
        """Rotary embedding of ``[..., tokens, head_dim]`` from position 0 on."""
        n = heads.shape[-2]
        half = heads.shape[-1] // 2
        cos, sin = self._cos[:n], self._sin[:n]
        first, second = heads[..., :half], heads[..., half:]
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)

    def split_heads(self, qkv: Float32) -> tuple[Float32, Float32, Float32]:
        """``[tokens, q + 2 kv]`` -> q ``[kv heads, group, tokens, dim]``, k, v ``[kv heads, tokens,
        dim]``.
        """
        config = self.config
        n, dim, n_kv = len(qkv), config.head_dim, config.n_kv_heads
        q = qkv[:, : config.q_size].reshape(n, n_kv, -1, dim).transpose(1, 2, 0, 3)
        k, v = qkv[:, config.q_size :].reshape(n, 2, n_kv, dim).transpose(1, 2, 0, 3)
        return q, k, v

    def _attention(self, qkv: Float32) -> Float32:
        """Causal attention, one sequence and one key/value head at a time; ``[s, t, q_size]``."""
        n_sequences, n, _ = qkv.shape
        config = self.config
        out = np.empty((n_sequences, n, config.q_size), np.float32)
        future = np.triu(np.full((n, n), -np.inf, np.float32), 1)
        for sequence, rows in enumerate(qkv):
            q, k, v = self.split_heads(rows)
            q, k = self.rotate(q), self.rotate(k)
            mixed = np.empty(q.shape, np.float32)
            for head in range(config.n_kv_heads):
                scores = q[head] @ (k[head].T * np.float32(config.head_dim**-0.5))
                scores += future
                mixed[head] = softmax(scores) @ v[head]
            out[sequence] = mixed.transpose(2, 0, 1, 3).reshape(n, -1)
        return out


def swiglu(gate_up: Float32) -> Float32:
    """``silu(gate) * up``, gate being the first half of the last axis."""
    gate, up = np.split(gate_up, 2, axis=-1)
    with np.errstate(over="ignore"):  # exp(-gate) may overflow to infinity: silu is then 0
        out: Float32 = gate / (1 + np.exp(-gate)) * up
    return out


def softmax(scores: Float32) -> Float32:
    """Softmax along the last axis, in place."""
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    return scores
