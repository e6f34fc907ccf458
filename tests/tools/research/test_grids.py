"""Levels of one scale: nearest digits, gradients and fits against plain arithmetic."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch: make test installs its CPU build")

from tiny import TinySource  # noqa: E402

from tools.decoder import Dense, load_teacher, mean_square_inputs  # noqa: E402
from tools.research.grids import GRIDS, LEVELS, Grid, fitted, in_grid, nearest  # noqa: E402
from tools.stacks import stack_codes  # noqa: E402
from tools.student import FDBLinear, fit_scales, make_student  # noqa: E402


def plain(rows: int, cols: int, seed: int = 0) -> Dense:
    made = Dense(rows, cols)
    generator = torch.Generator().manual_seed(seed)
    made.weight = torch.nn.Parameter(torch.randn(rows, cols, generator=generator) / 9)
    return made


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("sign", [1, -1])
def test_the_nearest_digit_is_the_nearest(name: str, sign: int) -> None:
    levels = LEVELS[name]
    latent = torch.randn(5, 3, 64, generator=torch.Generator().manual_seed(1))
    scale = sign * (torch.rand(5, 3, 1, generator=torch.Generator().manual_seed(2)) + 0.1)
    digits = torch.tensor(levels, dtype=torch.float32)
    found = nearest(latent, scale, levels)
    if sign < 0:  # digits count along the scale's own direction
        latent, scale = -latent, -scale
    off = (latent[..., None] - scale[..., None] * digits).abs()
    assert torch.equal(found, digits[off.argmin(-1)])


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("cols", [1, 64, 100, 300])
def test_weights_are_levels_of_8_bit_codes(name: str, cols: int) -> None:
    matrix = fitted(name, plain(7, cols))
    assert isinstance(matrix, Grid)
    unit, c = stack_codes(matrix.alphas)
    levels = (unit * c)[..., None, :] * torch.tensor(LEVELS[name])[:, None]  # [7, groups, n, 1]
    weight = matrix.weight()
    for col in range(cols):
        near = (weight[:, col, None] - levels[:, col // 64, :, 0]).abs().amin(-1)
        assert near.max() == 0
    assert c.abs().max() == 127


@pytest.mark.parametrize("name", GRIDS)
def test_gradients_are_sums_over_levels(name: str) -> None:
    matrix = fitted(name, plain(4, 100))
    pull = torch.randn(4, 100, generator=torch.Generator().manual_seed(3))
    (matrix.weight() * pull).sum().backward()
    if isinstance(matrix, FDBLinear):
        return  # tests/tools/test_student.py
    unit, c = stack_codes(matrix.alphas.detach())
    digits = torch.where(unit * c == 0, 0.0, nearest(matrix.latent, unit * c, matrix.levels))
    padded = torch.nn.functional.pad(pull, (0, 28)).view(4, 2, 64)
    assert torch.allclose(matrix.alphas.grad, (padded * digits).sum(-1, keepdim=True), atol=1e-5)
    low, high = (unit * c).abs() * matrix.levels[0], (unit * c).abs() * matrix.levels[-1]
    upright = matrix.latent * torch.sign(c)
    inside = (upright >= low) & (upright <= high)
    assert torch.equal(matrix.latent.grad[inside], padded[inside])
    outward = (upright > high) & (padded * torch.sign(c) < 0)  # a step down the gradient leads out
    assert (matrix.latent.grad[outward] == 0).all()


def test_finer_grids_fit_better() -> None:
    of = plain(64, 512)
    errors = {}
    for name in GRIDS:
        off = (fitted(name, of).weight() - of.weight).detach()
        errors[name] = float(off.square().sum() / of.weight.square().sum())
    assert errors["fdb"] < errors["uniform"] < errors["ternary"] < errors["binary"]
    # Least squares of a Gaussian: 0.363 in one bit and 0.190 in three levels (Max, 1960); groups of
    # 64 do a little better, for they know their own size.
    assert errors["binary"] == pytest.approx(0.363, abs=0.02)
    assert errors["ternary"] == pytest.approx(0.190, abs=0.02)


def test_what_matters_more_is_fitted_better() -> None:
    of, columns = plain(16, 64), torch.ones(64)
    columns[:8] = 50.0
    for name in GRIDS:
        errors = [
            (fitted(name, of, seen).weight() - of.weight)[:, :8].square().sum()
            for seen in (None, columns)
        ]
        assert errors[1] < errors[0]


def test_a_student_in_a_grid_keeps_all_but_its_layers_matrices() -> None:
    teacher = load_teacher(TinySource())
    seen = mean_square_inputs(teacher, torch.randint(0, 96, (2, 16)))
    student = in_grid(make_student(teacher, "weighted", seen), teacher, "ternary", seen)
    assert torch.equal(student.tables()["embedding"], teacher.tables()["embedding"])
    theirs = dict(teacher.matrices())
    for name, module in student.matrices():
        assert isinstance(module, Grid) and module.levels == (-1, 0, 1)
        expected = fitted("ternary", theirs[name], seen[name])
        assert torch.equal(module.weight(), expected.weight())


def test_the_uniform_grid_is_fdb_whose_scales_do_not_part() -> None:
    of = plain(8, 128)
    matrix = fitted("uniform", of)
    alpha1, alpha2 = fit_scales(of.weight.detach(), start="searched")
    searched = FDBLinear(8, 128)
    searched.load(of.weight.detach(), alpha1, alpha2)
    searched.round_scales = False
    errors = [(m.weight() - of.weight).square().sum() for m in (matrix, searched)]
    assert errors[0] < 1.01 * errors[1]  # least squares finds no worse an s than the search
