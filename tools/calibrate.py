"""Calibration: a little text, and what each matrix sees of it.

By default the text comes from the teacher itself (data-free, as in DB-LLM): sampled at temperature
1, half of it as answers to the chat template's empty user turn. Layers are visited in order with
all their tokens at once, and each sees the activations that the layers before it, already
quantized, really produce.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgedb.config import ModelConfig
from edgedb.errors import EdgeDBError, TemplateError
from edgedb.template import render
from edgedb.tokenizer import TokenizerSpec, load_tokenizer

from .feedback import panels
from .forward import Decoder, rms_norm, softmax, swiglu
from .sources import Source

Float32 = NDArray[np.float32]
Ids = NDArray[np.int32]

# Sampling keeps the whole model in float32; a larger one needs a text.
MAX_SAMPLED_BYTES = 2 << 30

_EMPTY_TURN = "\x00"


@dataclass(frozen=True)
class Calibration:
    """``ids [sequences, tokens]`` int32 and a JSON record of where they come from."""

    ids: Ids
    record: dict[str, Any] = field(default_factory=dict)


def from_text(file: Path, spec: TokenizerSpec, sequences: int, length: int) -> Calibration:
    """Windows of ``length`` tokens spread evenly over a text file.

    Raises ``EdgeDBError`` when the file cannot be read or holds less than one window.
    """
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise EdgeDBError(f"{file}: {error.strerror}") from None
    ids = np.array(load_tokenizer(spec).encode(text, add_bos=False), np.int32)
    lead = [spec.bos_id] if spec.add_bos and spec.bos_id is not None else []
    step = length - len(lead)
    count = min(sequences, len(ids) // step)
    if not count:
        raise EdgeDBError(f"{file}: {len(ids)} tokens are too few to calibrate with, {step} needed")
    starts = np.linspace(0, len(ids) - step, count).astype(int)
    windows = np.stack([np.concatenate([lead, ids[s : s + step]]) for s in starts])
    record = {"kind": "text", "file": file.name, "tokens": int(windows.size)}
    return Calibration(windows.astype(np.int32), record)


def can_sample(config: ModelConfig) -> bool:
    """Whether the model is small enough for ``from_teacher``."""
    n_weights = sum(rows * cols for rows, cols in config.linear_shapes().values())
    return 4 * n_weights <= MAX_SAMPLED_BYTES


def from_teacher(
    source: Source,
    sequences: int,
    length: int,
    seed: int,
    progress: Callable[[int], None] = lambda done: None,
) -> Calibration:
    """``sequences`` texts of ``length`` tokens, sampled together at temperature 1.

    ``progress`` is told the tokens of each text so far. Memory: the model in float32.
    """
    config, spec = source.config, source.tokenizer_spec
    random = np.random.default_rng(seed)
    ids = np.zeros((sequences, length), np.int32)
    lead = _lead_tokens(spec)
    # Texts of the second half begin as documents do: with BOS where there is one, and any token.
    given = np.ones(sequences, int)
    ids[:, 0] = random.integers(0, config.vocab_size, sequences)
    if spec.add_bos and spec.bos_id is not None:
        ids[:, 1], ids[:, 0] = ids[:, 0], spec.bos_id
        given += 1
    if lead:
        n = min(len(lead), length - 1)
        ids[: sequences // 2, :n] = lead[:n]
        given[: sequences // 2] = n
    sampler = _BatchDecoder(source, sequences, length)
    for position in range(length - 1):
        logits = sampler.step(ids[:, position], position)
        chosen = _draw(softmax(logits), random.random(sequences))
        sampled = position + 1 >= given
        ids[sampled, position + 1] = chosen[sampled]
        progress(position + 2)
    record = {"kind": "sampled from the teacher", "seed": seed, "tokens": int(ids.size)}
    return Calibration(ids, record)


def _draw(probabilities: Float32, uniform: NDArray[np.float64]) -> NDArray[np.int64]:
    """One index for each row of ``probabilities [n, vocab]``, by inverting its running sum."""
    running = np.cumsum(probabilities, axis=1, dtype=np.float64)
    return (running < uniform[:, None] * running[:, -1:]).sum(axis=1)


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


class _BatchDecoder:
    """One token at a time for many texts, float32, all weights in memory."""

    def __init__(self, source: Source, sequences: int, length: int) -> None:
        config = source.config
        self.config = config
        self.decoder = Decoder(config, length)
        self.norms = {name: source.tensor(name) for name in config.norm_shapes()}
        self.linears = {name: source.tensor(name) for name in config.linear_shapes()}
        self.head = self.linears.get("head", self.linears["embedding"])
        shape = (config.n_layers, 2, sequences, config.n_kv_heads, length, config.head_dim)
        self.cache = np.zeros(shape, np.float32)

    def step(self, ids: Ids, position: int) -> Float32:
        """Logits ``[sequences, vocab]`` after reading ``ids [sequences]`` at ``position``."""
        config, eps = self.config, self.config.norm_eps
        x = self.linears["embedding"][ids]
        for i in range(config.n_layers):
            w, norm = f"layers.{i}.", f"layers.{i}.attn_norm"
            qkv = rms_norm(x, self.norms[norm], eps) @ self.linears[w + "attn_qkv"].T
            x = x + self._attend(qkv, i, position) @ self.linears[w + "attn_out"].T
            h = rms_norm(x, self.norms[w + "mlp_norm"], eps)
            x = x + swiglu(h @ self.linears[w + "mlp_gate_up"].T) @ self.linears[w + "mlp_down"].T
        out: Float32 = rms_norm(x, self.norms["final_norm"], eps) @ self.head.T
        return out

    def _attend(self, qkv: Float32, layer: int, position: int) -> Float32:
        config = self.config
        # Texts stand in for tokens: [kv heads, ..., texts, dim] with one position for all.
        q, k, v = self.decoder.split_heads(qkv)
        turn = self.decoder.rotate_at
        keys, values = self.cache[layer]  # [texts, kv heads, length, dim]
        keys[:, :, position] = turn(k, position).swapaxes(0, 1)
        values[:, :, position] = v.swapaxes(0, 1)
        q = turn(q, position).transpose(2, 0, 1, 3)  # [texts, kv heads, group, dim]
        scores = q @ keys[:, :, : position + 1].swapaxes(2, 3) * np.float32(config.head_dim**-0.5)
        mixed = softmax(scores) @ values[:, :, : position + 1]
        return mixed.reshape(len(qkv), -1)


class LayerInputs:
    """Carries the calibration tokens through the model, layer by layer.

    ``hidden [sequences, tokens, hidden_size]`` is the residual stream after ``layer`` layers.
    """

    def __init__(self, source: Source, ids: Ids) -> None:
        self.source = source
        self.layer = 0
        self.decoder = Decoder(source.config, ids.shape[1])
        unique, where = np.unique(ids, return_inverse=True)
        rows = np.stack([source.tensor("embedding", slice(i, i + 1))[0] for i in unique])
        self.hidden = rows[where.reshape(ids.shape)]

    def next_layer(self, replace: Callable[[str, list[Float32]], Float32]) -> None:
        """Run one layer. ``replace(name, hessians)`` is called for each matrix in order, with the
        mean of ``x x^T`` over its inputs (one for each of ``panels``), and returns the weights to
        go on with.
        """
        prefix = f"layers.{self.layer}."
        norms = {kind: self.source.tensor(prefix + kind) for kind in ("attn_norm", "mlp_norm")}
        self.decoder.layer(self.hidden, norms, lambda kind, x: replace(prefix + kind, hessians(x)))
        self.layer += 1


def hessians(x: Float32) -> list[Float32]:
    """Mean of ``x x^T`` over tokens, ``x [tokens, cols]``, for each panel of columns."""
    return [x[:, part].T @ x[:, part] / np.float32(len(x)) for part in panels(x.shape[1])]
