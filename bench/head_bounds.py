"""How much of a head could bounds on the logits spare? ``python bench/head_bounds.py MODEL TEXT``.

Reads TEXT, takes the hidden states before the head, and counts for several ways to bound a logit
the tiles of 64 rows whose bound reaches the greedy choice, the largest logit less ln(20) (min-p
0.05), and the 40th largest (top-k 40). The thresholds are the exact ones, which no way of guessing
them first can beat. Columns: median of the bound, share of the tiles at each threshold.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np

import edgedb
from edgedb.format.packing import dequantize, quantize_int8
from edgedb.format.tensors import GROUP, PairTensor
from edgedb.ops.sequences import MAX_ROWS

Bound = Callable[[np.ndarray], np.ndarray]  # hidden states [n, cols] -> upper bounds [n, rows]
POSITIONS, LEARNED = 256, 2048  # to test on, and before them to find the directions with


def hidden_states(model: edgedb.Model, text: str, count: int) -> np.ndarray:
    """Inputs of the head at the first ``count`` positions, in windows of 512."""
    ids = model.tokenize(text)[:count]
    state, parts = model.network.state(), []
    for window in range(0, count, 512):
        cache = model.network.cache(512, model.kv_dtype)
        stop = min(window + 512, count)
        for start in range(window, stop, MAX_ROWS):
            parts.append(model.network.hidden(ids[start : start + MAX_ROWS], cache, state).copy())
    return np.concatenate(parts)


def residual_bound(coarse: np.ndarray, rest: np.ndarray, u: np.ndarray, groups: bool) -> Bound:
    """``coarse x`` exactly, ``rest x`` exactly along the directions ``u [cols, k]``, and by
    Cauchy-Schwarz across them: in one piece, or for each group of columns."""
    along = rest @ u
    across = rest - along @ u.T
    cuts = range(0, rest.shape[1], GROUP if groups else rest.shape[1])
    width = GROUP if groups else rest.shape[1]
    norms = np.stack([np.linalg.norm(across[:, c : c + width], axis=1) for c in cuts])

    def bound(x: np.ndarray) -> np.ndarray:
        xu = x @ u
        x_across = x - xu @ u.T
        sizes = np.stack([np.linalg.norm(x_across[:, c : c + width], axis=1) for c in cuts])
        return np.asarray(x @ coarse.T + xu @ along.T + sizes.T @ norms)

    return bound


def tile_bound(weights: np.ndarray) -> Bound:
    """A centre and a radius for each tile: not even stage 1 is read."""
    tiles = weights[: len(weights) // 64 * 64].reshape(-1, 64, weights.shape[1])
    centres = tiles.mean(axis=1)
    radii = np.linalg.norm(tiles - centres[:, None], axis=2).max(axis=1)

    def bound(x: np.ndarray) -> np.ndarray:
        upper = x @ centres.T + np.linalg.norm(x, axis=1)[:, None] * radii
        return np.repeat(upper, 64, axis=1)

    return bound


def report(name: str, bound: Bound, x: np.ndarray, logits: np.ndarray) -> None:
    upper = bound(x)
    rows = upper.shape[1] // 64 * 64
    upper, exact = upper[:, :rows], logits[:, :rows]
    assert (upper >= exact - 1e-2).all(), "no bound"
    top = np.sort(np.partition(logits, -40, axis=1)[:, -40:], axis=1)
    shares = []
    for threshold in (top[:, -1], top[:, -1] - np.log(20), top[:, 0]):
        reached = upper >= threshold[:, None] - 1e-3
        shares.append(f"{reached.reshape(len(x), -1, 64).any(axis=2).mean():7.1%}")
    print(f"{name:34} {np.median(upper - exact):7.1f}  {'  '.join(shares)}", flush=True)


def main(path: str, text_path: str) -> None:
    model = edgedb.load(path, verify=False)
    tensor = model.file.linears.get("head", model.file.linears["embedding"])
    weights = dequantize(tensor)
    with open(text_path, encoding="utf-8") as file:
        hidden = hidden_states(model, file.read(), LEARNED + POSITIONS)
    learned, x = hidden[:LEARNED], hidden[LEARNED:]
    logits = x @ weights.T
    directions = np.linalg.eigh(learned.T @ learned)[1][:, ::-1].astype(np.float32)

    print(f"{'bound':34} {'median':>7}  {'greedy':>7}  {'min-p':>7}  {'top-40':>7}")
    report("centre and radius of a tile", tile_bound(weights), x, logits)
    parts: list[tuple[str, np.ndarray]] = []
    if isinstance(tensor, PairTensor):
        for pairs in range(1, (tensor.planes + 1) // 2):
            coarse = PairTensor(tensor.blocks[:pairs], tensor.row_scale[:pairs], *weights.shape)
            parts.append((f"{pairs} of {tensor.planes / 2:g} pairs", dequantize(coarse)))
    codes, scales = quantize_int8(weights)
    wide = np.repeat(scales, GROUP, axis=1)[:, : weights.shape[1]]
    for bits in (4, 5, 6):
        step = 1 << (8 - bits)
        high = ((codes.astype(np.int16) + 128) // step * step - 128 + step // 2).astype(np.float32)
        parts.append((f"int8's high {bits} bits", high * wide))
    for name, coarse in parts:
        for k, groups in ((0, False), (0, True), (32, True), (64, True)):
            how = (f", {k} directions" if k else "") + (", by group" if groups else "")
            bound = residual_bound(coarse, weights - coarse, directions[:, :k], groups)
            report(name + how, bound, x, logits)


if __name__ == "__main__":
    main(*sys.argv[1:3])
