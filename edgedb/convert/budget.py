"""From a number of bits or bytes to a plan: planes for every matrix, where they help most."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import EdgeDBError
from ..format.tensors import Kind
from ..model.config import ModelConfig
from ..model.dbb_plan import file_bytes
from ..model.families import program_of
from ..model.footprint import matrix_bytes, matrix_sizes
from ..text.spec import TokenizerSpec
from .allocation import Option, allocate
from .sensitivity import ERROR

# Planes that a matrix may get; a table may be int8 too.
CANDIDATES: tuple[Kind, ...] = (2, 3, 4, 6)
TABLES = ("embedding", "head")
# What a file's record of its own making may take beside what ``file_bytes`` counts.
_RECORD_BYTES = 1 << 16


@dataclass(frozen=True)
class Budget:
    """``bits`` a weight, of all matrices with their scales, or ``size_bytes`` of the whole file."""

    bits: float | None = None
    size_bytes: int | None = None

    def matrix_bytes(self, config: ModelConfig, tokenizer: TokenizerSpec) -> int:
        """Bytes for the matrices together."""
        shapes = program_of(config).matrices()
        if self.bits is not None:
            return int(self.bits * sum(program_of(config).sizes().values()) / 8)
        assert self.size_bytes is not None
        plain: dict[str, Kind] = dict.fromkeys(shapes, 2)
        whole = file_bytes(config, tokenizer, plain)
        return self.size_bytes - _RECORD_BYTES - whole + sum(matrix_sizes(config, plain).values())


def choose(
    costs: Mapping[str, float],
    budget: Budget,
    config: ModelConfig,
    tokenizer: TokenizerSpec,
    fixed: Mapping[str, Kind],
) -> dict[str, Kind]:
    """How each matrix is stored so that the expected KL is least.

    costs: what each would make as one pair (see ``sensitivity``); fixed: matrices that are not
    asked. Raises ``EdgeDBError`` where the budget is too small for the model.
    """
    shapes = program_of(config).matrices()
    kinds = {name: _candidates(name, fixed) for name in shapes}
    stacks = program_of(config).stacks()
    options = {
        name: [
            Option(
                matrix_bytes(name, *shapes[name], kind, stacks.get(name, 0)),
                costs[name] * ERROR.get(kind, 0.0),
            )
            for kind in found
        ]
        for name, found in kinds.items()
    }
    room = budget.matrix_bytes(config, tokenizer)
    found = allocate(options, room)
    if found is None:
        least = sum(min(o.size_bytes for o in each) for each in options.values())
        n_weights = sum(program_of(config).sizes().values())
        raise EdgeDBError(
            f"too small a budget: this model needs at least {8 * least / n_weights:.2f} bits a "
            f"weight, {(least - room) / 1e6:.1f} MB more"
        )
    return {name: kinds[name][i] for name, i in found.items()}


def _candidates(name: str, fixed: Mapping[str, Kind]) -> tuple[Kind, ...]:
    if name in fixed:
        return (fixed[name],)
    return (*CANDIDATES, "int8") if name in TABLES else CANDIDATES
