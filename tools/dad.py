"""Deviation-Aware Distillation (arXiv 2402.11960, section 3.3): the loss and its gradient.

Each token's distillation loss is weighted by ``H(Pt)^gamma * H(Ps)^(1-gamma)``, the entropies of
the teacher's and the student's next-token distributions, so that training dwells on uncertain
tokens. The weight is a constant for the gradient and has mean 1 over the batch.

Logits are made for a chunk of tokens at a time, and the gradient of the chunk is taken at once:
memory is ``chunk * vocabulary`` however long the batch is, and nothing is computed twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .head import Head

IGNORE = -1  # target of a token that has no successor


@dataclass(frozen=True)
class LossOptions:
    """What is minimized: ``weight * ((1 - ce_share) * KL + ce_share * CE)``, averaged over tokens.

    weight = ``(1 - plain_share) * dad + plain_share``, where dad is the twin-entropy weight;
    gamma None means no such weight: plain KL, the control. hidden: that many times the squared
    distance of the last hidden states, as a share of the teacher's own square, is added.
    """

    gamma: float | None = None
    plain_share: float = 0.0
    ce_share: float = 0.0
    hidden: float = 0.0
    chunk: int = 4096

    def __post_init__(self) -> None:
        if not self.hidden >= 0:
            raise ValueError(f"hidden = {self.hidden}: expected 0 or more")
        for name in ("gamma", "plain_share", "ce_share"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} = {value}: expected 0 to 1")
        if self.chunk < 1:
            raise ValueError(f"chunk = {self.chunk}: expected at least one token")


class TokenTerms(NamedTuple):
    """Per token, float32 ``[n]``, and the gradients of KL and CE by the student's logits."""

    kl: Tensor
    ce: Tensor
    entropy_teacher: Tensor
    entropy_student: Tensor
    grad: Tensor  # [n, vocabulary], of (1 - ce_share) * kl + ce_share * ce, in the logits' type


def token_terms(student: Tensor, teacher: Tensor, targets: Tensor, ce_share: float) -> TokenTerms:
    """Losses, entropies and the gradient for logits ``[n, vocabulary]``; targets int64 ``[n]``."""
    dtype = student.dtype
    log_ps = torch.log_softmax(student.float(), dim=-1)
    log_pt = torch.log_softmax(teacher.float(), dim=-1)
    ps, pt = log_ps.exp(), log_pt.exp()
    kl = (pt * (log_pt - log_ps)).sum(-1)
    entropy_teacher = -(pt * log_pt).sum(-1)
    entropy_student = -(ps * log_ps).sum(-1)
    known = targets != IGNORE
    index = targets.clamp_min(0)[:, None]
    ce = torch.where(known, -log_ps.gather(1, index)[:, 0], 0.0)
    grad = ps - (1 - ce_share) * pt
    if ce_share:
        # A token without successor has no cross-entropy, so its share of Ps goes too.
        words = torch.arange(ps.shape[1], device=ps.device)
        hit = ((words == index) & known[:, None]).float()
        grad = grad - ce_share * torch.where(known[:, None], hit, ps)
    return TokenTerms(kl, ce, entropy_teacher, entropy_student, grad.to(dtype))


def twin_entropy(entropy_teacher: Tensor, entropy_student: Tensor, gamma: float) -> Tensor:
    """``H(Pt)^gamma * H(Ps)^(1-gamma)`` per token, before it is scaled to mean 1."""
    # An entropy may come out a hair below zero for a certain prediction.
    return entropy_teacher.clamp_min(0) ** gamma * entropy_student.clamp_min(0) ** (1 - gamma)


class TokenLosses(NamedTuple):
    """What each token cost, in the targets' shape, without gradient."""

    kl: Tensor
    ce: Tensor
    entropy_teacher: Tensor
    entropy_student: Tensor


Terms = Callable[[Tensor, Tensor, Tensor, float], TokenTerms]


