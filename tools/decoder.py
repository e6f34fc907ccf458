"""A Llama decoder in PyTorch, for training: teacher and student differ in their matrices alone.

Names and fused matrices are those of ``Program.matrices()``, so that weights travel
between checkpoint, student and ``.dbb`` without a table of names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from edgedb.errors import UnsupportedModelError
from edgedb.model.config import ModelConfig
from edgedb.model.families import program_of

from . import parallel

Float32 = NDArray[np.float32]

# Makes the matrix ``[rows, cols]`` of a given name.
LinearFactory = Callable[[str, int, int], nn.Module]


class WeightSource(Protocol):
    """The part of ``edgedb.convert.sources.Source`` that a decoder needs."""

    config: ModelConfig

    def tensor(self, name: str) -> Float32: ...


def dense_linear(name: str, rows: int, cols: int) -> nn.Module:
    """A plain matrix without bias."""
    return nn.Linear(cols, rows, bias=False)


class RMSNorm(nn.Module):
    """``x / rms(x) * weight``, in float32 whatever the matrices run in."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


def rope_frequencies(config: ModelConfig, device: torch.device | str = "cpu") -> Tensor:
    """Radians per position of each rotary pair, float64 ``[head_dim / 2]``."""
    n = config.head_dim // 2
    exponents = -torch.arange(n, dtype=torch.float64, device=device) / n
    frequencies = config.rope_theta**exponents
    scaling = config.rope_scaling
    if scaling.type == "linear":
        return frequencies / scaling.factor
    if scaling.type == "llama3":
        turns = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)
        span = scaling.high_freq_factor - scaling.low_freq_factor
        blend = ((turns - scaling.low_freq_factor) / span).clamp(0, 1)
        return frequencies * ((1 - blend) / scaling.factor + blend)
    return frequencies


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of ``[..., head_dim]``, Hugging Face's halves: pairs ``(i, i + half)``."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class Block(nn.Module):
    """One layer: attention and feed-forward, each added to the residual stream."""

    def __init__(self, config: ModelConfig, index: int, linear: LinearFactory) -> None:
        super().__init__()
        self.config = config
        d, f = config.hidden_size, config.intermediate_size
        name = f"layers.{index}."
        self.attn_norm = RMSNorm(d, config.norm_eps)
        self.attn_qkv = linear(name + "attn_qkv", config.qkv_size, d)
        self.attn_out = linear(name + "attn_out", d, config.q_size)
        self.mlp_norm = RMSNorm(d, config.norm_eps)
        self.mlp_gate_up = linear(name + "mlp_gate_up", 2 * f, d)
        self.mlp_down = linear(name + "mlp_down", d, f)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """``x [batch, tokens, hidden]`` float32; ``cos, sin [tokens, 1, head_dim / 2]``."""
        x = x + self.attn_out(self._attention(self.attn_qkv(self.attn_norm(x)), cos, sin))
        gate, up = self.mlp_gate_up(self.mlp_norm(x)).chunk(2, dim=-1)
        return x + self.mlp_down(F.silu(gate) * up)

    def _attention(self, qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, n, _ = qkv.shape
        config = self.config
        heads = qkv.view(batch, n, -1, config.head_dim)
        q, k, v = heads.split((config.n_heads, config.n_kv_heads, config.n_kv_heads), dim=2)
        q = rotate(q, cos, sin).to(qkv.dtype).transpose(1, 2)
        k = rotate(k, cos, sin).to(qkv.dtype).transpose(1, 2)
        shared = config.n_heads // config.n_kv_heads
        k = k.repeat_interleave(shared, dim=1)
        v = v.transpose(1, 2).repeat_interleave(shared, dim=1)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return out.transpose(1, 2).reshape(batch, n, config.q_size)


class Decoder(nn.Module):
    """Token ids to the hidden state before the head, which the loss applies in pieces.

    ``embedding`` and ``untied_head`` are parameters ``[vocabulary, hidden]``, or modules that make
    such a matrix when called.
    """

    embedding: nn.Parameter | nn.Module
    untied_head: nn.Parameter | nn.Module

    def __init__(self, config: ModelConfig, linear: LinearFactory = dense_linear) -> None:
        """Raises ``UnsupportedModelError`` for a model whose pass is not Llama's."""
        super().__init__()
        refuse_other_passes(config)
        self.config = config
        self.embedding = nn.Parameter(torch.zeros(config.vocab_size, config.hidden_size))
        self.layers = nn.ModuleList(Block(config, i, linear) for i in range(config.n_layers))
        self.final_norm = RMSNorm(config.hidden_size, config.norm_eps)
        if not config.tie_word_embeddings:
            self.untied_head = nn.Parameter(torch.zeros(config.vocab_size, config.hidden_size))

    @property
    def device(self) -> torch.device:
        return self.final_norm.weight.device

    def rope(self, n: int) -> tuple[Tensor, Tensor]:
        """cos and sin of positions ``0 .. n - 1``, float32 ``[n, 1, head_dim / 2]``."""
        positions = torch.arange(n, dtype=torch.float64, device=self.device)
        angles = positions[:, None, None] * rope_frequencies(self.config, self.device)
        return angles.cos().float(), angles.sin().float()

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Ids int64 ``[batch, tokens]`` to float32 ``[batch, tokens, hidden]`` after the last norm.

        With it comes the head ``[vocabulary, hidden]``: the embedding itself where they are tied.
        """
        table = _matrix(self.embedding)
        x = F.embedding(ids, table).float()
        cos, sin = self.rope(ids.shape[1])
        for layer in self.layers:
            x = layer(x, cos, sin)
        head = table if self.config.tie_word_embeddings else _matrix(self.untied_head)
        # Never the parameter itself: FSDP hooks every output, and on a leaf hooks would pile up.
        return self.final_norm(x), head.view_as(head) if head.is_leaf else head

    def logits(self, ids: Tensor) -> Tensor:
        """``[batch, tokens, vocabulary]`` in one piece: for short texts and tests."""
        return F.linear(*self(ids))

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Layer by layer: thirty equal layers are one graph, built in seconds.

        What is compiled is ``forward`` and not the call, so that hooks (of FSDP) run around it.
        """
        parts = [*self.layers, *(t for t in self.tables().values() if isinstance(t, nn.Module))]
        for part in parts:
            plain = type(part).forward.__get__(part)  # whatever was compiled before
            part.forward = torch.compile(plain, dynamic=False)

    def tables(self) -> dict[str, nn.Parameter | nn.Module]:
        """Embedding and, where there is one, the separate head, by edgedb name."""
        found = {"embedding": self.embedding}
        if not self.config.tie_word_embeddings:
            found["head"] = self.untied_head
        return found

    def set_table(self, name: str, table: nn.Module) -> None:
        """Put a module in the place of "embedding" or "head"."""
        attribute = {"embedding": "embedding", "head": "untied_head"}[name]
        delattr(self, attribute)
        setattr(self, attribute, table)

    def matrices(self) -> Iterator[tuple[str, nn.Module]]:
        """edgedb name and module of every matrix inside the layers, in the order of a forward."""
        for i, layer in enumerate(self.layers):
            for kind in ("attn_qkv", "attn_out", "mlp_gate_up", "mlp_down"):
                yield f"layers.{i}.{kind}", getattr(layer, kind)

    def norms(self) -> Iterator[tuple[str, nn.Parameter]]:
        """edgedb name and weight of every norm, in the order of a forward."""
        for i, layer in enumerate(self.layers):
            yield f"layers.{i}.attn_norm", layer.attn_norm.weight
            yield f"layers.{i}.mlp_norm", layer.mlp_norm.weight
        yield "final_norm", self.final_norm.weight


def refuse_other_passes(config: ModelConfig) -> None:
    """Nothing that a family's program has may be forgotten here without a word."""
    plain = ModelConfig.from_dict(
        {k: v for k, v in config.to_dict().items() if k not in ("version", "features")}
        | {"model_type": "llama"}
    )
    mine, llama = (
        [block.signature for _, block in program_of(c).blocks()] for c in (config, plain)
    )
    if mine != llama or config.rope_scaling.type == "yarn":
        raise UnsupportedModelError(
            f"{config.model_type}: training runs Llama's pass, and this model has more than that; "
            "convert it without training"
        )


def _matrix(table: nn.Parameter | nn.Module) -> Tensor:
    return table() if isinstance(table, nn.Module) else table


def uncompiled() -> AbstractContextManager[Any]:
    """Compiled parts run eagerly inside: another length must not build every graph again."""
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


def load_teacher(
    source: WeightSource, device: torch.device | str = "cpu", *, sharded: bool = False
) -> Decoder:
    """The full-precision model of a checkpoint, float32, frozen; in pieces where ``sharded``."""
    teacher = parallel.build(lambda: Decoder(source.config), device, sharded=sharded)

    def copy(parameter: Tensor, name: str) -> None:
        # A source may hand out read-only views of its file, which torch does not like to share.
        parallel.assign(parameter, torch.from_numpy(np.array(source.tensor(name))))

    with torch.no_grad():
        for name, norm in teacher.norms():
            copy(norm, name)
        for name, module in teacher.matrices():
            copy(module.weight, name)
        for name, table in teacher.tables().items():
            assert isinstance(table, nn.Parameter)
            copy(table, name)
    return teacher.requires_grad_(False).eval()


@torch.no_grad()
def mean_square_inputs(model: Decoder, ids: Tensor) -> dict[str, Tensor]:
    """Mean square of each matrix's input columns over ``ids [batch, tokens]``: name -> ``[cols]``.

    The importance that the activation-weighted start minimizes its error by.
    """
    found: dict[str, Tensor] = {}
    hooks = []
    for name, module in model.matrices():

        def keep(_: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
            found[name] = inputs[0].float().square().mean(dim=(0, 1))

        hooks.append(module.register_forward_pre_hook(keep))
    try:
        with uncompiled():
            model(ids)
    finally:
        for hook in hooks:
            hook.remove()
    return found
