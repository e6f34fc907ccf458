"""How an export stores each matrix of a model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

from ..errors import EdgeDBError

if TYPE_CHECKING:
    from ..format.tensors import Kind
    from ..model.config import ModelConfig
    from ..model.footprint import Footprint

# 2**8 levels are 8 bits a weight; more planes would be slower than int8 and no better.
MAX_FIT_PLANES = 8
METHODS = ("fdb", "rtn", "int8", "dense16", "dense32")
TABLE_KINDS = ("int8", "1.5", "2", "3", "float16", "float32")  # a number: pairs
_KIND_OF_METHOD: dict[str, Kind] = {"int8": "int8", "dense16": "float16", "dense32": "float32"}


@dataclass(frozen=True)
class Options:
    """How to store the weights; equal options and source give equal files.

    pairs: of every matrix inside the layers that ``plan`` (see ``plan.py``) says nothing of.
    embedding, head: how the tables are stored; by default int8, or as the dense method says. A
    number means pairs; those of the head are fitted for its inputs.
    bits, size_bytes: a budget (see ``budget.py``); the plan that is chosen for it takes the place
    of ``pairs`` and ``plan``.
    calibration: ``"sample"`` (from the teacher, where it is small enough), ``"none"``, or a text
    file; ``sequences`` of ``length`` tokens of it.
    """

    method: str = "fdb"
    pairs: float = 2
    plan: str = ""
    bits: float | None = None
    size_bytes: int | None = None
    embedding: str | None = None
    head: str | None = None
    calibration: str = "sample"
    sequences: int = 64
    length: int = 256
    seed: int = 0

    def kinds(self, config: ModelConfig) -> dict[str, Kind]:
        """How each matrix is stored. Raises ``EdgeDBError`` for a plan that does not fit."""
        from ..format.tensors import planes_of
        from ..model.families import program_of  # the command's help needs neither
        from .plan import is_router, read_plan

        layers: Kind = _KIND_OF_METHOD.get(self.method, planes_of(self.pairs))
        plan = read_plan(self.plan, config, MAX_FIT_PLANES)
        if plan and not isinstance(layers, int):
            raise EdgeDBError(f"a plan of pairs is of no use to the method {self.method}")
        table = "int8" if isinstance(layers, int) else layers
        kinds: dict[str, Kind] = {}
        program = program_of(config)
        for name in program.matrices():
            if is_router(name):
                kinds[name] = "float16" if isinstance(layers, int) else layers
                continue
            if name not in ("embedding", "head"):
                inside = name not in program.tables()
                kinds[name] = plan.get(name, layers) if inside else table
                continue
            chosen = (self.head if name == "head" else None) or self.embedding or table
            stored = cast("Kind", planes_of(float(chosen)) if str(chosen)[0].isdigit() else chosen)
            kinds[name] = plan.get(name, stored)
        return kinds

    def footprint(self, config: ModelConfig) -> Footprint:
        """What the model will take, about, where a budget is yet to be shared out."""
        from ..model.footprint import Footprint

        if self.bits is not None:
            return Footprint.at(config, self.bits)
        found = Footprint.of(config, replace(self, size_bytes=None).kinds(config))
        if self.size_bytes is None:
            return found
        beside = found.file_bytes - sum(found.sizes.values())
        return Footprint.at(config, 8 * (self.size_bytes - beside) / found.n_weights)

    @property
    def budgeted(self) -> bool:
        return self.bits is not None or self.size_bytes is not None

    def fixed(self, config: ModelConfig) -> dict[str, Kind]:
        """Tables that a budget leaves as they are: those whose storage was asked for, and what
        is neither embedding nor head; and routers."""
        from ..model.families import program_of
        from .plan import is_router

        asked = {"embedding": self.embedding, "head": self.head or self.embedding}
        tables = [n for n in program_of(config).tables() if asked.get(n, "positions")]
        return {n: k for n, k in self.kinds(config).items() if n in tables or is_router(n)}

    @property
    def calibrated(self) -> bool:
        return self.method == "fdb" and self.calibration != "none"
