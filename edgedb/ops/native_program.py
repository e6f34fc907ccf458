"""A program as the C library runs it: one call for all layers of a pass.

``lowering`` decides the steps; here they become structs of pointers, made once. Whatever a struct
points to is held by the object that holds the struct.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import NativeError
from ..format.tensors import DenseTensor
from .buffer import Buffer
from .library import ffi, forget, lib, owned, pointers, status_text, struct_pointer
from .lowering import NORMS, Step, View, lower
from .native_context import NativeContext
from .native_memory import NativeBuffer, Scratch, cache_kind, native_matrix
from .pages import PAGE, Page, PageLayout, PageTable
from .program import Block, Program
from .selection import Floats
from .sequences import MAX_ROWS, Span
from .values import OPERATIONS, Value
from .weights import Weights

_CODES = {
    op: f"EDB_OP_{op.upper()}"
    for op in ("copy", *(name for name in OPERATIONS if name not in ("input", "slice")))
}
_FORMS = {
    form: f"EDB_INPUT_{form.upper()}"
    for form in (*("plain", "normed", "centered"), *("activated", "gated"))
}
_NO_WINDOW = 1 << 24  # keys: as many as any cache holds


class NativePageTable(PageTable):
    """One sequence's pages as a span of C, whose rows and position each pass sets."""

    def __init__(self, layout: PageLayout, capacity: int) -> None:
        super().__init__(layout, capacity)
        n = -(-capacity // PAGE)
        self._held: list[Page | None] = [None] * n  # by the pointers, which C goes through
        self._pointers = owned(ffi.new(f"void *[{n}]"), forget, self._held)
        offsets = [part.offset for part in layout.parts]
        self.fields = {
            "capacity": capacity,
            "cache_kind": cache_kind(layout.dtype),
            "pages": self._pointers,
            "page_bytes": layout.page_bytes,
            "offsets": owned(ffi.new(f"int64_t[{len(offsets)}]", offsets), forget),
        }
        self.span = struct_pointer("edb_span *", self.fields)

    def put(self, index: int, page: Page) -> None:
        """As the base class; the old page stays until C has the pointer to the new one."""
        self._held[index] = page
        self._pointers[index] = page.buffer.ptr
        super().put(index, page)


class NativeState:
    """The slots of a running pass, allocated once; those of many logits when they are wanted."""

    def __init__(self, program: NativeProgram) -> None:
        self.ids = NativeBuffer.zeros((MAX_ROWS,), np.int32)
        self.body = _Slots(program.body.widths, MAX_ROWS)
        x = self.body.buffers[0]
        self.final = _Slots(program.final.widths, MAX_ROWS, x)
        self.last = _Slots(program.logits_of.widths, 1, x)
        self.all: _Slots | None = None
        self.scratch = Scratch()

    @property
    def size_bytes(self) -> int:
        """Bytes of all buffers."""
        slots = (self.body, self.final, self.last, self.all)
        return self.ids.array.nbytes + sum(s.size_bytes for s in slots if s is not None)


class _Slots:
    """Buffers for the slots of one part of a program; slot 0 may be there already."""

    def __init__(self, widths: list[int], rows: int, x: NativeBuffer | None = None) -> None:
        self._own = [NativeBuffer.zeros((rows, width)) for width in widths[x is not None :]]
        self.buffers = self._own if x is None else [x, *self._own]
        self._lent: list[Any] = [None]
        found = [buffer.ptr for buffer in self.buffers]
        self._pointers = owned(pointers(found), forget, self._lent)

    @property
    def size_bytes(self) -> int:
        return sum(buffer.array.nbytes for buffer in self._own)

    def from_row(self, row: int) -> Any:
        """Pointers to the slots, to slot 0 from ``row`` on."""
        x = self.buffers[0]
        self._pointers[0] = x.ptr + row * x.width
        return self._pointers

    def lend(self, slot: int, buffer: Buffer | None) -> Buffer:
        """Have ``buffer`` in the place of a slot, or the slot's own again; which it is."""
        self._lent[0] = found = buffer or self.buffers[slot]
        self._pointers[slot] = found.ptr
        return found


class NativeProgram:
    """A program bound to its weights. Immutable: threads share one, each with a state.

    Raises ``NativeError`` naming the operation that the C library refuses.
    """

    def __init__(
        self, context: NativeContext, program: Program, weights: Weights, *, fuse: bool = True
    ) -> None:
        self._context = context
        structs = _Structs(weights, fuse)
        *body, final, head = program.blocks()
        self.body = _Part(structs, body, program.width)
        self.final = _Part(structs, [final], program.width)
        self.logits_of = _Part(structs, [final], program.width, head)

    def state(self) -> NativeState:
        """What one running pass needs."""
        return NativeState(self)

    def read(self, state: NativeState, ids: Sequence[int], spans: Sequence[Span]) -> None:
        """``first`` and all layers for ``ids``, the rows of ``spans``."""
        state.ids.array[: len(ids)] = ids
        slots = state.body.from_row(0)
        self._run(state, self.body, slots, len(ids), state.ids.ptr, _spans(spans), len(spans))

    def hidden(self, state: NativeState, start: int, n: int) -> NativeBuffer:
        """Rows ``start`` to ``start + n`` of the residual stream through ``final``. They lie where
        that stream lay: a pass gives either them or logits, once."""
        self._run(state, self.final, state.final.from_row(start), n)
        return NativeBuffer(state.body.buffers[0].array[start : start + n])

    def gather(self, state: NativeState, rows: Sequence[int]) -> None:
        """Move rows of the pass, in ascending order, to its beginning."""
        if rows[-1] != len(rows) - 1:
            x = state.body.buffers[0].array
            x[: len(rows)] = x[list(rows)]

    def logits(self, state: NativeState, start: int, n: int, out: Buffer | None = None) -> Floats:
        """The same rows through ``final`` and ``head``, ``[n, vocabulary]``: the state's own array,
        which the next call overwrites; of one row ``out``, if there is one."""
        slots, output = state.last, self.logits_of.output
        if n > 1:
            if state.all is None:
                state.all = _Slots(self.logits_of.widths, MAX_ROWS, state.body.buffers[0])
            slots = state.all
        rows: Floats = slots.buffers[output].array[:n]
        if n == 1 and output:
            rows = slots.lend(output, out).array
        self._run(state, self.logits_of, slots.from_row(start), n)
        if out is not None and rows is not out.array:
            out.array[...] = rows
            return out.array
        return rows

    def _run(
        self,
        state: NativeState,
        part: _Part,
        slots: Any,
        n: int,
        ids: Any = ffi and ffi.NULL,
        spans: Any = ffi and ffi.NULL,
        n_spans: int = 0,
    ) -> None:
        context, program = self._context.context, part.program
        if program is None:
            return
        memory = state.scratch.memory
        status = lib.edb_program_run(context, program, ids, slots, n, spans, n_spans, *memory)
        if status:
            if status != lib.EDB_ERR_SCRATCH:
                raise NativeError(f"a pass of {n} tokens: {status_text(status)}")
            # For full caches at once, so that a growing conversation asks only here.
            size = lib.edb_program_scratch_bytes(context, program, n, spans, n_spans)
            state.scratch.grow(size)
            self._run(state, part, slots, n, ids, spans, n_spans)


def _spans(spans: Sequence[Span]) -> Any:
    """The structs of ``spans``; that of one is there already."""
    if len(spans) == 1:
        (span,) = spans
        struct = _table(span).span
        struct.n, struct.pos = span.n, span.position
        return struct
    fields = [{**_table(s).fields, "n": s.n, "pos": s.position} for s in spans]
    needed = [_table(span).span for span in spans]
    return owned(ffi.new("edb_span[]", fields), forget, *needed)


def _table(span: Span) -> NativePageTable:
    table = span.cache.table
    assert isinstance(table, NativePageTable), "a cache of this backend"
    return table


class _Structs:
    """Weights as C sees them, and the structs of operations that point to them."""

    def __init__(self, weights: Weights, fuse: bool) -> None:
        self.fuse = fuse
        self.dense = {n for n, t in weights.linears.items() if isinstance(t, DenseTensor)}
        self.matrices = {name: native_matrix(t) for name, t in weights.linears.items()}
        self.vectors = {name: NativeBuffer(v) for name, v in weights.vectors.items()}
        self.tables = {
            table: (NativeBuffer(found.cos), NativeBuffer(found.sin))
            for table, found in weights.tables.items()
        }

        self.slopes: dict[tuple[float, ...], NativeBuffer] = {}

    def fill(self, op: Any, step: Step, prefix: str, layer: int) -> None:
        """Write ``step`` into the struct ``op``."""
        value, numbers = step.value, step.value.attributes
        op.code, op.width = getattr(lib, _CODES[step.op]), value.width
        op.input, op.add = getattr(lib, _FORMS[step.form]), step.add
        if step.activation is not None:
            op.activation = getattr(lib, _CODES[step.activation])
        for view, source in zip((op.x, op.y, op.z), step.inputs, strict=False):
            view.slot, view.column = source.slot, source.column
        op.out.slot, op.out.column = step.out.slot, step.out.column
        op.heads = numbers.get("heads", 1)
        if step.op == "copy":
            return
        if "matrix" in numbers:
            op.matrix = self.matrices[prefix + numbers["matrix"]].struct
        if step.op in ("linear", "experts") and value["bias"] is not None:
            op.bias = self.vectors[prefix + value["bias"]].ptr
        if step.op == "attention":
            self._fill_attention(op, step, prefix, layer)
            return
        if step.op == "clamped_gate":
            op.alpha, op.limit = value["alpha"], value["limit"]
        if step.op in ("route", "experts", "mix"):
            _fill_experts(op, value)
            return
        for norm in [value] if step.op in NORMS else step.norms:
            op.weight, op.eps = self.vectors[prefix + norm["weight"]].ptr, norm["eps"]
            if norm.attributes.get("bias") is not None:
                op.shift = self.vectors[prefix + norm["bias"]].ptr
        if step.op == "softcap":
            op.cap = value["cap"]
        if step.op == "rope":
            op.cos, op.sin, op.positions = self._table(value)

    def _fill_attention(self, op: Any, step: Step, prefix: str, layer: int) -> None:
        value = step.value
        op.n_heads, op.n_kv_heads = value["n_heads"], value["n_kv_heads"]
        op.head_dim, op.cache = value["head_dim"], layer
        op.scale = np.float32(value["scale"])
        if value["sinks"] is not None:
            op.sinks = self.vectors[prefix + value["sinks"]].ptr
        op.cap = value["cap"] or 0
        op.window = _NO_WINDOW if value["window"] is None else value["window"]
        if value["slopes"] is not None:
            slopes = NativeBuffer(np.array(value["slopes"], np.float32))
            op.slopes = self.slopes.setdefault(value["slopes"], slopes).ptr
        if step.norms:
            q_norm, k_norm = (self.vectors[prefix + norm["weight"]] for norm in step.norms)
            op.q_norm, op.k_norm, op.eps = q_norm.ptr, k_norm.ptr, step.norms[0]["eps"]
        if step.ropes:
            of_q, of_k = step.ropes
            op.q_cos, op.q_sin, op.positions = self._table(of_q)
            op.cos, op.sin, op.positions = self._table(of_k)

    def _table(self, rope: Value) -> tuple[Any, Any, int]:
        cos, sin = self.tables[rope["table"]]
        return cos.ptr, sin.ptr, len(cos.array)


def _fill_experts(op: Any, value: Value) -> None:
    route = value if value.op == "route" else value.args[1]
    op.experts, op.chosen, op.normalized = route.width, route["chosen"], route["normalized"]
    if value.op == "experts":
        op.own, op.parts = value["own"], value["parts"]


class _Part:
    """Blocks one after the other as one program of C: each takes slot 0 and leaves its output
    there; only ``last`` may leave it elsewhere, in slot ``output``."""

    def __init__(
        self,
        structs: _Structs,
        blocks: Sequence[tuple[str, Block]],
        width: int,
        last: tuple[str, Block] | None = None,
    ) -> None:
        self.widths = [width]
        self._structs = structs
        self._lowered: dict[tuple[Block, frozenset[str]], tuple[list[Step], View]] = {}
        steps: list[tuple[Step, str]] = []
        for prefix, block in blocks:
            lowered, out = self._lower(prefix, block)
            if out != View(0):
                lowered.append(Step("copy", block.output, (out,), View(0)))
            steps += [(step, prefix) for step in lowered]
        self.output = 0
        if last is not None:
            lowered, out = self._lower(*last)
            steps += [(step, last[0]) for step in lowered]
            self.output = out.slot
        self.program = self._create(steps) if steps else None  # None: the stream as it is

    def _lower(self, prefix: str, block: Block) -> tuple[list[Step], View]:
        dense = frozenset(self._structs.dense.intersection(map(prefix.__add__, block.matrices)))
        key = (block, frozenset(name.removeprefix(prefix) for name in dense))
        if key not in self._lowered:  # layers of a kind are alike
            self._lowered[key] = lower(block, self.widths, dense=key[1], fuse=self._structs.fuse)
        steps, out = self._lowered[key]
        return list(steps), out

    def _create(self, steps: list[tuple[Step, str]]) -> Any:
        ops = ffi.new("edb_op[]", len(steps))
        for op, (step, prefix) in zip(ops, steps, strict=True):
            layer = int(prefix.split(".")[1]) if prefix else 0
            self._structs.fill(op, step, prefix, layer)
        program, wrong = ffi.new("edb_program **"), ffi.new("int32_t *")
        status = lib.edb_program_create(
            ops, len(ops), self.widths, len(self.widths), program, wrong
        )
        if status:
            where = "program"
            if wrong[0] >= 0:
                step, prefix = steps[wrong[0]]
                where = f"operation {wrong[0]}, {prefix}{step.op}"
            raise NativeError(f"{where}: {status_text(status)}")
        return owned(program[0], lib.edb_program_destroy, self._structs)
