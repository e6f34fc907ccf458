"""Flexible dual binarization without training: from float weights to stacked pairs of bit planes.

A group of 64 columns of a row becomes ``w = sum_j a_j*b_j`` with bits b and scales a, one of each a
plane (DB-LLM, arXiv 2402.11960, for two planes of opposite signs). Signs are free. The fit starts
from a uniform grid and alternates nearest level and weighted least squares; scales are then rounded
to int8 over a float32 per row and pair, and the planes refitted. With Hessians of the inputs,
``feedback`` refines the fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import FormatError
from ..format.packing import pack_half, pack_planes
from ..format.tensors import GROUP, PairTensor
from ..ops.cores import usable_cpus
from . import fdb_kernels
from .feedback import FeedbackOptions, InRows, Panel, panels, row_runner
from .storage import MAX_FIT_PLANES

Float32 = NDArray[np.float32]
Method = Literal["fdb", "rtn"]

# Rows fitted together: a wide matrix of a 7B model has 361 MB, and the fit holds several copies.
CHUNK_ROWS = 4096


@dataclass(frozen=True)
class Fit:
    """error: ``|W - Q|^2 / |W|^2``. output_error: the same of ``G X`` over the calibration inputs,
    G being the goal of the fit, or ``None`` without them."""

    tensor: PairTensor
    quantized: Float32  # [rows, cols], equal to dequantize(tensor) up to float32 rounding
    error: float
    output_error: float | None


def fit(
    weight: Float32,
    planes: int,
    *,
    importance: Float32 | None = None,
    hessians: Sequence[Float32] | None = None,
    missing: Float32 | None = None,
    method: Method = "fdb",
    options: FeedbackOptions | None = None,
    threads: int | None = None,
) -> Fit:
    """Fit so many planes to ``weight [rows, cols]`` float32; of an odd number the last is half a
    pair.

    importance: mean square of each input column ``[cols]``; weights the least squares. hessians:
    ``X^T X`` of the inputs for each of ``feedback.panels(cols)``; turns error feedback on. missing:
    ``D^T X [rows, cols]``, D being what the outputs of ``weight`` lack; the goal of the fit is then
    not ``weight`` but the matrix that makes up for it, as far as the Hessians are believed. method
    ``"rtn"`` is the baseline: the nearest point of a uniform grid that spans all weights. Raises
    ``FormatError`` for NaN or infinity, ``ValueError`` for shapes that do not fit.
    """
    weight = np.ascontiguousarray(weight, np.float32)
    rows, cols = weight.shape
    if not 2 <= planes <= MAX_FIT_PLANES:
        raise ValueError(f"{planes} planes, expected 2 to {MAX_FIT_PLANES}")
    if not np.isfinite(weight).all():
        raise FormatError("weights hold NaN or infinity; the source may be damaged")
    groups = -(-cols // GROUP)
    width = groups * GROUP
    plans = _plans(hessians, cols, options or FeedbackOptions())
    if hessians is not None and importance is None:
        importance = np.concatenate([np.diagonal(h) for h in hessians])
    columns = _importance(importance, cols, width)

    row_scale = np.zeros((rows, -(-planes // 2)), np.float32)
    c = np.zeros((rows, groups, planes), np.int8)
    codes = np.zeros((rows, width), np.uint8)
    quantized = np.empty((rows, cols), np.float32)
    goal = weight if missing is None else weight + _steps(plans, missing)
    threads = threads or usable_cpus()
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, rows, CHUNK_ROWS):
            s = slice(start, min(start + CHUNK_ROWS, rows))
            padded = np.zeros((s.stop - start, width), np.float32)
            padded[:, :cols] = goal[s]
            if method == "rtn":
                round_to_nearest(padded, row_scale[s], c[s], codes[s])
            else:
                in_rows = row_runner(threads, len(padded), pool)
                exponent = _normalize(padded)
                # The fit with Hessians takes only the rows' scales from this one.
                rounds = 3 if plans else 8
                _fit_alone(padded, columns, row_scale[s], c[s], codes[s], rounds, in_rows)
                for where, plan in plans:
                    groups_of = slice(where.start // GROUP, where.stop // GROUP)
                    plan.fit(
                        padded[:, where], row_scale[s], c[s, groups_of], codes[s, where], in_rows
                    )
                np.ldexp(row_scale[s], exponent, out=row_scale[s])
            quantized[s] = _values(row_scale[s], c[s], codes[s])[:, :cols]
    error, output_error = _errors(goal, quantized, hessians)
    if goal is not weight:
        error, _ = _errors(weight, quantized, None)
    return Fit(_pack(row_scale, c, codes, cols), quantized, error, output_error)


def round_to_nearest(
    w: Float32, row_scale: Float32, c: NDArray[np.int8], codes: NDArray[np.uint8]
) -> None:
    """The baseline: the finest uniform grid, of either sign, that clips no weight of the group.

    Fills its arguments, whose shapes are those of ``fdb_kernels.fit_rows``.
    """
    rows, width = w.shape
    planes = c.shape[2]
    grouped = w.reshape(rows, -1, GROUP)
    top = grouped.max(axis=2, initial=0)
    bottom = -grouped.min(axis=2, initial=0)
    high = 1 << (planes - 1)  # plane 0 alone; all others count down from it
    low = high - 1
    upright = np.maximum(top / high, bottom / low)
    mirrored = np.maximum(bottom / high, top / low)
    unit = np.where(upright <= mirrored, upright, -mirrored)
    largest = np.abs(unit).max(axis=1)
    # A pair's codes are 2 and -1 steps, or -2 and -1, whose sum is a code too.
    finest = 63 if planes == 2 else 42
    row_scale[:] = largest[:, None] * 2.0 ** np.arange(planes - 2, -2, -2) / finest
    divisor = np.where(largest > 0, largest, 1)[:, None]
    steps = np.rint(unit / divisor * finest)
    for j in range(planes):
        c[..., j] = (1 if j == 0 else -1) * (2 - j % 2) * steps
    step = (steps / finest * largest[:, None]).astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        q = np.where(step[..., None] != 0, np.rint(grouped / step[..., None]), 0)
    q = np.clip(q, -low, high).astype(np.int64).reshape(rows, width)
    below = np.where(q > 0, high - q, -q)  # what the planes after the first take away
    codes |= (q > 0).astype(np.uint8)
    for j in range(1, planes):
        codes |= ((below >> (planes - 1 - j) & 1) << j).astype(np.uint8)


def _importance(importance: Float32 | None, cols: int, width: int) -> Float32:
    """Per column ``[width]``, mean 1, zero on padding."""
    out = np.zeros(width, np.float32)
    out[:cols] = 1
    if importance is not None:
        importance = np.asarray(importance, np.float32)[:cols]
        if importance.shape != (cols,) or not (importance >= 0).all():
            raise ValueError(f"importance must be {cols} numbers of at least 0")
        if importance.any():
            # A column that calibration never excited may still matter in use.
            out[:cols] = np.maximum(importance / importance.mean(), np.float32(1e-3))
    return out


def _normalize(w: Float32) -> int:
    """Scale ``w`` in place by a power of two (exactly) to a peak near 1, and return that power.

    Far from 1, squares of weights would leave float32's range.
    """
    peak = float(np.abs(w).max(initial=0))
    exponent = int(np.frexp(peak)[1]) if peak else 0
    np.ldexp(w, -exponent, out=w)
    return exponent


def _fit_alone(
    w: Float32,
    importance: Float32,
    row_scale: Float32,
    c: NDArray[np.int8],
    codes: NDArray[np.uint8],
    rounds: int,
    in_rows: InRows,
) -> None:
    factors = fdb_kernels.scale_factors(c.shape[2])
    shapes = fdb_kernels.start_shapes(c.shape[2])

    def kernel(s: slice) -> None:
        fdb_kernels.fit_rows(
            w[s], importance, factors, shapes, rounds, row_scale[s], c[s], codes[s]
        )

    in_rows(kernel)


def _plans(
    hessians: Sequence[Float32] | None, cols: int, options: FeedbackOptions
) -> list[tuple[slice, Panel]]:
    """For each panel its columns in the padded matrix, and its factored Hessian."""
    if hessians is None:
        return []
    plans = []
    for where, hessian in zip(panels(cols), hessians, strict=True):
        n = where.stop - where.start
        if hessian.shape != (n, n):
            raise ValueError(f"Hessian {hessian.shape} does not fit {n} columns")
        width = -(-n // GROUP) * GROUP
        full = np.zeros((width, width), np.float32)
        full[:n, :n] = hessian
        plans.append((slice(where.start, where.start + width), Panel(full, options)))
    return plans


def _steps(plans: Sequence[tuple[slice, Panel]], missing: Float32) -> Float32:
    """What to add to the weights for the outputs that they lack: a share of it by each panel, for
    panels know nothing of each other."""
    out = np.zeros_like(missing)
    for where, panel in plans:
        part = missing[:, where]
        pull = np.zeros((len(part), where.stop - where.start), np.float32)
        pull[:, : part.shape[1]] = part / np.float32(len(plans))
        out[:, where] = panel.step(pull)[:, : part.shape[1]]
    return out


def _values(row_scale: Float32, c: NDArray[np.int8], codes: NDArray[np.uint8]) -> Float32:
    rows, width = codes.shape
    out = np.zeros((rows, width // GROUP, GROUP), np.float32)
    grouped = codes.reshape(out.shape)
    for j in range(c.shape[2]):
        a = row_scale[:, j // 2, None] * c[:, :, j]
        out += (grouped >> j & 1) * a[:, :, None]
    return out.reshape(rows, width)


def _pack(
    row_scale: Float32, c: NDArray[np.int8], codes: NDArray[np.uint8], cols: int
) -> PairTensor:
    blocks, half = [], None
    bits = codes[:, :cols]
    for first in range(0, c.shape[2] - 1, 2):
        b1, b2 = (bits >> first & 1).astype(bool), (bits >> first + 1 & 1).astype(bool)
        c1, c2 = c[:, :, first], c[:, :, first + 1]
        # |a1| >= |a2|: which plane is called the first is free, a refit may have turned them.
        turned = np.abs(c1.astype(np.int16)) < np.abs(c2.astype(np.int16))
        wide = np.repeat(turned, GROUP, axis=1)[:, :cols]
        b1, b2 = np.where(wide, b2, b1), np.where(wide, b1, b2)
        c1, c2 = np.where(turned, c2, c1), np.where(turned, c1, c2)
        blocks.append(pack_planes(b1, b2, c1, c2))
    if c.shape[2] % 2:
        half = pack_half((bits >> c.shape[2] - 1).astype(bool), c[:, :, -1])
    return PairTensor(np.stack(blocks), np.ascontiguousarray(row_scale.T), len(codes), cols, half)


def _errors(
    weight: Float32, quantized: Float32, hessians: Sequence[Float32] | None
) -> tuple[float, float | None]:
    """Relative squared error of the weights and, under the Hessians, of the outputs."""
    lost = total = lost_out = total_out = 0.0
    for start in range(0, len(weight), CHUNK_ROWS):
        w = weight[start : start + CHUNK_ROWS]
        d = w - quantized[start : start + CHUNK_ROWS]
        lost += float(np.vdot(d, d))
        total += float(np.vdot(w, w))
        for where, h in zip(
            panels(weight.shape[1]) if hessians else (), hessians or (), strict=True
        ):
            lost_out += float(np.vdot(d[:, where] @ h, d[:, where]))
            total_out += float(np.vdot(w[:, where] @ h, w[:, where]))
    return _ratio(lost, total), _ratio(lost_out, total_out) if hessians else None


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0
