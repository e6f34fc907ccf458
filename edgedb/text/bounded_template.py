"""Jinja's immutable sandbox with a bound on every value, for templates that nobody vouches for.

Five rules bound a rendering's memory and time, whatever the template combines:

1. Every value that an operator, filter, call, literal, slice or block makes is measured, with all
   it holds, and refused above ``MAX_SIZE``. What is shared counts each time, as in its ``repr``.
2. One operation on measured operands makes at most about the product of their sizes, where an
   integer argument counts with its value. A product above ``MAX_WORK`` is refused beforehand, and
   so is every integer argument above ``MAX_NUMBER``. Widths inside formats count like integers.
3. Only the methods and filters listed in ``permitted.py`` exist: those for which rule 2 holds.
   Filters that need more than that are in ``bounded_filters.py``. What is refused here alone is
   refused by name, and never an undefined value that a template could go on with.
4. A rendering has a budget of loop steps, of bytes made or written, and of seconds.
5. Only a template of at most ``MAX_TEMPLATE_TOKENS`` is compiled.

The same places see to it that what is made of a message's text is known to be (``quotation.py``).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from itertools import islice
from types import BuiltinMethodType, MethodType
from typing import Any, NoReturn, cast

from jinja2 import Environment, nodes, pass_context, pass_environment
from jinja2 import filters as jinja_filters
from jinja2.runtime import Context, LoopContext, Macro, Undefined
from jinja2.sandbox import (
    ImmutableSandboxedEnvironment,
    SandboxedEscapeFormatter,
    SandboxedFormatter,
    SecurityError,
)
from jinja2.visitor import NodeTransformer
from markupsafe import escape

from ..errors import TemplateError
from .bounds import (
    COLLECTIONS,
    DATA,
    MAX_NUMBER,
    MAX_SIZE,
    MAX_TEMPLATE_TOKENS,
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
from .permitted import FILTERS, LINEAR, METHODS, READING, TRACKED
from .quotation import (
    TRACKED_METHODS,
    Placeholders,
    Quoted,
    derived,
    escaped,
    joined,
    marked_up,
    percent,
    source_of,
    sources,
    text_of,
    tracked,
)
from .spec import MAX_TEMPLATE_CHARS
from .template_globals import GLOBALS


@pass_context  # so that it is never folded into a constant, which would be written unpaid
def _written(_: Context, value: Any) -> str:
    text = text_of(value)
    budget.get().spend(sys.getsizeof(text))
    return text


def _concatenated(values: list[Any]) -> str:
    texts = []
    size = 0
    for value in values:
        texts.append(text_of(value))
        size += len(texts[-1])
        if size > MAX_SIZE:
            raise too_large()
    return str(checked(joined(texts)))


@pass_environment
def _join(environment: Environment, value: Any, d: Any = "", attribute: Any = None) -> str:
    if attribute is not None:
        value = map(jinja_filters.make_attrgetter(environment, attribute), value)
    separator = text_of(d)
    return Quoted(separator, sources(separator)).join(map(text_of, value))


def _format(pattern: Any, *args: Any, **kwargs: Any) -> str:
    if args and kwargs:
        return jinja_filters.do_format(pattern, *args, **kwargs)  # which refuses that
    return percent(text_of(pattern), kwargs or args)


def _safe(value: Any) -> Any:
    return marked_up(value) if isinstance(value, Quoted) else jinja_filters.FILTERS["safe"](value)


def _escape(value: Any) -> Any:
    return escaped(value) if source_of(value) else jinja_filters.FILTERS["escape"](value)


def _force_escape(value: Any) -> Any:
    return _escape(str(text_of(value)))


def bounded_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that foresees and measures what it makes, reads iterators step by step, and quotes
    what it makes of quoted text."""
    first = 1 if hasattr(function, "jinja_pass_arg") else 0

    @wraps(function)  # keeps the mark that asks for a context or environment
    def bounded(*args: Any, **kwargs: Any) -> Any:
        given = [text_of(value) if isinstance(value, MethodType) else value for value in args]
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
        if isinstance(subject, str) and source_of(*others):
            given[first] = tracked(subject)
        result = function(*given, **kwargs)
        if name not in TRACKED:
            result = derived(result, subject, *others)
        return checked(result)

    return bounded


