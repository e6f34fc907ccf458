"""The rooms of ``edgedb/``: who may ask whom, as each room's own first paragraph says it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from places import ROOT

PACKAGES = ("edgedb", "tools")
GROUND = "ground"  # files that stand in edgedb/ itself: everyone may ask them
DOORS = ("edgedb", "edgedb.__main__")  # ways in, which open rooms for others


def modules() -> dict[str, Path]:
    """Every module of the project by its dotted name."""
    found = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(module: str, path: Path) -> Iterator[str]:
    """The project's modules that a file imports, anywhere in it and for types too."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            parts = parts[: len(parts) - node.level + 1] if node.level else []
            base = ".".join([*parts, *([node.module] if node.module else [])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                if full in MODULES or base in MODULES:
                    yield full if full in MODULES else base


GRAPH = {module: set(imports(module, path)) - {module} for module, path in MODULES.items()}


def room_of(module: str) -> str:
    """``tools`` and the ground of ``edgedb`` are rooms too."""
    first, *rest = module.split(".")
    if first != "edgedb":
        return first
    return rest[0] if rest and (ROOT / "edgedb" / rest[0]).is_dir() else GROUND


ROOMS = sorted({room_of(module) for module in MODULES} - {GROUND, "tools"})


def may_ask(room: str) -> set[str]:
    """What the first paragraph of a room allows."""
    module = ast.parse(MODULES[f"edgedb.{room}"].read_text(encoding="utf-8"))
    found = re.search(r"^May ask: ([a-z, \n]+)\.$", ast.get_docstring(module) or "", re.M)
    assert found, f"edgedb/{room}/__init__.py does not say whom the room may ask"
    return set(found[1].replace("\n", " ").split(", ")) - {"nothing"}


def order(graph: Mapping[str, set[str]]) -> list[str]:
    """From the bottom up. Raises ``CycleError``."""
    return list(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_asks_only_whom_it_may(room: str) -> None:
    allowed = may_ask(room) | {room, GROUND}
    wrong = [
        f"{module} imports {asked}"
        for module in GRAPH
        if room_of(module) == room
        for asked in GRAPH[module]
        if room_of(asked) not in allowed
    ]
    assert not wrong


def test_the_ground_asks_nobody() -> None:
    for module, asked in GRAPH.items():
        if room_of(module) == GROUND and module not in DOORS:
            assert {room_of(other) for other in asked} <= {GROUND}, module


def test_rooms_stand_on_floors() -> None:
    """What rooms allow themselves has an order, and is no more than what they use."""
    order({room: may_ask(room) for room in ROOMS})
    for room in ROOMS:
        asked = {room_of(o) for m in GRAPH if room_of(m) == room for o in GRAPH[m]}
        assert may_ask(room) <= asked, f"edgedb/{room} is allowed more than it uses"


def test_no_two_files_import_each_other() -> None:
    order({module: asked for module, asked in GRAPH.items() if module not in DOORS})


def test_the_walk_sees_circles_and_arrows() -> None:
    """The tests above can fail."""
    assert GRAPH["edgedb.run.session"] >= {"edgedb.choose.sampling", "edgedb.run.loaded"}
    assert "edgedb.text.spec" in GRAPH["edgedb.choose.grammar"]
    with pytest.raises(CycleError):
        order({**GRAPH, "edgedb.format.tensors": {"edgedb.run.engine"}})
