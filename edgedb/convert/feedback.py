"""Fit planes and scales to what a matrix does, not to what it is: error feedback with a Hessian.

With inputs X the loss of a matrix is ``|(W - Q) X^T|^2 = tr (W - Q) H (W - Q)^T``, ``H = X^T X``.
Columns are quantized in order, and the error of each is spread over the later ones so as to leave
the least loss (Frantar et al., GPTQ, arXiv 2210.17323). Added to that here: a group's scales are
the least squares under H of its own block once all later columns have adapted (the Schur
complement), and sweeps over all blocks afterwards revisit each with the others fixed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..format.tensors import GROUP
from .fdb_kernels import scale_factors, start_shapes
from .feedback_kernels import solve_block

Float32 = NDArray[np.float32]
InRows = Callable[[Callable[[slice], None]], None]

# Columns that share one Hessian. It bounds memory (134 MB in float64) and the cubic cost of its
# inverse; wider matrices are treated as that many independent ones.
MAX_PANEL = 4096


@dataclass(frozen=True)
class FeedbackOptions:
    """damping: share of the mean diagonal added to it. shrinkage: share of every correlation that
    is not believed: some thousand tokens are a small sample of a thousand columns, and on other
    text the output error falls by 8% with it. sweeps: passes over all blocks after the first. In
    each visit to a block: at most ``tries`` refits of its scales, each followed by ``descents``
    rounds of setting one weight at a time. rounds: of the first fit. reorder: columns by falling
    energy."""

    damping: float = 0.01
    shrinkage: float = 0.2
    sweeps: int = 3
    tries: int = 2
    descents: int = 2
    rounds: int = 6
    reorder: bool = True


def panels(cols: int) -> list[slice]:
    """Stretches of whole groups, as equal as possible, of at most ``MAX_PANEL`` columns."""
    groups = -(-cols // GROUP)
    count = -(-groups * GROUP // MAX_PANEL)
    edges = [groups * i // count * GROUP for i in range(count + 1)]
    return [slice(a, min(b, cols)) for a, b in itertools.pairwise(edges)]


class Panel:
    """One Hessian, factored once for all rows of a matrix.

    ``hessian [n, n]`` float32 with n a multiple of 64; columns whose diagonal is zero never see an
    input (or are padding) and any weight does there.
    """

    def __init__(self, hessian: Float32, options: FeedbackOptions) -> None:
        self.options = options
        n = len(hessian)
        diagonal = np.diagonal(hessian).copy()
        self.order = _order(diagonal) if options.reorder else np.arange(n)
        h = hessian[np.ix_(self.order, self.order)].astype(np.float64)
        own = h.diagonal().copy()
        h *= 1 - options.shrinkage
        h[np.diag_indices(n)] = own + max(options.damping * float(diagonal.mean()), 1e-30)
        self._unit = h.diagonal().mean()
        h /= self._unit
        # h = r r^T with r upper triangular; its inverse u gives h^-1 = u^T u.
        r = _upper_factor(h)
        u = _upper_inverse(r)
        self._u = u.astype(np.float32)
        self.h = h.astype(np.float32)
        self.blocks: list[_Block] = []
        for start in range(0, n, GROUP):
            b = slice(start, start + GROUP)
            rb, present = r[b, b], diagonal[self.order[b]] > 0
            hb = h[b, b]
            ub = _upper_inverse(_upper_factor(hb))
            self.blocks.append(
                _Block(
                    columns=b,
                    group=int(self.order[start]) // GROUP,
                    # What the block costs once all later columns have made up for it.
                    first=_Quadratic.of(rb @ rb.T, u[b, b], present),
                    # What it costs when all other columns stay as they are.
                    again=_Quadratic.of(hb, ub, present),
                    spread=(rb @ u[b, b.stop :]).astype(np.float32),
                    inverse=(ub.T @ ub).astype(np.float32),
                )
            )

    def step(self, pull: Float32) -> Float32:
        """The change ``d [rows, n]`` of weights for which ``d h`` is ``pull [rows, n]``, with the
        Hessian as far as it is believed."""
        out = np.empty_like(pull)
        out[:, self.order] = (pull[:, self.order] / self._unit) @ self._u.T @ self._u
        return out

    def fit(
        self,
        weight: Float32,
        row_scale: Float32,
        c: NDArray[np.int8],
        codes: NDArray[np.uint8],
        in_rows: InRows,
    ) -> None:
        """Fit rows of ``weight [rows, n]``; ``row_scale [rows, pairs]`` is given.

        Fills ``c [rows, groups, planes]`` and ``codes [rows, n]``. ``in_rows(kernel)`` calls the
        kernel with slices that cover the rows.
        """
        w = np.ascontiguousarray(weight[:, self.order])
        residual, q = w.copy(), np.empty_like(w)
        ordered = np.zeros(w.shape, np.uint8)
        factors, shapes = scale_factors(c.shape[2]), start_shapes(c.shape[2])
        o = self.options

        def solve(block: _Block, target: NDArray[Any], quadratic: _Quadratic, fresh: bool) -> None:
            cb = np.ascontiguousarray(c[:, block.group])
            part = np.ascontiguousarray(ordered[:, block.columns])
            value = np.empty(part.shape, np.float32)

            def kernel(s: slice) -> None:
                solve_block(
                    target[s],
                    quadratic.h,
                    quadratic.u,
                    factors,
                    shapes,
                    o.rounds,
                    o.tries,
                    o.descents,
                    fresh,
                    row_scale[s],
                    cb[s],
                    part[s],
                    value[s],
                )

            in_rows(kernel)
            c[:, block.group] = cb
            ordered[:, block.columns] = part
            q[:, block.columns] = value

        for block in self.blocks:
            target = np.ascontiguousarray(residual[:, block.columns])
            solve(block, target, block.first, True)
            residual[:, block.columns.stop :] -= (target - q[:, block.columns]) @ block.spread
        for _ in range(o.sweeps):
            for block in self.blocks:
                pull = (w - q) @ self.h[:, block.columns]
                target = q[:, block.columns] + pull @ block.inverse
                solve(block, target, block.again, False)
        codes[:, self.order] = ordered


@dataclass(frozen=True)
class _Quadratic:
    """``h [64, 64]`` float32 and the upper ``u`` with ``h^-1 = u^T u``; absent columns are zero in
    h.
    """

    h: Float32
    u: Float32

    @classmethod
    def of(cls, h: Any, u: Any, present: NDArray[np.bool_]) -> _Quadratic:
        h = np.where(present[:, None] & present, h, 0)
        return cls(np.ascontiguousarray(h, np.float32), np.ascontiguousarray(u, np.float32))


@dataclass(frozen=True)
class _Block:
    columns: slice  # in the panel's order
    group: int  # which group of the panel it is
    first: _Quadratic
    again: _Quadratic
    spread: Float32  # [64, later columns]: error of the block -> change of later weights
    inverse: Float32  # [64, 64] of again.h


def _upper_factor(h: Any) -> Any:
    """Upper triangular r with ``h = r r^T``, float64."""
    return np.linalg.cholesky(h[::-1, ::-1])[::-1, ::-1]


def _upper_inverse(r: Any) -> Any:
    """Of an upper triangular matrix, by halves: a fifth of the time of an inverse that does not
    know of the zeros."""
    n = len(r)
    if n <= GROUP:
        return np.linalg.inv(r)
    half = n // 2
    out = np.zeros_like(r)
    out[:half, :half] = first = _upper_inverse(r[:half, :half])
    out[half:, half:] = second = _upper_inverse(r[half:, half:])
    out[:half, half:] = -first @ r[:half, half:] @ second
    return out


def _order(diagonal: Float32) -> NDArray[np.int64]:
    """Columns by falling energy within each group, groups by falling energy: errors made last are
    compensated least, so they should matter least. Groups stay whole."""
    grouped = diagonal.reshape(-1, GROUP)
    groups = np.argsort(-grouped.sum(axis=1), kind="stable")
    within = np.argsort(-grouped, axis=1, kind="stable")
    return (groups[:, None] * GROUP + within[groups]).ravel()


def row_runner(threads: int, rows: int, pool: ThreadPoolExecutor) -> InRows:
    """Run ``kernel(slice)`` over all rows, cut evenly between threads; rows are independent."""
    step = max(1, -(-rows // (threads * 4)))

    def run(kernel: Callable[[slice], None]) -> None:
        list(pool.map(kernel, [slice(i, min(i + step, rows)) for i in range(0, rows, step)]))

    return run
