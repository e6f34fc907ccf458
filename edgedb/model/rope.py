"""Tables of the rotary position embedding (RoFormer, arXiv 2104.09864, equation 34)."""

from __future__ import annotations

import math
import threading

import numpy as np
import numpy.typing as npt

from ..gate import gate
from ..ops.exactmath import sincos
from ..ops.program import RopeTable
from .config import ModelConfig, RopeScaling

Floats = npt.NDArray[np.float32]


class RopeTables:
    """``cos`` and ``sin`` of ``position * frequency``, float32 ``(n_positions, head_dim / 2)``.

    Rows are computed when they are first needed: all 8,192 of a usual context cost 40 ms, of which
    a short answer needs a fraction. The bits are the same on every CPU.
    """

    def __init__(self, table: RopeTable, n_positions: int) -> None:
        self._frequencies = np.array(table.frequencies, np.float64)
        self._factor = table.factor
        self._ready = 0  # rows computed
        self._lock = threading.Lock()
        self.cos = np.zeros((n_positions, len(table.frequencies)), np.float32)
        self.sin = np.zeros_like(self.cos)

    def cover(self, n_positions: int) -> None:
        """Have the first ``n_positions`` rows ready. Several threads may ask."""
        if n_positions <= self._ready:
            return
        with gate.lock, self._lock:
            begin, end = self._ready, min(max(n_positions, self._ready + 256), len(self.cos))
            # Both factors have 24 bits: the product is exact in float64.
            angles = np.arange(begin, end, dtype=np.float64)[:, None] * self._frequencies[None, :]
            sin, cos = sincos(angles)
            self.cos[begin:end], self.sin[begin:end] = cos * self._factor, sin * self._factor
            self._ready = max(end, begin)


def rope_tables(config: ModelConfig, n_positions: int) -> tuple[Floats, Floats]:
    """``(cos, sin)`` of every position, as ``RopeTables`` has them."""
    tables = RopeTables(rope_table(config), n_positions)
    tables.cover(n_positions)
    return tables.cos, tables.sin


def rope_table(config: ModelConfig) -> RopeTable:
    """What a model's heads turn by."""
    frequencies = tuple(map(float, inverse_frequencies(config)))
    scaling = config.rope_scaling
    return RopeTable(frequencies, scaling.attention_factor if scaling.type == "yarn" else 1.0)


def inverse_frequencies(config: ModelConfig) -> Floats:
    """Radians a position for each pair of dimensions, float32 ``(head_dim / 2,)``.

    ``theta ** (-2i / head_dim)``, scaled as the checkpoint asks.
    """
    plain = [
        float(np.float32(config.rope_theta ** (-2 * i / config.head_dim)))
        for i in range(config.head_dim // 2)
    ]
    scaling = config.rope_scaling
    if scaling.type == "yarn":
        first, last = _yarn_bounds(config)
        kept = [1 - min(1.0, max(0.0, (i - first) / (last - first))) for i in range(len(plain))]
        scaled = [f * (k + (1 - k) / scaling.factor) for f, k in zip(plain, kept, strict=True)]
    else:
        scaled = [_scaled(f, scaling) for f in plain]
    return np.array(scaled, np.float32)


def _yarn_bounds(config: ModelConfig) -> tuple[float, float]:
    """Up to which pair of channels frequencies stay, and from which on they are divided.

    A pair stays if the original context saw ``beta_fast`` turns of it or more (arXiv 2309.00071,
    section 3.2); as in transformers, bounds are whole numbers.
    """

    def pair(turns: float) -> float:
        length = config.rope_scaling.original_max_position_embeddings
        ratio = math.log(length / (2 * math.pi * turns)) / math.log(config.rope_theta)
        return config.head_dim * ratio / 2

    first = max(math.floor(pair(config.rope_scaling.beta_fast)), 0)
    last = min(math.ceil(pair(config.rope_scaling.beta_slow)), config.head_dim - 1)
    return first, last if last != first else last + 0.001


def _scaled(frequency: float, scaling: RopeScaling) -> float:
    if scaling.type == "linear":
        return frequency / scaling.factor
    if scaling.type != "llama3":
        return frequency
    # Llama 3.1: full turns that the original context saw of this frequency decide. Few turns: slow
    # down by the factor; many: keep; in between: blend.
    turns = scaling.original_max_position_embeddings * frequency / (2 * math.pi)
    if turns < scaling.low_freq_factor:
        return frequency / scaling.factor
    if turns > scaling.high_freq_factor:
        return frequency
    blend = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    return (1 - blend) * frequency / scaling.factor + blend * frequency
