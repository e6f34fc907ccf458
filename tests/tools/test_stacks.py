"""Matrices of planes that learn: levels, gradients, constraints, latents, what is packed."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install '.[train]'")
torch.set_num_threads(1)  # more cost more than they give on matrices this small

from edgedb.convert.fdb import fit  # noqa: E402
from edgedb.format.packing import dequantize  # noqa: E402
from tools.stacks import (  # noqa: E402
    FDBStack,
    Stack,
    cells,
    decode_stack,
    encode_stack,
    nearest,
    pack_stack,
    stack_codes,
)

ANY = pytest.mark.parametrize("planes", [2, 3, 4, 5, 6])


def random_stack(rows: int = 9, cols: int = 100, planes: int = 4, seed: int = 0) -> Stack:
    """Scales of any sign and latents that reach beyond their levels."""
    rng = torch.Generator().manual_seed(seed)
    stack = Stack(rows, cols, planes)
    sizes = torch.tensor([2.0**-j for j in range(planes)])
    alphas = sizes * torch.randn(rows, stack.latent.shape[1], planes, generator=rng)
    stack.fill(torch.randn(stack.latent.shape, generator=rng), alphas)
    return stack


def all_levels(stack: Stack) -> torch.Tensor:
    """Every level of every group ``[rows, groups, 2**N]``, by plain sums in float64."""
    unit, c = stack_codes(stack.alphas)
    units = unit.double().repeat_interleave(2, -1)[..., : stack.planes]
    scales = (units * c.double()).detach()
    codes = itertools.product((0, 1), repeat=c.shape[-1])
    picked = [torch.tensor(bits[::-1], dtype=torch.float64) for bits in codes]
    return torch.stack([(scales * bits).sum(-1) for bits in picked], dim=-1)


@ANY
def test_values_are_the_nearest_levels(planes: int) -> None:
    stack = random_stack(planes=planes)
    unit, c = stack_codes(stack.alphas)
    code, value = nearest(stack.latent, unit, c)
    levels = all_levels(stack)
    torch.testing.assert_close(value.double(), levels.gather(-1, code.long()), atol=1e-6, rtol=0)
    best = (stack.latent[..., None] - levels[:, :, None]).abs().min(-1).values
    torch.testing.assert_close((stack.latent - value).double().abs(), best, atol=1e-6, rtol=0)


@ANY
def test_gradients_go_straight_through(planes: int) -> None:
    stack = random_stack(cols=128, planes=planes)
    grad = torch.randn(9, 128)
    stack.weight().backward(grad)
    unit, c = stack_codes(stack.alphas)
    code, _ = nearest(stack.latent, unit, c)
    grouped = grad.unflatten(1, (2, 64))
    # The plain formula: a sum of planes, whose bits are constants, times scales.
    plain = stack.alphas.detach().requires_grad_()
    bits = torch.stack([code >> j & 1 for j in range(planes)], dim=-1).float()
    ((bits * plain[:, :, None]).sum(-1) * grouped).sum().backward()
    torch.testing.assert_close(stack.alphas.grad, plain.grad)
    levels = all_levels(stack)
    low, high = levels.min(-1, True).values, levels.max(-1, True).values
    inside = (stack.latent >= low) & (stack.latent <= high)
    assert torch.equal(stack.latent.grad[inside], grouped[inside])
    back = torch.where(stack.latent > high, grouped.clamp_min(0), grouped.clamp_max(0))
    assert torch.equal(stack.latent.grad[~inside], back[~inside])


@ANY
def test_codes_are_the_format_s_whatever_the_signs(planes: int) -> None:
    stack = random_stack(rows=200, planes=planes)
    stack.alphas.data[:100].abs_()  # a sum of two, each rounded up
    stack.alphas.data[50:100, :, 1:] = stack.alphas.data[50:100, :, :1]
    unit, c = stack_codes(stack.alphas)
    assert c.abs().max() == 127
    first, second = c[..., : planes // 2 * 2].unflatten(-1, (-1, 2)).unbind(-1)
    assert (first + second).abs().max() <= 127
    whole = unit.repeat_interleave(2, -1)[..., :planes] * c
    assert (
        (whole - stack.alphas).abs() <= 0.501 * unit.repeat_interleave(2, -1)[..., :planes]
    ).all()


def test_the_largest_code_of_opposite_signs_is_127() -> None:
    """As for one pair in ``tools.student``, and in checkpoints from before signs were free."""
    alphas = torch.tensor([[[1.0, -0.01, 0.3, -0.3], [0.5, -0.5, -0.6, 0.006]]])
    unit, _ = stack_codes(alphas)
    assert torch.equal(unit, torch.tensor([[[1.0, 0.6]]]) / 127)


def test_no_scale_stays_at_zero_and_signs_are_free() -> None:
    stack = Stack(1, 64, 5)
    stack.fill(torch.zeros(1, 1, 64), torch.tensor([[[2.0, 1.0, 0.0, 0.001, -0.001]]]))
    expected = torch.tensor([2.0, 1.0, 0.02, 0.02, -0.02])
    torch.testing.assert_close(stack.alphas.detach().flatten(), expected)
    stack.fill(torch.zeros(1, 1, 64), torch.zeros(1, 1, 5))
    assert (stack.alphas > 0).all()


@ANY
def test_packed_stack_is_the_matrix_bit_for_bit(planes: int) -> None:
    stack = random_stack(rows=70, cols=172, planes=planes)
    packed = pack_stack(stack)
    assert packed.planes == planes
    assert np.array_equal(dequantize(packed), stack.weight().detach().numpy())


@ANY
def test_latents_survive_a_byte(planes: int) -> None:
    stack = random_stack(planes=planes)
    unit, c = stack_codes(stack.alphas)
    stored = encode_stack(stack.latent, unit, c)
    again = decode_stack(stored, unit, c)
    code, value = nearest(stack.latent, unit, c)
    assert torch.equal(nearest(again, unit, c)[1], value)
    _, below, above = cells(unit, c, code)
    inside = (stack.latent - value <= above) & (value - stack.latent <= below)
    positions = {2: 64, 3: 32, 4: 16, 5: 8, 6: 4}[planes]
    off = (again - stack.latent).abs() / torch.maximum(below, above)
    assert off[inside].max() <= 1.01 / positions


@pytest.mark.parametrize("planes", [3, 4])
def test_a_fit_that_is_not_the_nearest_level_is_kept(planes: int) -> None:
    rng = np.random.default_rng(1)
    weight = rng.normal(size=(16, 64)).astype(np.float32)
    mixed = (rng.normal(size=(64, 64)) * np.geomspace(1, 0.05, 64)).astype(np.float32)
    fitted = fit(weight, planes, hessians=[mixed @ mixed.T]).tensor
    stack = Stack(16, 64, planes)
    stack.load(torch.from_numpy(weight), fitted)
    expected = dequantize(fitted)
    off = np.abs(stack.weight().detach().numpy() - expected)
    assert (off < 0.05 * np.abs(expected).max()).mean() > 0.99


def test_a_matrix_of_a_layer_multiplies() -> None:
    matrix = FDBStack(9, 100, 3)
    weight = np.random.default_rng(0).normal(size=(9, 100)).astype(np.float32)
    matrix.load(torch.from_numpy(weight), fit(weight, 3).tensor)
    x = torch.randn(3, 5, 100)
    torch.testing.assert_close(matrix(x), x @ matrix.weight().t())
    plain = matrix(x)
    matrix.quantize_input = True
    assert 0 < (matrix(x) - plain).abs().max() < 0.05 * plain.abs().max()


def test_eight_levels_are_one_graph() -> None:
    """What a GPU compiles for every layer has no branch that looks at numbers, forward or back."""
    matrix = FDBStack(4, 64, 3)
    matrix.fill(random_stack(4, 64, 3).latent.detach(), random_stack(4, 64, 3).alphas.detach())
    compiled = torch.compile(matrix, backend="aot_eager", fullgraph=True)
    x = torch.randn(5, 64)
    found = torch.autograd.grad(compiled(x).square().sum(), [matrix.latent, matrix.alphas])
    expected = torch.autograd.grad(matrix(x).square().sum(), [matrix.latent, matrix.alphas])
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs)
