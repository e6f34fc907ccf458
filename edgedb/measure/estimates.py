"""What fits a machine: for a model and some numbers of pairs the file, the memory and the most
tokens a second that memory allows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..model.config import ModelConfig
from ..model.footprint import Footprint
from .known import KNOWN, KnownModel, Machine
from .shapes import SHAPES, kinds_at

PAIRS = (1.0, 1.5, 2.0, 3.0)
USUAL_PAIRS = 2.0  # what a conversion gives that nothing is asked of


@dataclass(frozen=True)
class Row:
    """One model stored in one way, on one machine.

    ``stored``: how, in words. ``layer_bits``: bits a weight inside the layers, scales included.
    ``memory_bytes``: with the file and a full context. ``tokens_per_second``: what memory allows at
    most, None if its speed is not known. ``kl``: from the full model, if somebody has measured it.
    """

    model: str
    stored: str
    layer_bits: float
    file_bytes: int
    memory_bytes: int
    context: int
    token_bytes: int
    tokens_per_second: float | None
    fits: bool
    kl: float | None


def row(
    model: str,
    stored: str,
    found: Footprint,
    machine: Machine,
    context: int | None = None,
    kv_dtype: str = "float16",
) -> Row:
    """What ``found`` comes to on ``machine``; ``context`` is that of a session, by default the
    usual one."""
    room = found.context(context)
    memory = found.memory_bytes(room, kv_dtype)
    speed = None if machine.bandwidth is None else machine.bandwidth / found.token_bytes
    known = KNOWN.get(model, KnownModel(""))
    return Row(
        model,
        stored,
        found.layer_bits,
        found.file_bytes,
        memory,
        room,
        found.token_bytes,
        speed,
        machine.holds(memory),
        known.kl_at(found.layer_bits),
    )


def pairs_text(pairs: float) -> str:
    """``1.5 pairs``."""
    return f"{pairs:g} pair{'s' if pairs != 1 else ''}"


def footprint(config: ModelConfig, pairs: float) -> Footprint:
    """Every matrix of the layers in so many pairs, the tables in int8."""
    return Footprint.of(config, kinds_at(config, pairs))


def of_model(
    name: str,
    config: ModelConfig,
    machine: Machine,
    pairs: Sequence[float] = PAIRS,
    **session: Any,
) -> list[Row]:
    """A model by the pairs of its layers."""
    return [row(name, pairs_text(n), footprint(config, n), machine, **session) for n in pairs]


def known_models() -> Iterator[tuple[str, ModelConfig]]:
    """Names on the hub and configurations, the smallest first."""
    found: Mapping[str, ModelConfig] = {name: SHAPES[known.shape] for name, known in KNOWN.items()}
    yield from sorted(found.items(), key=lambda item: footprint(item[1], 1).n_weights)


def of_machine(machine: Machine, **session: Any) -> list[Row]:
    """Every known model as it is usually converted, or in one pair and a half where only that
    fits."""
    rows = []
    for name, config in known_models():
        choices = of_model(name, config, machine, (USUAL_PAIRS, 1.5), **session)
        rows.append(next((one for one in choices if one.fits), choices[0]))
    return rows
