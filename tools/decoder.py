"""A model in PyTorch, for training: teacher and student differ in their matrices alone.

What it computes is its program, which ``tools.interpreter`` runs. Weights have the names of
``Program.matrices()`` and ``Program.vectors()``, so that they travel between checkpoint, student
and ``.dbb`` without a table of names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from edgedb.errors import EdgeDBError, UnsupportedModelError
from edgedb.model.config import ModelConfig
from edgedb.model.families import program_of
from edgedb.ops.program import Block, Program
from edgedb.ops.values import Value

from . import parallel
from .head import Head
from .interpreter import (
    Attend,
    Turns,
    Where,
    interpret,
    steps_of,
    turns_of,
    values,
    whole_sequences,
)

Float32 = NDArray[np.float32]

# What the loss takes for a head.
_HEADS = (["input", "linear"], ["input", "linear", "softcap"])
MAX_GRAPHS = 64  # of layers, that may be compiled

# Makes the matrix ``[rows, cols]`` of a given name.
MatrixFactory = Callable[[str, int, int], nn.Module | nn.Parameter]


class WeightSource(Protocol):
    """The part of ``edgedb.convert.sources.Source`` that a decoder needs."""

    config: ModelConfig

    def tensor(self, name: str) -> Float32: ...


class Dense(nn.Module):
    """``y = W x`` in the type of the weights, which are undefined until they are filled."""

    def __init__(self, rows: int, cols: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, cols))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.to(self.weight.dtype), self.weight)


def dense(name: str, rows: int, cols: int) -> nn.Module:
    """A plain matrix."""
    return Dense(rows, cols)


class Part(nn.Module):
    """A part of a program with its weights: attributes of their names, ``.`` written ``_``."""

    def __init__(self) -> None:
        super().__init__()
        self._attributes: dict[str, str] = {}  # of a weight, by its name

    def own(self, block: Block, prefix: str, make: MatrixFactory) -> None:
        """Make the weights of ``block``; outside of it their names begin with ``prefix``."""
        for name, (rows, cols) in block.matrices.items():
            if name in self._attributes:
                continue
            if (count := block.stacks.get(name)) is not None:
                self.put(name, nn.Parameter(torch.empty(count, rows, cols)))
            else:
                self.put(name, make(prefix + name, rows, cols))
        for name, length in block.vectors.items():
            self.put(name, nn.Parameter(torch.empty(length)))

    def put(self, name: str, weight: nn.Module | nn.Parameter) -> None:
        """Have a weight, in the place of the one that may have been there."""
        attribute = self._attributes.setdefault(name, name.replace(".", "_"))
        if hasattr(self, attribute):
            delattr(self, attribute)
        setattr(self, attribute, weight)

    def weights(self) -> dict[str, Any]:
        """Parameters and modules by name. Looked up at each pass: FSDP exchanges them."""
        return {name: getattr(self, attribute) for name, attribute in self._attributes.items()}


class Layer(Part):
    """One layer of a program."""

    def __init__(self, program: Program, index: int, make: MatrixFactory) -> None:
        super().__init__()
        block = program.kinds[program.layers[index]]
        self.block, self._steps = block, steps_of(block, program.ropes())
        self.own(block, f"layers.{index}.", make)

    def forward(self, x: Tensor, turns: Turns, attend: Attend = whole_sequences) -> Tensor:
        """The residual stream ``x [batch, tokens, hidden]``, float32, one layer on."""
        return interpret(self._steps, Where(self.weights(), turns, attend), x)

    def values(self, x: Tensor, turns: Turns) -> dict[Value, Tensor]:
        """Every value of its block, ``[batch, tokens, width]``."""
        found = values(self._steps, Where(self.weights(), turns, whole_sequences), x)
        return dict(zip(self.block.operations, found, strict=True))


class Ends(Part):
    """What stands before and after the layers of a model: embedding, last norm, head.

    Tables, which are the embedding, a separate head and learned positions, are parameters ``[rows,
    hidden]``, or modules that make such a matrix when called.
    """

    def __init__(self, config: ModelConfig, make: MatrixFactory = dense) -> None:
        """``make`` makes the matrices that are no tables; all weights are undefined.

        Raises ``UnsupportedModelError`` for a head that is more than a product and its cap.
        """
        super().__init__()
        self.config, self.program = config, program_of(config)
        first, final, head = self.program.first, self.program.final, self.program.head
        if [v.op for v in head.operations] not in _HEADS:
            raise UnsupportedModelError(
                f"{config.model_type}: the loss multiplies with the head and caps its logits, "
                "and this model's take more; convert it without training"
            )
        self._cap = head.output["cap"] if head.output.op == "softcap" else None
        (self.head_name,), self._head_bias = head.matrices, next(iter(head.vectors), None)
        self._tables = tuple(self.program.tables())

        def make_any(name: str, rows: int, cols: int) -> nn.Module | nn.Parameter:
            if name in self._tables:
                return nn.Parameter(torch.empty(rows, cols))
            return make(name, rows, cols)

        for block in (first, final, head):
            self.own(block, "", make_any)
        self._ropes = tuple(self.program.ropes())
        self._first, self._final = (steps_of(block, self._ropes) for block in (first, final))

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def turns(self, n: int) -> Turns:
        """What heads turn by at positions ``0 .. n - 1``.

        Raises ``EdgeDBError`` where positions are learned, and fewer.
        """
        positions = self.program.positions()
        if positions is not None and n > positions:
            raise EdgeDBError(
                f"texts of {n:,} tokens: this model has learned positions for {positions:,} "
                "and cannot read further"
            )
        return turns_of(self._ropes, n, self.device)

    def tables(self) -> dict[str, nn.Parameter | nn.Module]:
        """The program's ``tables``, by edgedb name."""
        weights = self.weights()
        return {name: weights[name] for name in self._tables}

    def around(self, turns: Turns) -> Where:
        """What ``enter`` and ``leave`` run with: tables are matrices, made once for both."""
        weights = self.weights()
        tables = {name: _matrix(weights[name]) for name in self._tables}
        return Where({**weights, **tables}, turns, whole_sequences)

    def enter(self, ids: Tensor, where: Where) -> Tensor:
        """Ids int64 ``[batch, tokens]`` to what the first layer reads, float32."""
        return interpret(self._first, where, ids)

    def leave(self, x: Tensor, where: Where) -> tuple[Tensor, Head]:
        """What the last layer gives to what the head multiplies, and the head."""
        head = self.head_of(where)
        return before(head, self.last(x, where)), head

    def last(self, x: Tensor, where: Where) -> Tensor:
        """What the last layer gives through the final norm, of the same shape."""
        return interpret(self._final, where, x)

    def head_of(self, where: Where) -> Head:
        """What makes logits; a bias is one more column of its matrix (see ``before``)."""
        weight = where.weights[self.head_name]
        assert isinstance(weight, Tensor)
        if self._head_bias is not None:
            bias = where.weights[self._head_bias]
            assert isinstance(bias, Tensor)
            return Head(torch.cat((weight, bias[:, None].to(weight.dtype)), dim=1), self._cap)
        # Never the parameter itself: FSDP hooks every output, and on a leaf hooks would pile up.
        return Head(weight.view_as(weight) if weight.is_leaf else weight, self._cap)


