"""How matrices are stored, as a small map for people: a row for each, a column for each layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ..format.tensors import Kind, kind_text

_SIGNS: dict[Kind, str] = {"int8": "i", "float16": "h", "float32": "f"}


def layer_map(kinds: Mapping[str, Kind]) -> list[str]:
    """Lines of the map. A digit is a number of planes: about as many bits a weight, and an eighth.

    ``kinds``: of every matrix, named as in ``program_of(config).matrices()``.
    """
    rows: dict[str, dict[int, Kind]] = {}
    for name, kind in kinds.items():
        if name.startswith("layers."):
            _, layer, matrix = name.split(".")
            rows.setdefault(matrix, {})[int(layer)] = kind
    n_layers = 1 + max((layer for row in rows.values() for layer in row), default=-1)
    tables = [name for name in kinds if not name.startswith("layers.")]
    width = max(map(len, (*rows, *tables, "planes")), default=0)
    ruler = "".join(f"{layer:<10}" for layer in range(0, n_layers, 10)).rstrip()
    lines = [f"{'planes':<{width}}  {ruler}"] if rows else []
    for matrix, row in rows.items():
        signs = "".join(_sign(row[i]) if i in row else " " for i in range(n_layers))
        lines.append(f"{matrix:<{width}}  {signs}")
    lines += [f"{name:<{width}}  {_sign(kinds[name])}  {kind_text(kinds[name])}" for name in tables]
    used = dict.fromkeys(kind for row in rows.values() for kind in row.values())
    lines += list(_legend(used))
    return lines


def _sign(kind: Kind) -> str:
    return _SIGNS[kind] if isinstance(kind, str) else f"{kind:X}"


def _legend(kinds: Mapping[Kind, None]) -> Iterator[str]:
    letters = [f"{_sign(kind)}: {kind}" for kind in kinds if isinstance(kind, str)]
    if letters:
        yield ", ".join(letters)
