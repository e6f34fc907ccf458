"""Storing a matrix without a fit: as int8 or floats, read from the source a few rows at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import FormatError
from ..format.packing import pack_int8, quantize_int8
from ..format.tensors import GROUP, DenseTensor, Kind, LinearTensor
from ..model.families import program_of
from .sources import Source

# Rows of an embedding read at a time; Llama 3's has 128,256 rows and 2.1 GB in float32.
_CHUNK_ROWS = 8192


def source_matrix(source: Source, name: str, expert: int | None) -> np.ndarray:
    """Matrix ``name``, or that of one ``expert`` of a stack, float32 ``[rows, cols]``."""
    return source.tensor(name) if expert is None else source.expert(name, expert)


def store_plain(
    source: Source, name: str, kind: Kind, expert: int | None = None
) -> tuple[LinearTensor, dict[str, Any]]:
    """Matrix ``name``, or that of one ``expert`` of a stack, as int8 or float, and its relative
    squared error; rows a few at a time."""
    rows, cols = program_of(source.config).matrices()[name]
    lost = total = 0.0
    if kind == "int8":
        codes = np.empty((rows, cols), np.int8)
        scales = np.empty((rows, -(-cols // GROUP)), np.float32)
    else:
        dense = np.empty((rows, cols), np.float16 if kind == "float16" else np.float32)
    for s, weight in _row_chunks(source, name, expert):
        if kind == "int8":
            try:
                codes[s], scales[s] = quantize_int8(weight)
            except ValueError as error:
                raise FormatError(f"{name}: {error}") from None
            stored = codes[s] * np.repeat(scales[s], GROUP, axis=1)[:, :cols]
        else:
            with np.errstate(over="ignore"):  # the writer refuses the infinity, by name
                dense[s] = weight
            stored = dense[s].astype(np.float32, copy=False)
        difference = (weight - stored).ravel()
        lost += float(np.dot(difference, difference))
        total += float(np.dot(weight.ravel(), weight.ravel()))
    tensor: LinearTensor = pack_int8(codes, scales) if kind == "int8" else DenseTensor(dense)
    return tensor, facts(name, error=lost / total if total else 0.0)


def _row_chunks(
    source: Source, name: str, expert: int | None
) -> Iterator[tuple[slice, np.ndarray]]:
    rows, _ = program_of(source.config).matrices()[name]
    if expert is not None or len(source.stored_names(name)) > 1:
        yield slice(0, rows), source_matrix(source, name, expert)
        return
    for start in range(0, rows, _CHUNK_ROWS):
        s = slice(start, min(start + _CHUNK_ROWS, rows))
        yield s, source.tensor(name, s)


def facts(name: str, **errors: float | None) -> dict[str, Any]:
    """The errors of matrix ``name`` as a file records them, in four digits; None is left out.

    Raises ``FormatError`` if they are no numbers: squares of the weights overflow.
    """
    known = {key: value for key, value in errors.items() if value is not None}
    if not all(map(math.isfinite, known.values())):
        raise FormatError(f"{name}: weights far larger than any model's; the source is damaged")
    return {key: float(f"{value:.4g}") for key, value in known.items()}


def stack_facts(name: str, of_experts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What is recorded of a stack: its experts' mean errors, and how many tokens of the calibration
    went to the one that saw the fewest, and to the median."""
    means = {
        key: float(np.mean([one[key] for one in of_experts]))
        for key in ("error", "output_error")
        if all(key in one for one in of_experts)
    }
    found: dict[str, Any] = facts(name, **means)
    if counts := sorted(one["tokens"] for one in of_experts if "tokens" in one):
        found["tokens"] = {"fewest": counts[0], "median": counts[len(counts) // 2]}
    return found
