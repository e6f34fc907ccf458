"""The student: matrices of two bit planes that learn (DB-LLM, arXiv 2402.11960).

A group of 64 columns of a row is ``alpha1*b1 + alpha2*b2`` with planes in {0, 1}. The planes are
read off a latent weight by nearest level, and gradients reach it straight through. Scales are
rounded to the format's 8-bit codes while training, so what is trained is what is exported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgedb.convert.plan import Plan
from edgedb.errors import UnsupportedModelError
from edgedb.format.tensors import GROUP
from edgedb.model.config import ModelConfig
from edgedb.model.families import program_of

from . import parallel
from .codes import MAX_CODE, fake_int8
from .decoder import Decoder
from .parallel import local

# |alpha2| stays below this share of |alpha1|: the four levels keep their order, and nearest level
# stays the two comparisons of ``planes``.
MAX_RATIO = 0.95
MIN_RATIO = 0.02
STARTS = ("absmax", "searched", "least-squares", "weighted")


def planes(latent: Tensor, alpha1: Tensor, alpha2: Tensor) -> tuple[Tensor, Tensor]:
    """Bit planes of the nearest of the levels ``0, alpha1, alpha2, alpha1 + alpha2``.

    latent ``[..., 64]``; alphas ``[..., 1]`` of opposite sign, ``|alpha1| > |alpha2|``. With a
    negative alpha1 everything mirrors, so the comparisons are made on ``sign(alpha1) * latent``.
    Returns bool ``b1, b2``.
    """
    sign = torch.where(alpha1 < 0, -1.0, 1.0)
    b1 = sign * latent > (alpha1 + alpha2).abs() / 2
    b2 = sign * (latent - torch.where(b1, alpha1, 0.0)) < -alpha2.abs() / 2
    return b1, b2


def scale_codes(alpha1: Tensor, alpha2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``row_scale [rows, 1, 1]`` and integer codes ``[rows, groups, 1]`` (as floats) of the format.

    The largest |alpha1| of a row gets code 127; signs are opposite, so ``|c1 + c2| <= 127`` too.
    """
    row_scale = alpha1.abs().amax(dim=1, keepdim=True) / MAX_CODE
    safe = row_scale.clamp_min(torch.finfo(torch.float32).tiny)
    c1 = (alpha1 / safe).round().clamp(-MAX_CODE, MAX_CODE)
    c2 = (alpha2 / safe).round().clamp(-MAX_CODE, MAX_CODE)
    return row_scale, c1, c2


class _Quantize(torch.autograd.Function):
    """``unit * (c1*b1 + c2*b2)``: one product per weight, as the format has it, so that export
    changes no bit.

    A scale's gradient is the sum over its group where the bit is set; it passes the rounding to
    codes straight through, and unit is a constant. A latent's passes the planes straight through.
    """

    @staticmethod
    def forward(
        ctx: Any,
        latent: Tensor,
        alpha1: Tensor,
        alpha2: Tensor,
        unit: Tensor,
        c1: Tensor,
        c2: Tensor,
        stuck: bool,
    ) -> Tensor:
        b1, b2 = planes(latent, unit * c1, unit * c2)
        ctx.save_for_backward(latent, unit * c1, unit * c2)
        ctx.stuck = stuck
        return unit * (torch.where(b1, c1, 0.0) + torch.where(b2, c2, 0.0))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        latent, alpha1, alpha2 = ctx.saved_tensors
        b1, b2 = planes(latent, alpha1, alpha2)
        low, high = torch.minimum(alpha1, alpha2), torch.maximum(alpha1, alpha2)
        if ctx.stuck:
            passes = (latent >= low) & (latent <= high)
        else:
            # Beyond the last level a gradient that leads back in still counts; otherwise the tails
            # of the teacher's weights, a sixth of all, could never change their planes.
            passes = ((latent >= low) | (grad < 0)) & ((latent <= high) | (grad > 0))
        grad1 = torch.where(b1, grad, 0.0).sum(dim=-1, keepdim=True)
        grad2 = torch.where(b2, grad, 0.0).sum(dim=-1, keepdim=True)
        return torch.where(passes, grad, 0.0), grad1, grad2, None, None, None, None


