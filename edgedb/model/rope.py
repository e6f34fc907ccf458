"""Tables of the rotary position embedding (RoFormer, arXiv 2104.09864, equation 34)."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from ..gate import gate
from ..ops.exactmath import log, sincos
from ..ops.values import RopeTable
from .config import ModelConfig
from .rotary import Rope, RopeScaling

Floats = npt.NDArray[np.float32]


class RopeTables:
    """``cos`` and ``sin`` of ``position * frequency``, float32 ``(n_positions, head_dim / 2)``.

    ``n_positions``: those that the context has room for.

    Rows are computed when they are first needed: all 8,192 of a usual context cost 40 ms, of which
    a short answer needs a fraction. The bits are the same on every CPU.
    """

    def __init__(self, table: RopeTable, n_positions: int) -> None:
        self._frequencies = np.array(table.of_context(n_positions), np.float64)
        self._factors = np.where(self._frequencies == 0, 1.0, table.factor)
        self._growth = table.growth
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
            positions = np.arange(begin, end, dtype=np.float64)
            sin, cos = sincos(positions[:, None] * self._frequencies[None, :])
            factors = self._factors[None, :]
            if (growth := self._growth) is not None:
                factors = factors * (
                    1 + growth.beta * log(1 + np.floor(positions / growth.every))[:, None]
                )
            self.cos[begin:end], self.sin[begin:end] = cos * factors, sin * factors
            self._ready = max(end, begin)


def rope_tables(config: ModelConfig, n_positions: int) -> tuple[Floats, Floats]:
    """``(cos, sin)`` of every position, as ``RopeTables`` has them, in a layer without window."""
    tables = RopeTables(table_of(config, Rope(config.rope_theta, config.rope_scaling)), n_positions)
    tables.cover(n_positions)
    return tables.cos, tables.sin


def turns_of(config: ModelConfig, layer: int) -> tuple[RopeTable | None, RopeTable | None]:
    """What a layer's queries turn by, and its keys; None: as they are."""
    rope = config.rope(layer)
    keys = None if rope is None else table_of(config, rope)
    if config.query_growth is None:
        return keys, keys
    still = RopeTable((0.0,) * (config.head_dim // 2))
    return replace(keys or still, growth=config.query_growth), keys


def table_of(config: ModelConfig, rope: Rope) -> RopeTable:
    """The table of heads that turn by ``rope``."""
    scaling = rope.scaling
    factor = scaling.attention_factor if scaling.type in ("yarn", "longrope") else 1.0
    if scaling.type != "longrope":
        return RopeTable(_padded(config, _frequencies(config, rope)), factor)
    plain = _plain(config, rope)
    short, long = (
        _padded(config, [f / divisor for f, divisor in zip(plain, divisors, strict=True)])
        for divisors in (scaling.short_factors, scaling.long_factors)
    )
    return RopeTable(short, factor, long, scaling.original_max_position_embeddings)


def _padded(config: ModelConfig, frequencies: Sequence[float]) -> tuple[float, ...]:
    """Rounded to float32; with pairs that do not turn, as many as a head has pairs."""
    still = (0.0,) * (config.head_dim // 2 - len(frequencies))
    return tuple(map(float, np.array(frequencies, np.float32))) + still


def inverse_frequencies(config: ModelConfig) -> Floats:
    """Radians a position for each pair of dimensions that turns, float32, in a layer without
    window.

    ``theta ** (-2i / dim)``, scaled as the checkpoint asks.
    """
    rope = Rope(config.rope_theta, config.rope_scaling)
    return np.array(_frequencies(config, rope), np.float32)


def _plain(config: ModelConfig, rope: Rope) -> list[float]:
    dim = config.rotary_dim or config.head_dim
    return [float(np.float32(rope.theta ** (-2 * i / dim))) for i in range(dim // 2)]


def _frequencies(config: ModelConfig, rope: Rope) -> list[float]:
    plain, scaling = _plain(config, rope), rope.scaling
    if scaling.type != "yarn":
        return [_scaled(f, scaling) for f in plain]
    first, last = _yarn_bounds(2 * len(plain), rope)
    kept = [1 - min(1.0, max(0.0, (i - first) / (last - first))) for i in range(len(plain))]
    return [f * (k + (1 - k) / scaling.factor) for f, k in zip(plain, kept, strict=True)]


def _yarn_bounds(dim: int, rope: Rope) -> tuple[float, float]:
    """Up to which pair of channels frequencies stay, and from which on they are divided.

    A pair stays if the original context saw ``beta_fast`` turns of it or more (arXiv 2309.00071,
    section 3.2); as in transformers, bounds are whole numbers, unless scaling says otherwise.
    """

    def pair(turns: float) -> float:
        length = rope.scaling.original_max_position_embeddings
        ratio = math.log(length / (2 * math.pi * turns)) / math.log(rope.theta)
        return dim * ratio / 2

    first, last = pair(rope.scaling.beta_fast), pair(rope.scaling.beta_slow)
    if rope.scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dim - 1)
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
