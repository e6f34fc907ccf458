"""How many planes each matrix of a model gets.

A plan is written as one line and speaks of pairs of planes, halves allowed, later parts over
earlier ones: ``1, layers.0-3=2, layers.*.mlp_down=1.5, embedding=2`` puts every matrix of the
layers in one pair but those of the first four, and every ``mlp_down`` in three planes.
"""

from __future__ import annotations

import re

from ..errors import EdgeDBError
from ..format.tensors import planes_of
from ..model.config import ModelConfig
from ..model.families import program_of

Plan = dict[str, int]  # edgedb name of a matrix -> planes

_PART = re.compile(r"(?:(?P<where>[^=]+)=)?(?P<pairs>[0-9]+(?:\.[0-9]+)?)")
_LAYERS = re.compile(r"layers\.(?P<first>[0-9]+|\*)(?:-(?P<last>[0-9]+))?(?:\.(?P<kind>\w+))?")


def pairs(text: str) -> int:
    """The planes of a number of pairs as it is typed. Raises ``ValueError`` for part of a plane."""
    return planes_of(float(text))


def read_plan(text: str, config: ModelConfig, most: int) -> Plan:
    """The planes of every matrix that ``text`` speaks of; a bare number means all in the layers.

    Raises ``EdgeDBError`` for a part that cannot be read, names no matrix, or asks for less than
    one pair, more than ``most`` planes, or part of a plane.
    """
    names = list(program_of(config).matrices())
    plan: Plan = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        found = _PART.fullmatch(part)
        chosen = [name for name in names if found and _matches(found["where"], name)]
        if not found or not chosen:
            raise EdgeDBError(
                f"{part}: expected pairs of matrices of this model, as in "
                f"1, layers.0-{max(config.n_layers - 1, 0)}=2, layers.*.mlp_down=1.5"
            )
        planes = 2 * float(found["pairs"])
        if not 2 <= planes <= most or not planes.is_integer():
            raise EdgeDBError(f"{part}: a matrix has 1 to {most / 2:g} pairs, in steps of a half")
        plan |= dict.fromkeys(chosen, int(planes))
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
