"""From a program's blocks to the operations of the C library: fusions, slots, aliases.

The C library works on slots, arrays ``[rows, width]``; slot 0 holds the residual stream. A value
gets a slot of exactly its width, a slice is a view of its argument's. Fusions are patterns over the
recorded values, each only where what disappears has one reader, and none changes a bit of a result:

    rms_norm or layer_norm -> linear         the input is normalized as it is quantized
    activation(x) -> linear                  likewise
    activation(gate) * up -> linear          likewise
    activation(gates) * ups -> experts       likewise
    x + linear, x + mix                      the product is added where x lies
    (rms_norm ->) rope -> attention          heads are normed and turned on their way to the cache
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass, replace

from .program import Block
from .values import ACTIVATIONS, Value

# What a linear calls its input where a norm is fused into it.
NORMS = {"rms_norm": "normed", "layer_norm": "centered"}


@dataclass(frozen=True)
class View:
    """Columns of a slot, from ``column`` on."""

    slot: int
    column: int = 0


@dataclass(frozen=True)
class Step:
    """One operation of the C library. ``value`` holds its weights' names and numbers.

    op: one of ``OPERATIONS`` but ``input`` and ``slice``, or ``copy``; form: of the input of a
    linear or of experts, ``plain``, ``normed`` or ``centered`` (by ``norms[0]``), ``activated`` or
    ``gated`` (by ``activation``); add: the product is added to what lies at ``out``; norms and
    ropes: of an attention's q and k.
    """

    op: str
    value: Value
    inputs: tuple[View, ...]
    out: View
    form: str = "plain"
    add: bool = False
    norms: tuple[Value, ...] = ()
    ropes: tuple[Value, ...] = ()
    activation: str | None = None


@dataclass
class _Draft:
    """A step before its slots are known: which values it reads and which one it makes."""

    op: str
    value: Value  # whose attributes it needs
    reads: tuple[Value, ...]
    makes: Value
    form: str = "plain"
    onto: Value | None = None  # what is added to in place
    norms: tuple[Value, ...] = ()
    ropes: tuple[Value, ...] = ()
    activation: str | None = None

    @property
    def touches(self) -> tuple[Value, ...]:
        """The values whose slots it reads."""
        return self.reads if self.onto is None else (*self.reads, self.onto)


def lower(
    block: Block, widths: list[int], *, dense: Container[str] = (), fuse: bool = True
) -> tuple[list[Step], View]:
    """The steps of ``block``, and where its output lies.

    widths: of the slots there are, longer afterwards if more are needed; the block's input is slot
    0. dense: names of matrices that cannot both have a bias and be added in place.
    """
    drafts = _Fusing(block, dense).drafts() if fuse else list(_unfused(block))
    return _Slots(block, drafts, widths).place()


def _unfused(block: Block) -> Iterator[_Draft]:
    for value in block.operations:
        if value.op not in ("input", "slice"):
            yield _Draft(value.op, value, value.args, value)


class _Fusing:
    """Finds what one step can do at once."""

    def __init__(self, block: Block, dense: Container[str]) -> None:
        self.block, self.dense = block, dense
        self.readers = {value: block.readers(value) for value in block.operations}

    def drafts(self) -> list[_Draft]:
        """The steps in order. A step stands where the last value that it makes stands."""
        found: dict[Value, _Draft] = {}
        inside: set[Value] = set()
        # From the end, so that what a later step takes in is known when its turn comes.
        for value in reversed(self.block.operations):
            if value not in inside and value.op not in ("input", "slice"):
                found[value], taken = self._draft(value)
                inside.update(taken)
        drafts = {value: found[value] for value in self.block.operations if value in found}
        self._add_in_place(drafts)
        return list(drafts.values())

    def _draft(self, value: Value) -> tuple[_Draft, list[Value]]:
        """The step that makes ``value``, and what disappears into it."""
        if value.op == "linear":
            return self._linear(value)
        if value.op == "attention":
            return self._attention(value)
        if value.op == "experts" and value["own"] and (found := self._gated(value.args[0])):
            whole, act = found
            reads = (whole, value.args[1])
            draft = _Draft("experts", value, reads, value, form="gated", activation=act.op)
            return draft, [value.args[0], act]
        return _Draft(value.op, value, value.args, value), []

    def _add_in_place(self, drafts: dict[Value, _Draft]) -> None:
        """Products move to the sum that is their only reader, where all else has read the other."""
        for total in [value for value in drafts if value.op == "add"]:
            for onto, product in (total.args, total.args[::-1]):
                draft = drafts.get(product)
                if draft is None or draft.op not in ("linear", "mix") or draft.onto is not None:
                    continue
                if not self._is_sole(product) or self._has_dense_bias(product):
                    continue
                order = list(drafts)
                later = order[order.index(total) + 1 :]
                readers = [draft, *(drafts[value] for value in later)]
                is_read = any(_root(v) is onto for reader in readers for v in reader.touches)
                if onto.op == "slice" or onto is self.block.output or is_read:
                    continue
                del drafts[product]
                drafts[total] = replace(draft, makes=total, onto=onto)
                break

    def _has_dense_bias(self, product: Value) -> bool:
        return (
            product.op == "linear"
            and product["bias"] is not None
            and product["matrix"] in self.dense
        )

    def _is_sole(self, value: Value) -> bool:
        """Whether exactly one operation of the block reads it, and nothing outside."""
        return len(self.readers[value]) == 1 and value is not self.block.output

    def _linear(self, value: Value) -> tuple[_Draft, list[Value]]:
        (x,) = value.args
        if x.op in NORMS and x["heads"] == 1 and self._is_sole(x) and x.args[0].op != "slice":
            return _Draft("linear", value, x.args, value, form=NORMS[x.op], norms=(x,)), [x]
        if (gate_up := self._gated(x)) is not None:
            whole, act = gate_up
            draft = _Draft("linear", value, (whole,), value, form="gated", activation=act.op)
            return draft, [x, act]
        if x.op in ACTIVATIONS and self._is_sole(x) and x.args[0].op != "slice":
            draft = _Draft("linear", value, x.args, value, form="activated", activation=x.op)
            return draft, [x]
        return _Draft("linear", value, (x,), value), []

    def _gated(self, x: Value) -> tuple[Value, Value] | None:
        """For ``activation(gate) * up``, the value that holds gate and then up, and the gate's."""
        if x.op != "mul" or not self._is_sole(x):
            return None
        for act, up in (x.args, x.args[::-1]):
            if act.op not in ACTIVATIONS or not self._is_sole(act) or up.op != "slice":
                continue
            gate = act.args[0]
            if gate.op != "slice" or gate.args[0] is not up.args[0]:
                continue
            whole, f = up.args[0], x.width
            if (gate["begin"], up["begin"], whole.width) == (0, f, 2 * f) and whole.op != "slice":
                return whole, act
        return None

    def _attention(self, value: Value) -> tuple[_Draft, list[Value]]:
        q, k, v = value.args
        inside: list[Value] = []
        ropes: tuple[Value, ...] = ()
        norms: tuple[Value, ...] = ()
        if self._both(q, k, "rope"):
            ropes, inside = (q, k), [q, k]
            q, k = q.args[0], k.args[0]
        if (
            self._both(q, k, "rms_norm")
            and (q["heads"], k["heads"]) == (value["n_heads"], value["n_kv_heads"])
            and q["eps"] == k["eps"]
        ):
            norms = (q, k)
            inside = [*inside, q, k]
            q, k = q.args[0], k.args[0]
        if inside and not self._may_be_overwritten(q):
            return _Draft("attention", value, value.args, value), []
        return _Draft("attention", value, (q, k, v), value, norms=norms, ropes=ropes), inside

    def _both(self, q: Value, k: Value, op: str) -> bool:
        return q.op == k.op == op and q is not k and self._is_sole(q) and self._is_sole(k)

    def _may_be_overwritten(self, q: Value) -> bool:
        """Whether nobody else reads these columns."""
        if not self._is_sole(q) or q.op == "input":
            return False
        if q.op != "slice":
            return True
        begin, end = q["begin"], q["begin"] + q.width
        others = (other for other in self.readers[q.args[0]] if other is not q)
        apart = all(
            o.op == "slice" and (o["begin"] >= end or o["begin"] + o.width <= begin) for o in others
        )
        whole = q.args[0]
        return apart and whole.op not in ("slice", "input") and whole is not self.block.output


