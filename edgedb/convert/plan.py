"""How many planes each matrix of a model gets.

A plan is written as one line and speaks of pairs of planes, halves allowed, later parts over
earlier ones: ``1, layers.0-3=2, layers.*.mlp_down=1.5, embedding=2`` puts every matrix of the
layers in one pair but those of the first four, and every ``mlp_down`` in three planes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ..errors import EdgeDBError
from ..files import read_text
from ..format.tensors import Kind, planes_of
from ..model.config import ModelConfig
from ..model.families import program_of

Plan = dict[str, int]  # edgedb name of a matrix -> planes

_PART = re.compile(r"(?:(?P<where>[^=]+)=)?(?P<pairs>[0-9]+(?:\.[0-9]+)?)")
_LAYERS = re.compile(r"layers\.(?P<first>[0-9]+|\*)(?:-(?P<last>[0-9]+))?(?:\.(?P<kind>\w+))?")


def is_router(name: str) -> bool:
    """Whether a matrix chooses experts: it is small, and an error there sends a token elsewhere, so
    it is never in planes."""
    return name.endswith(".router")


def pairs(text: str) -> int:
    """The planes of a number of pairs as it is typed. Raises ``ValueError`` for part of a plane."""
    return planes_of(float(text))


def read_plan(text: str, config: ModelConfig, most: int) -> Plan:
    """The planes of every matrix that ``text`` speaks of; a bare number means all in the layers. A
    router is never in planes, and the experts of a layer are one matrix.

    Raises ``EdgeDBError`` for a part that cannot be read, names no matrix, or asks for less than
    one pair, more than ``most`` planes, or part of a plane.
    """
    names = [name for name in program_of(config).matrices() if not is_router(name)]
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


def plan_text(kinds: Mapping[str, Kind]) -> str:
    """A plan as ``read_plan`` reads it, for everything that is in planes."""
    layers: dict[str, dict[int, int]] = {}
    tables: list[str] = []
    for name, kind in kinds.items():
        if not isinstance(kind, int):
            continue
        if found := _LAYERS.fullmatch(name):
            layers.setdefault(found["kind"], {})[int(found["first"])] = kind
        else:
            tables.append(f"{name}={kind / 2:g}")
    planes = [n for row in layers.values() for n in row.values()]
    usual = max(sorted(set(planes)), key=planes.count, default=None)
    parts = [] if usual is None else [f"{usual / 2:g}"]
    for matrix, row in layers.items():
        for first, last, n in _runs(row):
            where = f"{first}-{last}" if last > first else f"{first}"
            parts += [] if n == usual else [f"layers.{where}.{matrix}={n / 2:g}"]
    return ", ".join(parts + tables)


def _runs(row: Mapping[int, int]) -> Iterator[tuple[int, int, int]]:
    """First and last layer of every run of one number, and that number."""
    first = None
    for layer in sorted(row):
        if first is None:
            first = layer
        if row.get(layer + 1) != row[layer]:
            yield first, layer, row[layer]
            first = None


def plan_of_file(plan: str) -> str:
    """The text of a plan, from a file where ``plan`` is the name of one."""
    if not plan or "=" in plan or not Path(plan).is_file():
        return plan
    return read_plan_file(Path(plan))


def read_plan_file(file: Path) -> str:
    """The text of a plan; what follows a # is for people."""
    lines = read_text(file).splitlines()
    return ", ".join(part for line in lines if (part := line.partition("#")[0].strip(" ,\t")))


def write_plan_file(file: Path, text: str, lines: Sequence[str]) -> None:
    """Raises ``EdgeDBError`` where that cannot be."""
    try:
        file.write_text("".join(f"# {line}\n" for line in lines) + text + "\n", encoding="utf-8")
    except OSError as error:
        raise EdgeDBError(f"{file}: {error.strerror}") from None
