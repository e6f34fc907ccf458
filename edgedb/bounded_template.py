"""Jinja's immutable sandbox with a bound on every value, for templates that nobody vouches for.

Four rules bound a rendering's memory and time, whatever the template combines:

1. Every value that an operator, filter, call, literal, slice or block makes is measured, with all
   it holds, and refused above ``MAX_SIZE``. What is shared counts each time, as in its ``repr``.
2. One operation on measured operands makes at most about the product of their sizes, where an
   integer argument counts with its value. A product above ``MAX_WORK`` is refused beforehand, and
   so is every integer argument above ``MAX_NUMBER``. Widths inside formats count like integers.
3. Only the methods and filters listed below exist: those for which rule 2 holds. (It does not for
   ``encode``, ``to_bytes``, ``pprint``, ``urlize`` and others, in size or in time.)
4. A rendering has a budget of loop steps, of bytes made or written, and of seconds.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from functools import wraps
from string import Formatter
from types import BuiltinMethodType, MethodType
from typing import Any

from jinja2 import nodes, pass_context
from jinja2.filters import FILTERS
from jinja2.runtime import Context, LoopContext, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter, SecurityError
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from .errors import TemplateError

MAX_SIZE = 1 << 21  # characters of a value; in a collection each value counts _ITEM more
MAX_WORK = 1 << 24
MAX_NUMBER = 1 << 16
MAX_LOOP_STEPS = 1_000_000
MAX_BYTES = 1 << 26
MAX_SECONDS = 10
_ITEM = 16
_ITEM_BYTES = 80  # a pointer and a short string
_INT_BITS = 64


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_METHODS = _names(
    "capitalize casefold center copy count endswith expandtabs find format get index isalnum "
    "isalpha isascii isdecimal isdigit islower isnumeric isspace istitle isupper items join keys "
    "ljust lower lstrip partition removeprefix removesuffix replace rfind rindex rjust rpartition "
    "rsplit rstrip split splitlines startswith strip swapcase title upper values zfill"
)
_FILTERS = _names(
    "abs attr batch capitalize center count d default dictsort e escape filesizeformat first float "
    "format groupby indent int items join last length list lower map max min reject rejectattr "
    "replace reverse round safe select selectattr slice sort string sum title trim truncate unique "
    "upper urlencode wordcount"
)
# What these make or look at does not grow with their arguments.
_LINEAR = _names("attr d default endswith get map reject rejectattr select selectattr startswith")
_COLLECTIONS: tuple[type, ...] = (
    list, tuple, set, frozenset, type({}.keys()), type({}.values()), type({}.items())
)  # fmt: skip
_HOLDERS: tuple[Any, ...] = (dict, *_COLLECTIONS)
_DATA = (str, bytes, int, float, *_HOLDERS)
_DIGITS = re.compile(r"\d+")


class Budget:
    """What is left to one rendering; make one with :meth:`start` and give it to ``budget``."""

    def __init__(self) -> None:
        self.steps = MAX_LOOP_STEPS
        self.bytes = MAX_BYTES
        self.deadline = time.monotonic() + MAX_SECONDS

    def spend(self, n_bytes: int) -> None:
        self.bytes -= n_bytes
        if self.bytes < 0:
            raise TemplateError(f"chat template: makes more than {MAX_BYTES} bytes")
        if time.monotonic() > self.deadline:
            raise TemplateError(f"chat template: takes more than {MAX_SECONDS} seconds")

    def step(self) -> None:
        self.steps -= 1
        if self.steps < 0:
            raise TemplateError(f"chat template: more than {MAX_LOOP_STEPS} loop steps")
        self.spend(0)


budget: ContextVar[Budget] = ContextVar("budget")


def _too_large() -> SecurityError:
    return SecurityError(f"a value of more than {MAX_SIZE} characters")


def _measure(value: Any) -> tuple[int, int]:
    """Characters and values in the tree under ``value``, or ``SecurityError`` above the bounds."""
    if isinstance(value, str):
        if len(value) > MAX_SIZE:
            raise _too_large()
        return len(value), 1
    n_chars = n_values = 0
    waiting: list[Any] = [value]
    while waiting:
        value = waiting.pop()
        n_values += 1
        if isinstance(value, (str, bytes)):
            n_chars += len(value)
        elif isinstance(value, int):
            if value.bit_length() > _INT_BITS:
                raise SecurityError(f"an integer of more than {_INT_BITS} bits")
        elif isinstance(value, _HOLDERS):
            if len(value) * _ITEM > MAX_SIZE:
                raise _too_large()
            waiting.extend(value)
            if isinstance(value, dict):
                waiting.extend(value.values())
        if n_chars + _ITEM * (n_values + len(waiting)) > MAX_SIZE:
            raise _too_large()
    return n_chars, n_values


def checked(value: Any, *, new_strings: bool = False) -> Any:
    """``value``, measured and paid for. ``new_strings``: so are the strings that it holds."""
    if value is True or value is False:
        return value
    n_chars, n_values = _measure(value)
    if isinstance(value, str):
        budget.get().spend(sys.getsizeof(value))
    else:
        budget.get().spend(_ITEM_BYTES * n_values + (4 * n_chars if new_strings else 0))
    return value


def _weight(value: Any, numbers: bool) -> int:
    if isinstance(value, int):
        if numbers and abs(value) > MAX_NUMBER:
            raise SecurityError(f"a number of more than {MAX_NUMBER} as an argument")
        return abs(value) if numbers else 20  # digits of the longest
    if isinstance(value, tuple):
        return sum(_weight(item, numbers) + 1 for item in value)
    n_chars, n_values = _measure(value)
    return n_chars if isinstance(value, str) else n_chars + _ITEM * n_values


def _foresee(subject: Any, arguments: Sequence[Any], *, numbers: bool = True) -> None:
    """Refuse an operation whose result may be too large to make. ``numbers`` may be counts."""
    if not arguments:
        return
    size = _weight(subject, False) + 1
    if size * (1 + sum(_weight(argument, numbers) for argument in arguments)) > MAX_WORK:
        raise SecurityError(f"an operation that may make more than {MAX_WORK} characters")


def _foresee_percent(pattern: str, arguments: Sequence[Any]) -> None:
    _refuse_width(pattern, MAX_WORK)
    _foresee(pattern, arguments, numbers="*" in pattern)


def _refuse_width(pattern: str, limit: int) -> int:
    numbers = _DIGITS.findall(pattern)
    width = sum(int(number[-9:]) for number in numbers)
    if width > limit or any(len(number) > 9 for number in numbers):
        raise SecurityError("a format with too large a width")
    return width


def _repeated_size(left: Any, right: Any) -> int:
    for sequence, times in ((left, right), (right, left)):
        if isinstance(sequence, (str, bytes, list, tuple)) and isinstance(times, int):
            return len(sequence) * times
    return 0


def counted(items: Any) -> Iterator[Any]:
    """Iterate ``items`` and take one step of the rendering's budget for each."""
    for item in items:
        budget.get().step()
        yield item


