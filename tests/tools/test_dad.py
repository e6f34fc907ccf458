"""The distillation loss against a plain float64 computation."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install '.[train]'")

from tools.dad import IGNORE, LossOptions, distillation_loss  # noqa: E402
from tools.head import Head  # noqa: E402

VOCABULARY, HIDDEN, TOKENS = 50, 8, 23


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def capped(logits: np.ndarray, cap: float | None) -> np.ndarray:
    return logits if cap is None else cap * np.tanh(logits / cap)


def oracle(hidden, head, teacher, teacher_head, targets, options, weight=None, caps=(None, None)):
    """Loss and weights in float64, straight from the formulas. A given weight is kept."""
    ls = log_softmax(capped(hidden @ head.T, caps[0]))
    lt = log_softmax(capped(teacher @ teacher_head.T, caps[1]))
    ps, pt = np.exp(ls), np.exp(lt)
    kl = (pt * (lt - ls)).sum(-1)
    ce = np.where(targets == IGNORE, 0, -ls[np.arange(len(ls)), np.maximum(targets, 0)])
    if weight is None:
        weight = np.ones(len(ls))
        if options.gamma is not None:
            ht, hs = -(pt * lt).sum(-1), -(ps * ls).sum(-1)
            dad = ht**options.gamma * hs ** (1 - options.gamma)
            weight = (1 - options.plain_share) * dad / dad.mean() + options.plain_share
    loss = (weight * ((1 - options.ce_share) * kl + options.ce_share * ce)).mean()
    apart = ((hidden - teacher) ** 2).mean() / (teacher**2).mean()
    return loss + options.hidden * apart, weight


OPTIONS = [
    LossOptions(chunk=7),
    LossOptions(gamma=0.0, chunk=7),
    LossOptions(gamma=0.1, chunk=7),
    LossOptions(gamma=1.0, chunk=100),
    LossOptions(gamma=0.3, plain_share=0.4, chunk=5),
    LossOptions(gamma=0.5, plain_share=1.0, chunk=5),
    LossOptions(ce_share=0.3, chunk=6),
    LossOptions(gamma=0.2, plain_share=0.5, ce_share=1.0, chunk=6),
    LossOptions(gamma=0.3, hidden=0.7, chunk=7),
]


CASES = [*((options, (None, None)) for options in OPTIONS), (OPTIONS[4], (2.0, 3.0))]


@pytest.mark.parametrize(("options", "caps"), CASES, ids=str)
def test_loss_and_gradients_match_float64(options: LossOptions, caps: tuple) -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=s) for s in ((TOKENS, HIDDEN), (VOCABULARY, HIDDEN)) * 2]
    targets = rng.integers(0, VOCABULARY, TOKENS)
    targets[-1] = IGNORE
    expected, weight = oracle(*arrays, targets, options, caps=caps)
    hidden, head, teacher, teacher_head = (torch.from_numpy(a).float() for a in arrays)
    hidden.requires_grad_()
    head.requires_grad_()
    mine, theirs = Head(head, caps[0]), Head(teacher_head, caps[1])
    loss, tokens = distillation_loss(
        hidden, mine, teacher, theirs, torch.from_numpy(targets), options
    )
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert weight.mean() == pytest.approx(1)
    assert tokens.kl.mean().item() == pytest.approx(
        oracle(*arrays, targets, LossOptions(), caps=caps)[0], rel=1e-5
    )
    loss.backward()
    for which, grad in ((0, hidden.grad), (1, head.grad)):
        for _ in range(6):
            at = tuple(rng.integers(0, n) for n in arrays[which].shape)
            found = []
            for move in (1e-5, -1e-5):
                moved = [a.copy() for a in arrays]
                moved[which][at] += move
                # No gradient through the weight: it stays what it was.
                found.append(oracle(*moved, targets, options, weight, caps)[0])
            slope = (found[0] - found[1]) / 2e-5
            assert grad[at].item() == pytest.approx(slope, rel=1e-3, abs=1e-6)


def test_chunks_do_not_change_the_result() -> None:
    torch.manual_seed(0)
    states = [torch.randn(2, TOKENS, HIDDEN) for _ in range(2)]
    heads = [Head(torch.randn(VOCABULARY, HIDDEN)) for _ in range(2)]
    tensors = (states[0], heads[0], states[1], heads[1])
    targets = torch.randint(0, VOCABULARY, (2, TOKENS))
    losses = [
        distillation_loss(*tensors, targets, LossOptions(gamma=0.1, chunk=chunk))[0].item()
        for chunk in (1, 10, 46, 1000)
    ]
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-5)


def test_certain_tokens_give_no_nan() -> None:
    head = Head(torch.eye(4) * 1000)
    hidden = torch.eye(4, requires_grad=True)
    loss, _ = distillation_loss(
        hidden, head, torch.eye(4), head, torch.zeros(4, dtype=torch.int64), LossOptions(gamma=0.1)
    )
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(hidden.grad).all()


def test_frozen_head_gets_no_gradient() -> None:
    hidden = torch.randn(3, HIDDEN, requires_grad=True)
    head = Head(torch.randn(VOCABULARY, HIDDEN))
    loss, _ = distillation_loss(
        hidden, head, torch.randn(3, HIDDEN), head, torch.zeros(3, dtype=torch.int64), LossOptions()
    )
    loss.backward()
    assert hidden.grad is not None and head.weight.grad is None


@pytest.mark.parametrize("wrong", [{"gamma": 1.5}, {"ce_share": -0.1}, {"chunk": 0}])
def test_options_out_of_range_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        LossOptions(**wrong)