class _Distill(torch.autograd.Function):
    """The whole loss as one node whose gradients are ready when the forward returns."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight_of_head: Tensor,
        teacher_hidden: Tensor,
        teacher_weight: Tensor,
        caps: tuple[float | None, float | None],
        targets: Tensor,
        options: LossOptions,
        terms: Terms,
    ) -> tuple[Tensor, Tensor]:
        n, device = hidden.shape[0], hidden.device.type
        mixed = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if mixed else weight_of_head.dtype
        head, teacher_head = (  # once, not per chunk
            Head(weight.to(dtype), cap)
            for weight, cap in zip((weight_of_head, teacher_weight), caps, strict=True)
        )
        weighted = options.gamma is not None
        plain = options.plain_share if weighted else 1.0
        head_learns = ctx.needs_input_grad[1]
        per_token = torch.empty(5, n, device=hidden.device)  # kl, ce, Ht, Hs, weight
        grad_hidden = torch.empty_like(hidden)
        # sum over tokens of gradient x hidden: with the twin-entropy weight, and plain. They are
        # kept apart because the weight's mean is known only after the last chunk.
        grad_heads = [
            torch.zeros_like(weight_of_head) if head_learns and used else None
            for used in (weighted and plain < 1, plain > 0)
        ]
        for start in range(0, n, options.chunk):
            rows = slice(start, min(start + options.chunk, n))
            logits = head.logits(hidden[rows])
            teachers = teacher_head.logits(teacher_hidden[rows])
            found = terms(logits, teachers, targets[rows], options.ce_share)
            by_products = head.by_products(found.grad, logits).to(dtype)
            for i, term in enumerate(found[:4]):
                per_token[i, rows] = term
            if weighted:
                assert options.gamma is not None
                per_token[4, rows] = twin_entropy(found[2], found[3], options.gamma)
            grad_hidden[rows] = by_products @ head.weight
            for scale, total in zip((per_token[4, rows, None], None), grad_heads, strict=True):
                if total is not None:
                    grad = by_products if scale is None else by_products * scale.to(dtype)
                    total += grad.t() @ hidden[rows].to(dtype)
        weight = torch.ones_like(per_token[4])
        if weighted:
            mean = per_token[4].mean().clamp_min(torch.finfo(torch.float32).tiny)
            weight = (1 - plain) * per_token[4] / mean + plain
        grad_hidden *= weight[:, None] / n
        ctx.grad_head = None
        if head_learns:
            ctx.grad_head = torch.zeros_like(weight_of_head)
            if grad_heads[0] is not None:
                ctx.grad_head += grad_heads[0] * ((1 - plain) / (mean * n))
            if grad_heads[1] is not None:
                ctx.grad_head += grad_heads[1] * (plain / n)
        ctx.save_for_backward(grad_hidden)
        ce_share = options.ce_share
        loss = (weight * ((1 - ce_share) * per_token[0] + ce_share * per_token[1])).mean()
        ctx.mark_non_differentiable(per_token)
        return loss, per_token

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        (grad_hidden,) = ctx.saved_tensors
        grad_head = None if ctx.grad_head is None else ctx.grad_head * grad
        return grad_hidden * grad, grad_head, *[None] * 6


def distillation_loss(
    hidden: Tensor,
    head: Head,
    teacher_hidden: Tensor,
    teacher_head: Head,
    targets: Tensor,
    options: LossOptions,
    terms: Terms = token_terms,
) -> tuple[Tensor, TokenLosses]:
    """The loss (a scalar with gradients to ``hidden`` and the head's matrix), and its terms by
    token.

    hidden, teacher_hidden ``[..., d]`` before the heads; targets int64
    ``[...]`` with ``IGNORE`` where the next token is unknown. ``terms`` may be a compiled
    ``token_terms``.
    """
    loss, per_token = _Distill.apply(
        hidden.flatten(0, -2),
        head.weight,
        teacher_hidden.flatten(0, -2),
        teacher_head.weight,
        (head.cap, teacher_head.cap),
        targets.flatten(),
        options,
        terms,
    )
    if options.hidden:
        difference = (hidden.float() - teacher_hidden.float()).square().mean()
        loss = loss + options.hidden * difference / teacher_hidden.float().square().mean()
    return loss, TokenLosses(*(term.view_as(targets) for term in per_token[:4]))
