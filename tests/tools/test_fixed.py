"""Matrices whose planes stay while their scales move."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install '.[train]'")
torch.set_num_threads(1)  # more cost more than they give on matrices this small

from edgedb.convert.fdb import fit  # noqa: E402
from tools.fixed import Fixed  # noqa: E402
from tools.stacks import FDBStack, nearest, project_stack, stack_codes  # noqa: E402
from tools.student import FDBLinear, fit_scales, planes, project  # noqa: E402


def matrix(n_planes: int) -> FDBLinear | FDBStack:
    weight = torch.randn(6, 100, generator=torch.Generator().manual_seed(n_planes))
    if n_planes == 2:
        module = FDBLinear(6, 100)
        module.load(weight, *fit_scales(weight))
        return module
    stack = FDBStack(6, 100, n_planes)
    stack.load(weight, fit(weight.numpy(), n_planes).tensor)
    return stack


def code_of(module: FDBLinear | FDBStack) -> torch.Tensor:
    if isinstance(module, FDBStack):
        return nearest(module.latent, *stack_codes(module.alphas))[0]
    unit, c1, c2 = module.codes()
    return torch.stack(planes(module.latent, unit * c1, unit * c2))


@pytest.mark.parametrize("n_planes", [2, 3, 4, 6])
def test_it_multiplies_as_its_matrix_does(n_planes: int) -> None:
    module, x = matrix(n_planes), torch.randn(2, 3, 100)
    expected = module(x)
    fixed = Fixed(module)
    assert module.latent.numel() == 0 and fixed.stored.dtype == torch.uint8
    torch.testing.assert_close(fixed(x), expected)


@pytest.mark.parametrize("n_planes", [2, 3, 4, 6])
def test_scales_have_the_gradients_of_the_matrix(n_planes: int) -> None:
    module, x = matrix(n_planes), torch.randn(4, 100)
    names = ["alphas"] if n_planes > 2 else ["alpha1", "alpha2"]
    module(x).square().sum().backward()
    expected = [getattr(module, name).grad.clone() for name in names]
    module.zero_grad()
    fixed = Fixed(module)
    fixed(x).square().sum().backward()
    for scale, gradient in zip(fixed.scales(), expected, strict=True):
        torch.testing.assert_close(scale.grad, gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("n_planes", [2, 3, 4, 6])
def test_planes_stay_however_the_scales_move(n_planes: int) -> None:
    module, x = matrix(n_planes), torch.randn(4, 100)
    before, fixed = code_of(module), Fixed(module)
    with torch.no_grad():
        for scale in fixed.scales():
            scale *= 1 + 0.3 * torch.rand(scale.shape)
    (project([module]) if n_planes == 2 else project_stack(module))
    expected = fixed(x)
    loose = fixed.loosened()
    assert torch.equal(code_of(loose), before)
    torch.testing.assert_close(loose(x), expected)


@pytest.mark.parametrize("n_planes", [2, 3, 4, 6])
def test_held_weights_give_the_same_gradients(n_planes: int) -> None:
    fixed, parts = Fixed(matrix(n_planes)), torch.randn(2, 4, 100)
    gradients = []
    for held in (False, True):
        if held:
            fixed.hold()
        products = []
        for x in parts:  # passes of one step
            products.append(fixed(x))
            products[-1].square().sum().backward()
        if held:
            assert all(scale.grad is None for scale in fixed.scales())
            fixed.release()
        gradients.append([*products, *(scale.grad for scale in fixed.scales())])
        fixed.zero_grad()
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        for scale in fixed.scales():
            scale *= 2
    assert not torch.allclose(fixed(parts[0]), products[0])  # released