def _held(value: Any) -> Any:
    """The items of an iterator or range as a list, to be measured; anything else as it is."""
    lazy = not isinstance(value, _DATA) and isinstance(value, (Iterator, range))
    return checked(list(counted(value))) if lazy else value


@pass_context  # so that it is never folded into a constant, which would be written unpaid
def _written(_: Context, value: Any) -> str:
    text = value if isinstance(value, str) else str(value)
    budget.get().spend(sys.getsizeof(text))
    return text


def _concatenated(values: list[Any]) -> str:
    texts = []
    size = 0
    for value in values:
        texts.append(value if isinstance(value, str) else str(value))
        size += len(texts[-1])
        if size > MAX_SIZE:
            raise _too_large()
    return str(checked("".join(texts)))


def bounded_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that foresees and measures what it makes, and reads iterators step by step."""
    first = 1 if hasattr(function, "jinja_pass_arg") else 0

    @wraps(function)  # keeps the mark that asks for a context or environment
    def bounded(*args: Any, **kwargs: Any) -> Any:
        given = list(args)
        if len(given) > first and name not in _LINEAR:
            given[first] = _held(given[first])
        subject = given[first] if len(given) > first else None
        others = (*given[first + 1 :], *kwargs.values())
        if name == "format":
            _foresee_percent(str(subject), others)
        elif name == "sum" and any(isinstance(value, _COLLECTIONS) for value in others):
            raise SecurityError("a sum of collections")
        elif name not in _LINEAR:
            _foresee(subject, others)
        return checked(function(*given, **kwargs))

    return bounded


def _bounded_test(function: Any) -> Callable[..., Any]:
    @wraps(function)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        budget.get().spend(0)  # `select` may call a slow one often before it yields anything
        return function(*args, **kwargs)

    return bounded


class _Formatter(SandboxedFormatter):
    def format_field(self, value: Any, format_spec: str) -> Any:
        budget.get().spend(_refuse_width(format_spec, MAX_NUMBER))
        return Formatter.format_field(self, value, format_spec)


class _Namespace(Namespace):
    """Opaque: its members change after it was measured inside of another value."""

    def __repr__(self) -> str:
        return "<Namespace>"


def _passed(node: Any, name: str, lineno: int) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=lineno)


class _Bounding(NodeTransformer):
    """Passes what the environment's own hooks do not see through the filters above."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _passed(node.iter, "_counted", node.lineno)
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Node:
        self.generic_visit(node)
        node.nodes = [_passed(child, "_written", child.lineno) for child in node.nodes]
        return node

    def visit_AssignBlock(self, node: nodes.AssignBlock) -> nodes.Node:
        self.generic_visit(node)
        node.filter = node.filter or _passed(None, "_checked", node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _passed(nodes.List(node.nodes, lineno=node.lineno), "_concatenated", node.lineno)

    def _checked(self, node: nodes.Expr) -> nodes.Node:
        self.generic_visit(node)
        stored = getattr(node, "ctx", "load") != "load"
        constant = all(isinstance(child, nodes.Const) for child in node.iter_child_nodes())
        return node if stored or constant else _passed(node, "_checked", node.lineno)

    visit_Compare = visit_Dict = visit_List = visit_Tuple = _checked

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        if isinstance(node.arg, nodes.Slice):
            return self._checked(node)
        return self.generic_visit(node)


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """The environment to render with, while ``budget`` is set. Refusals are ``SecurityError``;
    an exhausted budget is ``TemplateError``."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self, **options: Any) -> None:
        super().__init__(optimized=False, **options)
        self.filters = {
            name: bounded_filter(name, function)
            for name, function in FILTERS.items()
            if name in _FILTERS
        }
        self.tests = {name: _bounded_test(function) for name, function in self.tests.items()}
        private = {"_checked": checked, "_concatenated": _concatenated, "_counted": counted}
        self.filters.update(private, _written=_written)
        del self.globals["lipsum"]
        self.globals["namespace"] = _Namespace

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        _Bounding().visit(tree)
        return tree

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        known = not isinstance(obj, _DATA) or attr in _METHODS
        return known and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        if not isinstance(value, (BuiltinMethodType, MethodType)) or value.__name__ != "format":
            return None
        pattern = value.__self__
        if not isinstance(pattern, str):
            return None

        def bounded_format(*args: Any, **kwargs: Any) -> str:
            _foresee(pattern, (*args, *kwargs.values()), numbers=False)
            return _Formatter(self).vformat(str(pattern), args, kwargs)

        return bounded_format

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            raise SecurityError("the operator **")
        if operator == "%" and isinstance(left, str):
            _foresee_percent(left, right if isinstance(right, tuple) else (right,))
        if operator == "*" and _repeated_size(left, right) > MAX_NUMBER:
            raise SecurityError(f"more than {MAX_NUMBER} repetitions")
        return checked(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(__obj, LoopContext) and args:
            args = (counted(args[0]), *args[1:])
        owner = None if isinstance(__obj, Undefined) else getattr(__obj, "__self__", None)
        if isinstance(owner, _DATA):
            args = tuple(_held(value) for value in args)
        given = (*args, *(v for k, v in kwargs.items() if k not in ("_loop_vars", "_block_vars")))
        if not isinstance(owner, _DATA):
            checked(given)  # macros and `cycler` hand them on as a collection
        elif __obj.__name__ not in _LINEAR:
            _foresee(owner, given)
        result = super().call(__context, __obj, *args, **kwargs)
        return checked(result, new_strings=isinstance(owner, str))