class _Slots:
    """Gives every value a place: a free slot of its width, or its argument's if that is done."""

    def __init__(self, block: Block, drafts: list[_Draft], widths: list[int]) -> None:
        self.block, self.drafts, self.widths = block, drafts, widths
        self.views: dict[Value, View] = {}
        self.last: dict[Value, int] = {}  # the last step that reads a value or a slice of it
        for i, draft in enumerate(drafts):
            for value in draft.touches:
                self.last[_root(value)] = i
        self.last[_root(block.output)] = len(drafts)
        self.lying: dict[int, Value] = {}  # slot -> the value whose it is

    def place(self) -> tuple[list[Step], View]:
        steps: list[Step] = []
        first = self.block.operations[0]
        if first.op == "input":
            self._lie(first, View(0))
        for i, draft in enumerate(self.drafts):
            reads = draft.reads
            if draft.op == "linear":
                reads = tuple(self._whole(value, i, steps) for value in reads)
            inputs = tuple(self._view(value) for value in reads)
            out = self._out(draft, i)
            steps.append(
                Step(
                    draft.op,
                    draft.value,
                    inputs,
                    out,
                    draft.form,
                    draft.onto is not None,
                    draft.norms,
                    draft.ropes,
                    draft.activation,
                )
            )
            self._lie(draft.makes, out)
        return steps, self._view(self.block.output)

    def _out(self, draft: _Draft, i: int) -> View:
        if draft.onto is not None:
            return self._view(draft.onto)
        if draft.op in ("add", "mul", "rope", "softcap", *NORMS, *ACTIVATIONS):
            for value in draft.reads:
                alone = all(v is value or _root(v) is not value for v in draft.reads)
                if value.op != "slice" and self.last[value] == i and alone:
                    return self._view(value)
        return self._free(draft.makes.width, i)

    def _free(self, width: int, i: int) -> View:
        for slot, slot_width in enumerate(self.widths):
            lying = self.lying.get(slot)
            if slot_width == width and (lying is None or self.last.get(lying, -1) < i):
                return View(slot)
        self.widths.append(width)
        return View(len(self.widths) - 1)

    def _whole(self, value: Value, i: int, steps: list[Step]) -> Value:
        """What a linear multiplies must be a whole slot: a slice is copied to one."""
        if value.op != "slice":
            return value
        copy = Value("copy", (value,), value.width, {})
        self.last[copy] = i
        out = self._free(value.width, i)
        steps.append(Step("copy", copy, (self._view(value),), out))
        self._lie(copy, out)
        return copy

    def _lie(self, value: Value, view: View) -> None:
        self.views[value] = view
        self.lying[view.slot] = value

    def _view(self, value: Value) -> View:
        if value.op == "slice":
            whole = self._view(value.args[0])
            return View(whole.slot, whole.column + value["begin"])
        return self.views[value]


def _root(value: Value) -> Value:
    while value.op == "slice":
        value = value.args[0]
    return value
