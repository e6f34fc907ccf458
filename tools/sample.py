"""Text sampled from the teacher itself, for a calibration that needs no data.

Runs on the runtime's kernels with 8-bit weights, many texts side by side: close enough to the
teacher for text, and on two cores many times faster than float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgedb import ops
from edgedb.config import ModelConfig
from edgedb.errors import FormatError, TemplateError
from edgedb.kvcache import KVCache
from edgedb.packing import pack_int8, quantize_int8
from edgedb.rope import rope_tables
from edgedb.template import render
from edgedb.tokenizer import TokenizerSpec, load_tokenizer

from .forward import softmax
from .sources import Source

Float32 = NDArray[np.float32]
Ids = NDArray[np.int32]

# The 8-bit copy of the model is held in memory while it writes.
MAX_SAMPLED_WEIGHTS = 1 << 30

_EMPTY_TURN = "\x00"


def can_sample(config: ModelConfig) -> bool:
    """Whether the model is small enough for ``from_teacher``."""
    return sum(rows * cols for rows, cols in config.linear_shapes().values()) <= MAX_SAMPLED_WEIGHTS


def from_teacher(
    source: Source,
    sequences: int,
    length: int,
    seed: int,
    progress: Callable[[int], None] = lambda done: None,
) -> Ids:
    """``ids [sequences, length]``: texts sampled together at temperature 1.

    The first half follows the chat template's start of a user turn (the model asks and answers
    itself), the second half starts as documents do: with BOS where there is one, and any token.
    ``progress`` is told the tokens of each text so far.
    """
    config, spec = source.config, source.tokenizer_spec
    random = np.random.default_rng(seed)
    ids = np.zeros((sequences, length), np.int32)
    given = np.ones(sequences, int)
    ids[:, 0] = random.integers(0, config.vocab_size, sequences)
    if spec.add_bos and spec.bos_id is not None:
        ids[:, 1], ids[:, 0] = ids[:, 0], spec.bos_id
        given += 1
    if lead := _lead_tokens(spec)[: length - 1]:
        ids[: sequences // 2, : len(lead)] = lead
        given[: sequences // 2] = len(lead)
    writer = _Writer(source, sequences, length)
    for position in range(length - 1):
        logits = writer.step(ids[:, position], position)
        chosen = _draw(softmax(logits), random.random(sequences))
        sampled = position + 1 >= given
        ids[sampled, position + 1] = chosen[sampled]
        progress(position + 2)
    return ids


def _draw(probabilities: Float32, uniform: NDArray[np.float64]) -> NDArray[np.int64]:
    """One index for each row of ``probabilities [n, vocab]``, by inverting its running sum."""
    running = np.cumsum(probabilities, axis=1, dtype=np.float64)
    chosen = [
        np.searchsorted(row, u * row[-1], side="right")
        for row, u in zip(running, uniform, strict=True)
    ]
    return np.minimum(chosen, probabilities.shape[1] - 1)


def _lead_tokens(spec: TokenizerSpec) -> list[int]:
    """The chat template up to where the user's first words would stand; [] without a template."""
    if not spec.chat_template:
        return []
    messages = [{"role": "user", "content": _EMPTY_TURN}]
    try:
        text = render(spec, messages, add_generation_prompt=False).partition(_EMPTY_TURN)[0]
    except TemplateError:
        return []
    return load_tokenizer(spec).encode(text, add_bos=False, special=True)


class _Writer:
    """Reads a token of each text at a time: matrices for all at once, attention one by one."""

    def __init__(self, source: Source, n: int, length: int) -> None:
        config = source.config
        self.config, self.n = config, n
        self.ops = ops.create()
        make, matrix = self.ops.buffer, self._matrix
        self.embedding = matrix(source, "embedding")
        self.head = self.embedding if config.tie_word_embeddings else matrix(source, "head")
        self.layers = [
            {
                kind: matrix(source, f"layers.{i}.{kind}")
                for kind in ("attn_qkv", "attn_out", "mlp_gate_up", "mlp_down")
            }
            | {
                kind: self.ops.wrap(source.tensor(f"layers.{i}.{kind}"))
                for kind in ("attn_norm", "mlp_norm")
            }
            for i in range(config.n_layers)
        ]
        self.final_norm = self.ops.wrap(source.tensor("final_norm"))
        self.cos, self.sin = (self.ops.wrap(table) for table in rope_tables(config, length))
        self.caches = [KVCache(config, self.ops, length) for _ in range(n)]
        self.ids = make((n,), np.int32)
        self.x, self.xb = make((n, config.hidden_size)), make((n, config.hidden_size))
        self.qkv, self.att = make((n, config.qkv_size)), make((n, config.q_size))
        self.gate_up = make((n, 2 * config.intermediate_size))
        self.hidden = make((n, config.intermediate_size))
        self.logits = make((n, config.vocab_size))
        self.rows = [
            (self.ops.wrap(self.qkv.array[i : i + 1]), self.ops.wrap(self.att.array[i : i + 1]))
            for i in range(n)
        ]

    def _matrix(self, source: Source, name: str) -> Any:
        try:
            return self.ops.matrix(pack_int8(*quantize_int8(source.tensor(name))))
        except ValueError as error:
            raise FormatError(f"{name}: {error}") from None

    def step(self, ids: Ids, position: int) -> Float32:
        """Logits ``[n, vocab]`` after ``ids [n]`` at ``position``; the next call overwrites."""
        op, n, eps = self.ops, self.n, self.config.norm_eps
        self.ids.array[:] = ids
        op.embed(self.embedding, self.ids, self.x, n)
        for i, layer in enumerate(self.layers):
            op.rmsnorm(self.x, layer["attn_norm"], self.xb, n, eps)
            op.matmul(layer["attn_qkv"], self.xb, self.qkv, n)
            for (qkv, att), cache in zip(self.rows, self.caches, strict=True):
                k, v = cache.layers[i]
                op.rope(qkv, self.cos, self.sin, k, v, 1, position, cache.shape)
                op.attention(qkv, k, v, att, 1, position, cache.shape)
            op.matmul(layer["attn_out"], self.att, self.x, n, add=True)
            op.rmsnorm(self.x, layer["mlp_norm"], self.xb, n, eps)
            op.matmul(layer["mlp_gate_up"], self.xb, self.gate_up, n)
            op.swiglu(self.gate_up, self.hidden, n)
            op.matmul(layer["mlp_down"], self.hidden, self.x, n, add=True)
        op.rmsnorm(self.x, self.final_norm, self.xb, n, eps)
        op.matmul(self.head, self.xb, self.logits, n)
        return self.logits.array
