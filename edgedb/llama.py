"""The forward pass of a Llama-family decoder, from token ids to logits.

Three things, as in the mathematics: what the model knows (``Llama``), what it is doing now
(``RunState``), what it has read (``KVCache``). The arithmetic lives in ``ops``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from .config import MAX_BATCH, ModelConfig
from .head import Needed, TwoStageHead
from .kvcache import KVCache
from .ops import AttentionShape, Ops
from .ops.buffer import Buffer
from .rope import RopeTables
from .tensors import LinearTensor

LogitsWanted = Literal["last", "all"] | Needed


@dataclass(frozen=True)
class Layer:
    """Weights of one decoder layer, prepared for the backend."""

    attn_norm: Buffer  # (hidden,)
    attn_qkv: Any  # matrix (q + k + v, hidden)
    attn_out: Any  # matrix (hidden, q)
    mlp_norm: Buffer  # (hidden,)
    mlp_gate_up: Any  # matrix (2 * intermediate, hidden)
    mlp_down: Any  # matrix (hidden, intermediate)
    fused: Any = None  # all of it as one call of the backend takes it, where it has one


class RunState:
    """Scratch of one running sequence: every buffer of a forward pass, allocated once."""

    def __init__(self, config: ModelConfig, ops: Ops) -> None:
        n = MAX_BATCH
        self.ids = ops.buffer((n,), np.int32)
        self.x = ops.buffer((n, config.hidden_size))  # residual stream
        self.xb = ops.buffer((n, config.hidden_size))  # the same, normalized
        self.qkv = ops.buffer((n, config.qkv_size))
        self.att = ops.buffer((n, config.q_size))  # heads' outputs, side by side
        self.gate_up = ops.buffer((n, 2 * config.intermediate_size))
        self.hidden = ops.buffer((n, config.intermediate_size))
        self.logits = ops.buffer((1, config.vocab_size))
        self.logits_batch: Buffer | None = None  # (n, vocab), only where all are asked for
        self.fused = ops.fuse_buffers(self.x, self.qkv, self.att, self.gate_up)

    @property
    def size_bytes(self) -> int:
        """Bytes of all buffers."""
        buffers = (value for value in vars(self).values() if isinstance(value, Buffer))
        return sum(buffer.array.nbytes for buffer in buffers)


class Llama:
    """Weights bound to a backend. Immutable: sessions on several threads share one."""

    def __init__(
        self,
        config: ModelConfig,
        linears: Mapping[str, LinearTensor],
        norms: Mapping[str, np.ndarray],
        ops: Ops,
        context: int,
    ) -> None:
        self.config = config
        self.ops = ops
        self.context = context  # positions that the rotary tables cover
        self._rope = RopeTables(config, context)
        self.cos, self.sin = ops.wrap(self._rope.cos), ops.wrap(self._rope.sin)
        self.embedding = ops.matrix(linears["embedding"])
        self.head = self.embedding if config.tie_word_embeddings else ops.matrix(linears["head"])
        self.two_stage: TwoStageHead | None = None  # reads of the head what a sampler looks at
        self.final_norm = ops.wrap(norms["final_norm"])
        self.layers = [self._layer(f"layers.{i}", linears, norms) for i in range(config.n_layers)]

    def _layer(
        self, name: str, linears: Mapping[str, LinearTensor], norms: Mapping[str, np.ndarray]
    ) -> Layer:
        layer = Layer(
            attn_norm=self.ops.wrap(norms[f"{name}.attn_norm"]),
            attn_qkv=self.ops.matrix(linears[f"{name}.attn_qkv"]),
            attn_out=self.ops.matrix(linears[f"{name}.attn_out"]),
            mlp_norm=self.ops.wrap(norms[f"{name}.mlp_norm"]),
            mlp_gate_up=self.ops.matrix(linears[f"{name}.mlp_gate_up"]),
            mlp_down=self.ops.matrix(linears[f"{name}.mlp_down"]),
        )
        return replace(
            layer, fused=self.ops.fuse_layer(layer, self.cos, self.sin, self.config.norm_eps)
        )

    def forward(
        self,
        tokens: Sequence[int],
        cache: KVCache,
        state: RunState,
        logits: LogitsWanted | None = "last",
    ) -> np.ndarray | None:
        """Read ``tokens`` (1 to ``MAX_BATCH``) at the cache's end.

        Returns float32 logits of the last token ``(vocab,)``, of all ``(n, vocab)``, or ``None``;
        with ``Needed``, those of the last token with -inf where a two-stage head left some out.
        The array is the state's own buffer: the next call overwrites it. The caller checks that
        ids are in the vocabulary and that the cache has room.
        """
        ops, eps = self.ops, self.config.norm_eps
        n, position = len(tokens), cache.length
        x, xb = state.x, state.xb
        state.ids.array[:n] = tokens
        self._rope.cover(position + n)

        ops.embed(self.embedding, state.ids, x, n)
        for layer, (k_cache, v_cache) in zip(self.layers, cache.layers, strict=True):
            if state.fused is not None:
                ops.fused_layer(
                    layer.fused, state.fused, k_cache, v_cache, n, position, cache.shape
                )
            else:
                self.read_layer(layer, state, k_cache, v_cache, n, position, cache.shape)
        cache.length = position + n

        if logits is None:
            return None
        if logits == "all":
            if state.logits_batch is None:
                state.logits_batch = ops.buffer((MAX_BATCH, self.config.vocab_size))
            ops.rmsnorm(x, self.final_norm, xb, n, eps)
            ops.matmul(self.head, xb, state.logits_batch, n)
            return state.logits_batch.array[:n]
        # The head is half of a small model's bytes: read it for the last token only.
        last = x if n == 1 else ops.wrap(x.array[n - 1 : n])
        ops.rmsnorm(last, self.final_norm, xb, 1, eps)
        if isinstance(logits, Needed) and self.two_stage is not None:
            self.two_stage.logits(xb, state.logits, logits)
        else:
            ops.matmul(self.head, xb, state.logits, 1)
        return state.logits.array[0]

    def hidden(self, tokens: Sequence[int], cache: KVCache, state: RunState) -> np.ndarray:
        """Read ``tokens`` as ``forward`` does; float32 ``(n, hidden)`` after the final norm.

        The array is the state's own buffer: the next call overwrites it.
        """
        n = len(tokens)
        self.forward(tokens, cache, state, logits=None)
        self.ops.rmsnorm(state.x, self.final_norm, state.xb, n, self.config.norm_eps)
        return state.xb.array[:n]

    def read_layer(
        self,
        layer: Layer,
        state: RunState,
        k_cache: Buffer,
        v_cache: Buffer,
        n: int,
        position: int,
        shape: AttentionShape,
    ) -> None:
        """One layer, operation by operation; a backend's fused layer has the same results."""
        ops, eps = self.ops, self.config.norm_eps
        x, xb, qkv, att = state.x, state.xb, state.qkv, state.att

        ops.rmsnorm(x, layer.attn_norm, xb, n, eps)
        ops.matmul(layer.attn_qkv, xb, qkv, n)
        ops.rope(qkv, self.cos, self.sin, k_cache, v_cache, n, position, shape)
        ops.attention(qkv, k_cache, v_cache, att, n, position, shape)
        ops.matmul(layer.attn_out, att, x, n, add=True)

        ops.rmsnorm(x, layer.mlp_norm, xb, n, eps)
        ops.matmul(layer.mlp_gate_up, xb, state.gate_up, n)
        ops.swiglu(state.gate_up, state.hidden, n)
        ops.matmul(layer.mlp_down, state.hidden, x, n, add=True)