class FDBLinear(nn.Module):
    """``y = W x`` with ``W`` of one pair of planes. Columns are padded to groups with latent zeros.

    Options, plain attributes: ``round_scales`` (8-bit codes over a row scale), ``stuck`` (latents
    outside the grid get no gradient at all), ``quantize_input`` (the engine's 8-bit activations).
    """

    planes = 2

    def __init__(self, rows: int, cols: int) -> None:
        super().__init__()
        groups = -(-cols // GROUP)
        self.rows, self.cols = rows, cols
        self.latent = nn.Parameter(torch.zeros(rows, groups, GROUP))
        self.alpha1 = nn.Parameter(torch.ones(rows, groups, 1))
        self.alpha2 = nn.Parameter(torch.full((rows, groups, 1), -0.5))
        # The side of a group's longer tail is chosen at the start and then kept. A parameter, not
        # a buffer, so that it is sharded with the scales that it belongs to.
        self.sign = nn.Parameter(torch.ones(rows, groups, 1), requires_grad=False)
        self.round_scales = True
        self.stuck = False
        self.quantize_input = False

    @torch.no_grad()
    def codes(self) -> tuple[Tensor, Tensor, Tensor]:
        """``unit, c1, c2`` with ``unit * c`` the scales in use; see ``scale_codes``."""
        if self.round_scales:
            return scale_codes(self.alpha1, self.alpha2)
        return torch.ones_like(self.alpha1[:, :1]), self.alpha1.detach(), self.alpha2.detach()

    def weight(self) -> Tensor:
        """The matrix ``[rows, cols]`` that is multiplied with, float32."""
        unit, c1, c2 = self.codes()
        grid = _Quantize.apply(self.latent, self.alpha1, self.alpha2, unit, c1, c2, self.stuck)
        return grid.flatten(1)[:, : self.cols]

    def forward(self, x: Tensor) -> Tensor:
        if self.quantize_input:
            x = fake_int8(x)
        return F.linear(x, self.weight())

    @torch.no_grad()
    def load(self, weight: Tensor, alpha1: Tensor, alpha2: Tensor) -> None:
        """Take latents from ``weight [rows, cols]`` and scales ``[rows, groups, 1]``.

        Of a sharded matrix, all three are this process's rows.
        """
        padded = F.pad(weight, (0, self.latent.shape[1] * GROUP - self.cols))
        local(self.latent).copy_(padded.unflatten(1, (-1, GROUP)))
        local(self.alpha1).copy_(alpha1)
        local(self.alpha2).copy_(alpha2)
        local(self.sign).copy_(torch.where(alpha1 < 0, -1.0, 1.0))
        project([self])

    @torch.no_grad()
    def fill(self, latent: Tensor, alpha1: Tensor, alpha2: Tensor) -> None:
        """Take whole latents ``[rows, groups, 64]`` and scales ``[rows, groups, 1]``."""
        parallel.assign(self.latent, latent)
        parallel.assign(self.alpha1, alpha1)
        parallel.assign(self.alpha2, alpha2)
        parallel.assign(self.sign, torch.where(alpha1 < 0, -1.0, 1.0))
        project([self])


@torch.no_grad()
def project(modules: Sequence[FDBLinear]) -> None:
    """Back to opposite signs and ``|alpha1| > |alpha2| > 0`` after an optimizer step."""
    if not modules:
        return
    alpha1, alpha2 = [local(m.alpha1) for m in modules], [local(m.alpha2) for m in modules]
    sign = [local(m.sign) for m in modules]
    long = torch._foreach_clamp_min(torch._foreach_mul(alpha1, sign), 1e-6)
    short = torch._foreach_neg(torch._foreach_mul(alpha2, sign))
    torch._foreach_clamp_min_(short, torch._foreach_mul(long, MIN_RATIO))
    torch._foreach_clamp_max_(short, torch._foreach_mul(long, MAX_RATIO))
    torch._foreach_copy_(alpha1, torch._foreach_mul(long, sign))
    torch._foreach_copy_(alpha2, torch._foreach_neg(torch._foreach_mul(short, sign)))


# Of a group's root mean square: where s starts.
_STARTING_FACTORS = (0.7, 0.9, 1.1, -0.7, -0.9, -1.1)
_SEARCHED_FACTORS = tuple(sign * (0.5 + 0.05 * i) for sign in (1, -1) for i in range(20))


@torch.no_grad()
def fit_scales(
    weight: Tensor, importance: Tensor | None = None, start: str = "least-squares", rounds: int = 12
) -> tuple[Tensor, Tensor]:
    """Scales for every group of ``weight [rows, cols]``: alpha1, alpha2 ``[rows, groups, 1]``.

    "absmax" is the paper's ``alpha1 = 2s, alpha2 = -s`` with ``s = max|w| / 2``; "searched" keeps
    that grid and takes the best of many s of either sign. The others alternate nearest level and a
    2x2 solve for either sign and keep the better, with squared errors weighted by
    ``importance [cols]``.
    """
    cols = weight.shape[1]
    grouped = F.pad(weight, (0, -cols % GROUP)).unflatten(1, (-1, GROUP))
    if start == "absmax":
        s = grouped.abs().amax(dim=-1, keepdim=True).clamp_min(1e-6) / 2
        return 2 * s, -s
    factors: Sequence[float] = _STARTING_FACTORS
    if start == "searched":
        factors, rounds = _SEARCHED_FACTORS, 0
    columns = torch.ones_like(weight[0]) if importance is None else importance / importance.mean()
    # A floor keeps groups of dead columns solvable.
    columns = F.pad(columns.clamp_min(1e-4), (0, -cols % GROUP)).unflatten(0, (-1, GROUP))
    energy = (grouped.square() * columns).sum(-1, keepdim=True)
    rms = (energy / columns.sum(-1, keepdim=True)).sqrt()
    alpha1 = alpha2 = torch.zeros_like(rms)
    least = torch.full_like(rms, torch.inf)
    for factor in factors:
        s = rms.clamp_min(1e-6) * factor
        found1, found2, error = _alternate(grouped, columns, 2 * s, -s, rounds)
        better = error < least
        alpha1 = torch.where(better, found1, alpha1)
        alpha2 = torch.where(better, found2, alpha2)
        least = torch.where(better, error, least)
    return alpha1, alpha2


def _alternate(
    grouped: Tensor, columns: Tensor, alpha1: Tensor, alpha2: Tensor, rounds: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Least squares and nearest level in turn; scales and the weighted squared error of a group."""
    for _ in range(rounds):
        b1, b2 = (plane.float() * columns for plane in planes(grouped, alpha1, alpha2))
        on1, on2 = b1 > 0, b2 > 0
        n1, n2 = b1.sum(-1, keepdim=True), b2.sum(-1, keepdim=True)
        n12 = torch.where(on1, b2, 0.0).sum(-1, keepdim=True)
        t1 = torch.where(on1, b1 * grouped, 0.0).sum(-1, keepdim=True)
        t2 = torch.where(on2, b2 * grouped, 0.0).sum(-1, keepdim=True)
        determinant = n1 * n2 - n12 * n12
        new1 = (n2 * t1 - n12 * t2) / determinant
        new2 = (n1 * t2 - n12 * t1) / determinant
        # Keep the old scales where a plane is empty or the solution leaves the order of levels.
        ratio = -new2 / new1
        valid = (determinant > 1e-9) & (new1 * alpha1 > 0)
        valid &= (ratio > MIN_RATIO) & (ratio < MAX_RATIO)
        alpha1 = torch.where(valid, new1, alpha1)
        alpha2 = torch.where(valid, new2, alpha2)
    b1, b2 = planes(grouped, alpha1, alpha2)
    level = torch.where(b1, alpha1, 0.0) + torch.where(b2, alpha2, 0.0)
    error = ((grouped - level).square() * columns).sum(-1, keepdim=True)
    return alpha1, alpha2, error


def empty_student(
    config: ModelConfig,
    device: torch.device | str = "cpu",
    plan: Mapping[str, int] | None = None,
    *,
    sharded: bool = False,
) -> Decoder:
    """A student to be filled; ``plan`` has the planes of its matrices by name.

    What it does not name is of one pair inside the layers (``FDBLinear``), and plain for embedding
    and head. More planes are ``FDBStack``; tables in any number of planes are ``FDBTable``. Raises
    ``UnsupportedModelError`` for a model with experts.
    """
    from .stacks import FDBStack
    from .tables import FDBTable

    plan = plan or {}
    if program_of(config).stacks():
        raise UnsupportedModelError(
            f"{config.model_type}: experts are not trained; convert the model without training"
        )

    def matrix(name: str, rows: int, cols: int) -> nn.Module:
        planes = plan.get(name, 2)
        return FDBLinear(rows, cols) if planes == 2 else FDBStack(rows, cols, planes)

    def make() -> Decoder:
        student = Decoder(config, matrix)
        for name in student.tables():
            if planes := plan.get(name, 0):
                table = FDBTable(config.vocab_size, config.hidden_size, planes)
                student.put(name, table)
        return student

    return parallel.build(make, device, sharded=sharded)


@torch.no_grad()
def make_student(
    teacher: Decoder,
    start: str = "weighted",
    importance: Mapping[str, Tensor] | None = None,
    plan: Mapping[str, int] | None = None,
    *,
    sharded: bool = False,
) -> Decoder:
    """A trainable student on the teacher's device, sharded if the teacher is.

    Embedding, head, norms and biases are copied. ``importance`` (see ``mean_square_inputs``) is
    needed for the start "weighted". ``plan``: planes of matrices inside the layers, 2 where it is
    silent; tables stay plain, whatever it says. Raises ``ValueError`` for an unknown start.
    """
    if start not in STARTS:
        raise ValueError(f"start {start!r}: choose one of {', '.join(STARTS)}")
    if start == "weighted" and importance is None:
        raise ValueError("the weighted start needs the mean square of every matrix's inputs")
    inside = {name: n for name, n in (plan or {}).items() if name.startswith("layers.")}
    student = empty_student(teacher.config, teacher.device, inside, sharded=sharded)
    # Both models are cut into the same rows: all of it is local.
    parallel.reshard(teacher)
    plain = [{**dict(model.vectors()), **model.tables()} for model in (student, teacher)]
    for mine, theirs in zip(*(parts.values() for parts in plain), strict=True):
        local(mine).copy_(local(theirs))
    for (name, mine), (_, theirs) in zip(student.matrices(), teacher.matrices(), strict=True):
        columns = importance[name] if start == "weighted" and importance else None
        fit_matrix(mine, theirs.weight.detach(), columns, start)
    return student


@torch.no_grad()
def fit_matrix(
    module: nn.Module, weight: Tensor, importance: Tensor | None, start: str = "weighted"
) -> None:
    """Fit an ``FDBLinear`` or ``FDBStack`` to ``weight [rows, cols]``, sharded where the module is.

    importance: mean square of every input column ``[cols]``. More than a pair is fitted by least
    squares, whichever the start.
    """
    from .stacks import Stack

    if isinstance(module, Stack):
        from edgedb.convert.fdb import fit

        weight = parallel.whole(weight).float()
        seen = None if importance is None else importance.cpu().numpy()
        module.load(weight, fit(weight.cpu().numpy(), module.planes, importance=seen).tensor)
    else:
        assert isinstance(module, FDBLinear)
        rows = local(weight).float()  # rows are fitted one by one
        module.load(rows, *fit_scales(rows, importance, start))


def plan_of(student: Decoder) -> Plan:
    """The planes of every matrix of a student, but for tables that are plain."""
    from .stacks import Stack

    modules = {**dict(student.matrices()), **student.tables()}
    plan = {name: m.planes for name, m in modules.items() if isinstance(m, Stack)}
    return dict.fromkeys(dict(student.matrices()), 2) | plan
