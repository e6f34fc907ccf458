"""Jinja's immutable sandbox with a bound on every value, for templates that nobody vouches for.

Four rules bound a rendering's memory and time, whatever the template combines:

1. Every value that an operator, filter, call, literal, slice or block makes is measured, with all
   it holds, and refused above ``MAX_SIZE``. What is shared counts each time, as in its ``repr``.
2. One operation on measured operands makes at most about the product of their sizes, where an
   integer argument counts with its value. A product above ``MAX_WORK`` is refused beforehand, and
   so is every integer argument above ``MAX_NUMBER``. Widths inside formats count like integers.
3. Only the methods and filters listed in ``permitted.py`` exist: those for which rule 2 holds.
   Filters that need more than that are in ``bounded_filters.py``. What is refused here alone is
   refused by name, and never an undefined value that a template could go on with.
4. A rendering has a budget of loop steps, of bytes made or written, and of seconds.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from types import BuiltinMethodType, MethodType
from typing import Any, cast

from jinja2 import filters as jinja_filters
from jinja2 import nodes, pass_context, pass_eval_context
from jinja2.nodes import EvalContext
from jinja2.runtime import Context, LoopContext, Undefined, markup_join, str_join
from jinja2.sandbox import (
    ImmutableSandboxedEnvironment,
    SandboxedEscapeFormatter,
    SandboxedFormatter,
    SecurityError,
)
from jinja2.visitor import NodeTransformer
from markupsafe import Markup

from .bounds import (
    COLLECTIONS,
    DATA,
    MAX_NUMBER,
    MAX_SIZE,
    budget,
    checked,
    counted,
    foresee,
    foresee_percent,
    held,
    refuse_codec,
    refuse_power,
    refuse_width,
    repeated_size,
    too_large,
)
from .permitted import FILTERS, LINEAR, METHODS, READING
from .template_globals import GLOBALS


@pass_context  # so that it is never folded into a constant, which would be written unpaid
def _written(_: Context, value: Any) -> str:
    text = value if isinstance(value, str) else str(value)
    budget.get().spend(sys.getsizeof(text))
    return text


@pass_eval_context
def _concatenated(context: EvalContext, values: list[Any]) -> str:
    texts = []
    size = 0
    for value in values:
        texts.append(value if isinstance(value, str) else str(value))
        size += len(texts[-1])
        if size > MAX_SIZE:
            raise too_large()
    join = markup_join if context.autoescape else str_join
    return cast(str, checked(join(texts)))


def bounded_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that foresees and measures what it makes, and reads iterators step by step."""
    first = 1 if hasattr(function, "jinja_pass_arg") else 0

    @wraps(function)  # keeps the mark that asks for a context or environment
    def bounded(*args: Any, **kwargs: Any) -> Any:
        given = list(args)
        if len(given) > first and name in READING:
            given[first] = held(given[first])
        subject = given[first] if len(given) > first else None
        others = (*given[first + 1 :], *kwargs.values())
        if name == "format":
            foresee_percent(str(subject), others)
        elif name == "sum" and any(isinstance(value, COLLECTIONS) for value in others):
            raise SecurityError("a sum of collections")
        elif name not in LINEAR:
            foresee(subject, others)
        return checked(function(*given, **kwargs))

    return bounded


def _bounded_test(function: Any) -> Callable[..., Any]:
    @wraps(function)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        budget.get().spend(0)  # `select` may call a slow one often before it yields anything
        return function(*args, **kwargs)

    return bounded


class _BoundedFields(SandboxedFormatter):
    def format_field(self, value: Any, format_spec: str) -> Any:
        budget.get().spend(refuse_width(format_spec, MAX_NUMBER))
        return super().format_field(value, format_spec)


class _EscapingFields(_BoundedFields, SandboxedEscapeFormatter):
    pass


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
            for name, function in jinja_filters.FILTERS.items()
            if name in FILTERS
        }
        self.tests = {name: _bounded_test(function) for name, function in self.tests.items()}
        private = {"_checked": checked, "_concatenated": _concatenated, "_counted": counted}
        self.filters.update(private, _written=_written)
        self.globals.update(GLOBALS)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        _Bounding().visit(tree)
        return tree

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if not super().is_safe_attribute(obj, attr, value):
            return False
        if (
            isinstance(obj, DATA)
            and attr not in METHODS
            and attr not in getattr(obj, "_fields", ())
        ):
            raise SecurityError(f"the method {attr!r}")
        return True

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """For ``str.format`` and ``str.format_map``, what does the same within the bounds."""
        kind = (BuiltinMethodType, MethodType)
        name = getattr(value, "__name__", "") if isinstance(value, kind) else ""
        pattern = getattr(value, "__self__", None)
        if name not in ("format", "format_map") or not isinstance(pattern, str):
            return None
        fields = _BoundedFields(self)
        if isinstance(pattern, Markup):
            fields = _EscapingFields(self, escape=pattern.escape)

        def bounded_format(*args: Any, **kwargs: Any) -> str:
            foresee(pattern, (*args, *kwargs.values()), numbers=False)
            named: Any = kwargs
            if name == "format_map":
                (named,) = args
                args = ()
            return type(pattern)(fields.vformat(pattern, args, named))

        return bounded_format

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            refuse_power(left, right)
        if operator == "%" and isinstance(left, (str, bytes)):
            pattern = left if isinstance(left, str) else left.decode("latin-1")
            foresee_percent(pattern, right if isinstance(right, tuple) else (right,))
        if operator == "*" and repeated_size(left, right) > MAX_NUMBER:
            raise SecurityError(f"more than {MAX_NUMBER} repetitions")
        return checked(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(__obj, LoopContext) and args:
            args = (counted(args[0]), *args[1:])
        owner = None if isinstance(__obj, Undefined) else getattr(__obj, "__self__", None)
        name = getattr(__obj, "__name__", "") if isinstance(owner, DATA) else ""
        if name in READING:
            args = tuple(held(value) for value in args)
        if name in ("decode", "encode"):
            refuse_codec(*args, **kwargs)
        given = (*args, *(v for k, v in kwargs.items() if k not in ("_loop_vars", "_block_vars")))
        if not isinstance(owner, DATA):
            checked(given)  # macros and `cycler` hand them on as a collection
        elif name not in LINEAR:
            foresee(owner, given)
        result = super().call(__context, __obj, *args, **kwargs)
        return checked(result, new_strings=isinstance(owner, str))