def before(head: Head, x: Tensor) -> Tensor:
    """``x`` as ``head`` multiplies it: a bias is a last column, of an input that is always 1, so
    that a loss which multiplies with the head and no more knows none."""
    if x.shape[-1] == head.weight.shape[1]:
        return x
    return torch.cat((x, x.new_ones(*x.shape[:-1], 1)), dim=-1)


class Decoder(Ends):
    """Token ids to the hidden state before the head, which the loss applies in pieces."""

    def __init__(self, config: ModelConfig, make: MatrixFactory = dense) -> None:
        """As ``Ends``."""
        super().__init__(config, make)
        self.layers = nn.ModuleList(Layer(self.program, i, make) for i in range(config.n_layers))

    def forward(
        self, ids: Tensor, turns: Turns | None = None, attends: Sequence[Attend] | None = None
    ) -> tuple[Tensor, Head]:
        """Ids int64 ``[batch, tokens]`` to the head's input, float32 ``[batch, tokens, hidden]``.

        With it comes the head, whose matrix is the embedding itself where they are tied. With a
        bias both are one column wider (see ``before``).
        turns: of the tokens' positions, where those are not ``0 .. tokens - 1``. attends: each
        layer's attention, where it is not over whole sequences.
        """
        turns = self.turns(ids.shape[1]) if turns is None else turns
        attends = [whole_sequences] * len(self.layers) if attends is None else attends
        where = self.around(turns)
        x = self.enter(ids, where)
        for layer, attend in zip(self.layers, attends, strict=True):
            x = layer(x, turns, attend)
        return self.leave(x, where)

    def logits(self, ids: Tensor) -> Tensor:
        """``[batch, tokens, vocabulary]`` in one piece: for short texts and tests."""
        hidden, head = self(ids)
        return head.logits(hidden)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Layer by layer: layers of one kind are one graph, built in seconds."""
        compile_parts(
            [*self.layers, *(t for t in self.tables().values() if isinstance(t, nn.Module))]
        )

    def matrices(self) -> Iterator[tuple[str, nn.Module]]:
        """edgedb name and module of every matrix but tables, in the order of a pass."""
        weights = self._all()
        return ((n, weights[n]) for n in self.program.matrices() if n not in self._tables)

    def vectors(self) -> Iterator[tuple[str, nn.Parameter]]:
        """edgedb name and values of every norm and bias, in the order of a pass."""
        weights = self._all()
        return ((name, weights[name]) for name in self.program.vectors())

    def _all(self) -> dict[str, Any]:
        found = self.weights()
        for i, layer in enumerate(self.layers):
            assert isinstance(layer, Layer)
            found |= {f"layers.{i}.{name}": weight for name, weight in layer.weights().items()}
        return found


def compile_parts(parts: Sequence[nn.Module]) -> None:
    """What is compiled is ``forward`` and not the call, so that hooks (of FSDP) run around it."""
    # Every kind of layer, mix of pairs, and length of text is a graph of one function.
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, MAX_GRAPHS)
    for part in parts:
        plain = type(part).forward.__get__(part)  # whatever was compiled before
        part.forward = torch.compile(plain, dynamic=False, fullgraph=True)


def _matrix(table: nn.Parameter | nn.Module) -> Tensor:
    return table() if isinstance(table, nn.Module) else table


def in_type(model: Decoder, dtype: torch.dtype) -> Decoder:
    """A plain model with its matrices in another type; what has the type already is shared."""
    with torch.device("meta"):
        out = Decoder(model.config)
    state = {
        name: weight.to(dtype) if weight.ndim > 1 else weight
        for name, weight in model.state_dict().items()
    }
    out.load_state_dict(state, assign=True)
    return out


def uncompiled() -> AbstractContextManager[Any]:
    """Compiled parts run eagerly inside: another length must not build every graph again."""
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


def load_teacher(
    source: WeightSource, device: torch.device | str = "cpu", *, sharded: bool = False
) -> Decoder:
    """The full-precision model of a checkpoint, float32, frozen; in pieces where ``sharded``."""
    teacher = parallel.build(lambda: Decoder(source.config), device, sharded=sharded)
    weights = dict(teacher.vectors()) | dict(teacher.matrices()) | teacher.tables()
    fill(weights, source)
    return teacher.requires_grad_(False).eval()


@torch.no_grad()
def fill(weights: Mapping[str, nn.Module | nn.Parameter], source: WeightSource) -> None:
    """Take plain weights, by edgedb name, from a checkpoint."""
    for name, weight in weights.items():
        parameter = weight if isinstance(weight, nn.Parameter) else weight.weight
        # A source may hand out read-only views of its file, which torch does not like to share.
        parallel.assign(parameter, torch.from_numpy(np.array(source.tensor(name))))


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
