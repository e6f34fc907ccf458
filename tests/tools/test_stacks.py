"""Matrices in stacked pairs that learn: levels, gradients, constraints, latents, what is packed."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'edgedb-llm[train]'")
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
    project_stack,
    stack_codes,
)


def random_stack(rows: int = 9, cols: int = 100, pairs: int = 2) -> Stack:
    weight = np.random.default_rng(0).normal(size=(rows, cols)).astype(np.float32)
    stack = Stack(rows, cols, pairs)
    stack.load(torch.from_numpy(weight), fit(weight, 2 * pairs).tensor)
    return stack


def all_levels(stack: Stack) -> torch.Tensor:
    """Every level of every group ``[rows, groups, 4**P]``, by plain sums in float64."""
    unit, c = stack_codes(stack.alphas)
    scales = (unit.double().repeat_interleave(2, -1) * c.double()).detach()
    codes = itertools.product((0, 1), repeat=c.shape[-1])
    picked = [torch.tensor(bits[::-1], dtype=torch.float64) for bits in codes]
    return torch.stack([(scales * bits).sum(-1) for bits in picked], dim=-1)


@pytest.mark.parametrize("pairs", [1, 2, 3])
def test_values_are_the_nearest_levels(pairs: int) -> None:
    stack = random_stack(pairs=pairs)
    unit, c = stack_codes(stack.alphas)
    code, value = nearest(stack.latent, unit, c)
    levels = all_levels(stack)
    torch.testing.assert_close(value.double(), levels.gather(-1, code.long()), atol=1e-6, rtol=0)
    best = (stack.latent[..., None] - levels[:, :, None]).abs().min(-1).values
    torch.testing.assert_close((stack.latent - value).double().abs(), best, atol=1e-6, rtol=0)


def test_gradients_go_straight_through() -> None:
    stack = random_stack(cols=128)
    grad = torch.randn(9, 128)
    stack.weight().backward(grad)
    unit, c = stack_codes(stack.alphas)
    code, _ = nearest(stack.latent, unit, c)
    grouped = grad.unflatten(1, (2, 64))
    for plane in range(4):
        expected = (grouped * (code >> plane & 1)).sum(-1)
        torch.testing.assert_close(stack.alphas.grad[..., plane], expected)
    levels = all_levels(stack)
    low, high = levels.min(-1, True).values, levels.max(-1, True).values
    inside = (stack.latent >= low) & (stack.latent <= high)
    assert torch.equal(stack.latent.grad[inside], grouped[inside])
    back = torch.where(stack.latent > high, grouped.clamp_min(0), grouped.clamp_max(0))
    assert torch.equal(stack.latent.grad[~inside], back[~inside])


def test_scales_keep_their_signs_and_the_format() -> None:
    stack = random_stack()
    with torch.no_grad():
        stack.alphas.add_(torch.randn_like(stack.alphas))
    project_stack(stack)
    assert (stack.alphas * stack.sign > 0).all()
    _, c = stack_codes(stack.alphas)
    assert c.abs().max() <= 127 and (c[..., 0::2] + c[..., 1::2]).abs().max() <= 127


def test_a_pair_of_zeros_gets_both_signs() -> None:
    stack = Stack(2, 64, 2)
    stack.fill(torch.zeros(2, 1, 64), torch.tensor([[[1.0, -0.5, 0.0, 0.0]]] * 2))
    assert stack.sign.flatten().tolist() == [1, -1, 1, -1] * 2


@pytest.mark.parametrize("pairs", [1, 2, 3])
def test_packed_stack_is_the_matrix_bit_for_bit(pairs: int) -> None:
    stack = random_stack(rows=70, cols=172, pairs=pairs)
    assert np.array_equal(dequantize(pack_stack(stack)), stack.weight().detach().numpy())


@pytest.mark.parametrize("pairs", [1, 2, 3])
def test_latents_survive_a_byte(pairs: int) -> None:
    stack = random_stack(pairs=pairs)
    unit, c = stack_codes(stack.alphas)
    stored = encode_stack(stack.latent, unit, c)
    again = decode_stack(stored, unit, c)
    code, value = nearest(stack.latent, unit, c)
    assert torch.equal(nearest(again, unit, c)[1], value)
    _, below, above = cells(unit, c, code)
    inside = (stack.latent - value <= above) & (value - stack.latent <= below)
    positions = {1: 64, 2: 16, 3: 4}[pairs]
    off = (again - stack.latent).abs() / torch.maximum(below, above)
    assert off[inside].max() <= 1.01 / positions


def test_a_fit_that_is_not_the_nearest_level_is_kept() -> None:
    rng = np.random.default_rng(1)
    weight = rng.normal(size=(16, 64)).astype(np.float32)
    mixed = (rng.normal(size=(64, 64)) * np.geomspace(1, 0.05, 64)).astype(np.float32)
    fitted = fit(weight, 4, hessians=[mixed @ mixed.T]).tensor
    stack = Stack(16, 64, 2)
    stack.load(torch.from_numpy(weight), fitted)
    expected = dequantize(fitted)
    off = np.abs(stack.weight().detach().numpy() - expected)
    assert (off < 0.05 * np.abs(expected).max()).mean() > 0.99


def test_a_matrix_of_a_layer_multiplies() -> None:
    matrix = FDBStack(9, 100, 2)
    weight = np.random.default_rng(0).normal(size=(9, 100)).astype(np.float32)
    matrix.load(torch.from_numpy(weight), fit(weight, 4).tensor)
    x = torch.randn(3, 5, 100)
    torch.testing.assert_close(matrix(x), x @ matrix.weight().t())
    plain = matrix(x)
    matrix.quantize_input = True
    assert 0 < (matrix(x) - plain).abs().max() < 0.05 * plain.abs().max()
