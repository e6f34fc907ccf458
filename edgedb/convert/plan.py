"""How many pairs of planes each matrix of a model gets.

A plan is written as one line, later parts over earlier ones: ``1, layers.0-3=2,
layers.*.mlp_down=2, embedding=2`` puts everything in one pair but the first four layers and every
``mlp_down``.
"""

from __future__ import annotations

import re

from ..errors import EdgeDBError
from ..model.config import ModelConfig
from ..model.families import program_of

Plan = dict[str, int]  # edgedb name of a matrix -> pairs

_PART = re.compile(r"(?:(?P<where>[^=]+)=)?(?P<pairs>[0-9]+)")
_LAYERS = re.compile(r"layers\.(?P<first>[0-9]+|\*)(?:-(?P<last>[0-9]+))?(?:\.(?P<kind>\w+))?")


def read_plan(text: str, config: ModelConfig, most: int) -> Plan:
    """The pairs of every matrix that ``text`` speaks of; a bare number means all in the layers.

    Raises ``EdgeDBError`` for a part that cannot be read, names no matrix, or asks for less than
    one pair or more than ``most``.
    """
    names = list(program_of(config).matrices())
    plan: Plan = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        found = _PART.fullmatch(part)
        chosen = [name for name in names if found and _matches(found["where"], name)]
        if not found or not chosen:
            raise EdgeDBError(
                f"{part}: expected pairs of matrices of this model, as in "
                f"1, layers.0-{max(config.n_layers - 1, 0)}=2, layers.*.mlp_down=2"
            )
        pairs = int(found["pairs"])
        if not 1 <= pairs <= most:
            raise EdgeDBError(f"{part}: a matrix has 1 to {most} pairs")
        plan |= dict.fromkeys(chosen, pairs)
    return plan


def _matches(where: str | None, name: str) -> bool:
    """Whether a part of a plan for ``where`` (None: all layers) means the matrix ``name``."""
    layer = _LAYERS.fullmatch(name)
    if where is None:
        return layer is not None
    wanted = _LAYERS.fullmatch(where.strip())
    if not wanted or not layer:
        return where.strip() == name
    if wanted["kind"] not in (None, layer["kind"]):
        return False
    if wanted["first"] == "*":
        return wanted["last"] is None
    first = int(wanted["first"])
    return first <= int(layer["first"]) <= int(wanted["last"] or first)