def _bounded_test(function: Any) -> Callable[..., Any]:
    @wraps(function)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        budget.get().spend(0)  # `select` may call a slow one often before it yields anything
        return function(*args, **kwargs)

    return bounded


class _BoundedFields(SandboxedFormatter):
    def __init__(self, environment: Environment, **options: Any) -> None:
        super().__init__(environment, **options)
        self.held = Placeholders()

    def convert_field(self, value: Any, conversion: Any) -> Any:
        return derived(super().convert_field(value, conversion), value)

    def format_field(self, value: Any, format_spec: str) -> Any:
        budget.get().spend(refuse_width(format_spec, MAX_NUMBER))
        text = super().format_field(value, format_spec)
        quoted = source_of(value, format_spec)
        return self.held.hold(derived(text, value, format_spec)) if quoted else text


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

    def _refuse_escaping(self, node: nodes.Node) -> NoReturn:
        # Escaped text is of Jinja's own class, which does not know what it quotes.
        raise SecurityError("autoescape")

    visit_EvalContextModifier = visit_ScopedEvalContextModifier = _refuse_escaping

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
    concat = staticmethod(joined)

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
        own: dict[str, Callable[..., Any]]
        own = {"format": _format, "join": _join, "safe": _safe, "string": text_of}
        own |= {"e": _escape, "escape": _escape, "forceescape": _force_escape}
        self.filters.update({name: bounded_filter(name, f) for name, f in own.items()})
        self.globals.update(GLOBALS)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        self._refuse_long(source)
        tree = super()._parse(source, name, filename)
        _Bounding().visit(tree)
        return tree

    def _refuse_long(self, source: str) -> None:
        """Compiling costs time and memory for each token, which no budget watches."""
        if len(source) > MAX_TEMPLATE_CHARS:
            raise TemplateError(
                f"chat template: {len(source)} characters, more than {MAX_TEMPLATE_CHARS}"
            )
        tokens = self.lexer.tokeniter(source, None)
        if sum(1 for _ in islice(tokens, MAX_TEMPLATE_TOKENS + 1)) > MAX_TEMPLATE_TOKENS:
            raise TemplateError(f"chat template: more than {MAX_TEMPLATE_TOKENS} tokens")

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

        def bounded_format(*args: Any, **kwargs: Any) -> str:
            foresee(pattern, (*args, *kwargs.values()), numbers=False)
            named: Any = kwargs
            if name == "format_map":
                (named,) = args
                args = ()
            markup = hasattr(pattern, "__html__")
            fields = _EscapingFields(self, escape=escape) if markup else _BoundedFields(self)
            text = fields.held.fill(fields.vformat(str.__str__(pattern), args, named))
            text = derived(text, pattern)
            return cast(str, _safe(text) if markup else text)

        return bounded_format

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            refuse_power(left, right)
        if operator == "%" and isinstance(left, (str, bytes)):
            pattern = left if isinstance(left, str) else left.decode("latin-1")
            foresee_percent(pattern, right if isinstance(right, tuple) else (right,))
        if operator == "*" and repeated_size(left, right) > MAX_NUMBER:
            raise SecurityError(f"more than {MAX_NUMBER} repetitions")
        if operator == "%" and isinstance(left, str):
            return checked(percent(left, right))
        texts = isinstance(left, str) and isinstance(right, str)
        if operator == "+" and texts and (isinstance(left, Quoted) or isinstance(right, Quoted)):
            left, right = tracked(left), tracked(right)
        result = super().call_binop(context, operator, left, right)
        if isinstance(result, str) and not isinstance(result, Quoted):
            result = derived(result, left, right)
        return checked(result)

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
        if isinstance(owner, str) and source_of(*given):
            __obj = getattr(tracked(owner), name)
        result = super().call(__context, __obj, *args, **kwargs)
        if isinstance(owner, (str, bytes)) and name not in TRACKED_METHODS:
            result = derived(result, owner, *given)
        elif owner is None and type(result) is str and not isinstance(__obj, Macro):
            result = derived(result, *given)
        return checked(result, new_strings=isinstance(owner, str))
