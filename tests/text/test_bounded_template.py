"""What bounds a template's values: single operations, doubling, sharing, laziness, and a sweep."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Iterator

import pytest
from jinja2.filters import FILTERS
from quick import within

from edgedb import TemplateError
from edgedb.text import bounded_template, bounds
from edgedb.text.spec import TokenizerSpec
from edgedb.text.template import render

N = 300_000_000
PEAK_BYTES = 96 << 20  # one value of MAX_WORK items of text, before it is measured
MESSAGES = [{"role": "user", "content": "Hello"}]
BIG = "{% set big = ('a' * 60000) %}{% set huge = big ~ big ~ big ~ big ~ big ~ big %}"
DOUBLE = "{% set n = namespace(x=['ab'], s='ab', i=3) %}{% for i in range(64) %}"


@pytest.fixture(autouse=True)
def usual_recursion_limit() -> Iterator[None]:
    """As Python starts with: some libraries raise it when they are imported."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(1000)
    yield
    sys.setrecursionlimit(before)


def error_of(spec: TokenizerSpec) -> str | None:
    try:
        render(spec, MESSAGES)
    except TemplateError as error:
        return str(error)
    return None


def attempt(template: str, seconds: float = 1.0, traced: bool = True) -> str | None:
    """The error of rendering ``template``, which must be quick, small and on one line."""
    spec = TokenizerSpec("tokenizers", b"", chat_template=template, special_tokens={})
    error = within(seconds, lambda: error_of(spec))
    if traced:  # slower by far, so that the time is another rendering's
        tracemalloc.start()
        try:
            error_of(spec)  # maybe another one: it may now take too long
            assert tracemalloc.get_traced_memory()[1] < PEAK_BYTES
        finally:
            tracemalloc.stop()
    assert error is None or "MemoryError" not in error
    assert error is None or (error.startswith("chat template") and "\n" not in error)
    return error


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (f"{{{{ '{{:>{N}}}'.format('x') }}}}", "width"),
        (f"{{{{ '{{:>{{w}}}}'.format('x', w={N}) }}}}", "width"),
        ("{{ '{:{a}{a}{a}}'.format('x', a='999') }}", "width"),
        (f"{{{{ ('{{:>{N}}}'|safe).format('x') }}}}", "width"),
        (f"{{{{ '{{a:>{N}}}'.format_map({{'a': 1}}) }}}}", "width"),
        (f"{{{{ '%{N}d'|format(1) }}}}", "width"),
        (f"{{{{ '%(a(%b)c){N}d' % {{'a(%b)c': 1}} }}}}", "width"),
        (f"{{{{ '%*d' % ({N}, 1) }}}}", "as an argument"),
        (f"{{{{ '%.*f'|format({N}, 1.5) }}}}", "as an argument"),
        (f"{{{{ '%s' * 9999 % ('{'9' * 10}',) }}}}", "chat template"),
        (BIG + "{{ ('%s' * 30000) % huge }}", "operation"),
        (BIG + "{{ ('{0}' * 20000).format(huge) }}", "operation"),
        (f"{{{{ 'x'|center({N}) }}}}", "as an argument"),
        (f"{{{{ 'x'.ljust({N}) }}}}", "as an argument"),
        (f"{{{{ 'x'.zfill({N}) }}}}", "as an argument"),
        (f"{{{{ '\t'.expandtabs({N}) }}}}", "as an argument"),
        (f"{{{{ 'x\ny'|indent({N}) }}}}", "as an argument"),
        (f"{{{{ ['x']|map('center', {N})|list }}}}", "as an argument"),
        (f"{{{{ [1]|tojson(indent={N}) }}}}", "as an argument"),
        ("{{ [1]|tojson(indent=60000) }}", "indent"),
        (f"{{% for x in [1]|batch({N}, 0) %}}{{% endfor %}}", "as an argument"),
        (f"{{% for x in [1]|slice({N}) %}}{{% endfor %}}", "as an argument"),
        (f"{{{{ 1.5|round({N}, 'ceil') }}}}", "as an argument"),
        (BIG + "{{ huge.replace('', huge) }}", "operation"),
        (BIG + "{{ huge|replace('a', huge) }}", "operation"),
        (BIG + "{{ huge.join(huge) }}", "operation"),
        (BIG + "{{ range(99999)|join(huge) }}", "operation"),
        (BIG + "{{ ''.join(range(99999)|map(attribute='x', default=huge)) }}", "characters"),
        (BIG + "{{ range(99999)|map(attribute='x', default=huge)|join }}", "characters"),
        (BIG + "{{ huge.rsplit('b' ~ huge) }}", "operation"),
        (BIG + "{{ huge.encode('punycode') }}", "encode with 'punycode'"),
        (BIG + "{{ huge.encode('utf-8', 'namereplace') }}", "encode with 'namereplace'"),
        (BIG + "{{ huge.encode('utf-32') }}", "characters"),
        (f"{{{{ '%{N}d'.encode() % 1 }}}}", "width"),
        (f"{{{{ 'x'.encode().center({N}) }}}}", "as an argument"),
        ("{{ 'x'.encode() * 99999 }}", "repetitions"),
        (BIG + "{{ " + " ~ ".join(["huge"] * 1000) + " }}", "characters"),
        (BIG + "{{ [huge, huge, huge, huge, huge, huge] }}", "characters"),
        ("{{ (1).to_bytes(300000000) }}", "as an argument"),
        ("{{ [].__len__() }}{{ 'x'.__class__ }}", "unsafe"),
        ("{{ (1.5).fromhex('1') }}", "the method 'fromhex'"),
        ("{{ ('x'|safe).striptags() is defined }}", "the method 'striptags'"),
        ("{{ lipsum(n=100000) }}", "the same messages must always give the same text"),
        ("{{ [1]|random }}", "the same messages must always give the same text"),
        ("{{ 2 ** 64 }}", "bits"),
        ("{{ 3 ** 300000000 }}", "bits"),
        ("{{ (-3) ** 300000000 }}", "bits"),
        (BIG + "{{ (' ' ~ big)|wordwrap(1) }}", "wordwrap of so long"),
        (BIG + "{{ big|wordwrap(1, wrapstring=huge) }}", "operation"),
        (BIG + "{{ ('a<' ~ huge|replace('a', '<'))|striptags }}", "striptags of so long"),
        (BIG + "{{ huge|urlize }}", "urlize of more"),
        (
            BIG + "{{ ('a' ~ big|replace('a', '(') ~ big|replace('a', ')'))|urlize }}",
            "urlize of so",
        ),
        (BIG + "{{ {big: [1, 2, 3] * 20}|pprint }}", "characters"),
        (
            "{% set n = namespace(x=1) %}{% for i in range(400) %}{% set n.x = [n.x] %}{% endfor %}"
            "{{ n.x|pprint }}",
            "deeply",
        ),
        (DOUBLE + "{% set n.s = n.s ~ n.s %}{% endfor %}", "characters"),
        (DOUBLE + "{% set n.s = n.s + n.s %}{% endfor %}", "characters"),
        (DOUBLE + "{% set n.s = n.s * 2 %}{% endfor %}", "repetitions"),
        (DOUBLE + "{% set n.s %}{{ n.s }}{{ n.s }}{% endset %}{% endfor %}", "characters"),
        (DOUBLE + "{% set n.s = '%s%s' % (n.s, n.s) %}{% endfor %}", "characters"),
        (DOUBLE + "{% set n.s = [n.s, n.s]|join %}{% endfor %}", "characters"),
        (DOUBLE + "{% set n.x = n.x + n.x %}{% endfor %}", "characters"),
        (DOUBLE + "{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}", "characters"),
        (DOUBLE + "{% set n.x = (n.x, n.x) %}{% endfor %}{{ n.x }}", "characters"),
        (DOUBLE + "{% set n.x = {1: n.x, 2: n.x} %}{% endfor %}{{ n.x }}", "characters"),
        (DOUBLE + "{% set n.x = dict(a=n.x, b=n.x) %}{% endfor %}{{ n.x }}", "characters"),
        (DOUBLE + "{% set n.x = cycler(n.x, n.x).items %}{% endfor %}{{ n.x }}", "characters"),
        (
            "{% macro f() %}{% set n.x = varargs %}{% endmacro %}"
            + DOUBLE
            + "{{ f(n.x, n.x) }}{% endfor %}{{ n.x }}",
            "undefined|characters",
        ),
        (DOUBLE + "{% set n.i = n.i * n.i %}{% endfor %}", "bits"),
        (DOUBLE + "{% set n.i = n.i - -n.i %}{% endfor %}", "bits"),
        ("{{ range(99999)|map('list')|list|sum(start=[]) }}", "chat template"),
        ("{{ [[1]]|sum(start=[]) }}", "sum"),
        ("{{ strftime_now('%9999999d' * 5000) }}", "pattern"),
    ],
)
def test_one_operation_or_doubling(template: str, reason: str) -> None:
    error = attempt(template)
    assert error is not None
    assert any(word in error for word in reason.split("|")), error


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (
            "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
            "{{ f(60) }}",
            "bytes|seconds",
        ),
        (
            "{% for x in [1] recursive %}{{ loop(range(99999)) if loop.depth < 5 }}{% endfor %}",
            "steps|bytes|seconds",
        ),
        (
            BIG + "{% set n = namespace(x=[]) %}{% for i in range(9999) %}"
            "{% set n.x = [namespace(o=n.x, s=huge ~ i)] %}{% endfor %}",
            "bytes",
        ),
        (
            BIG + "{% macro f() %}{% for i in range(9999) %}{{ huge }}{% endfor %}{% endmacro %}"
            "{{ f()|length }}",
            "bytes",
        ),
        (
            "{% set x %}{% for i in range(99999) %}" + "text " * 999 + "{% endfor %}{% endset %}",
            "bytes",
        ),
    ],
)
def test_what_a_whole_rendering_may_make(template: str, reason: str) -> None:
    error = attempt(template, seconds=15, traced=False)
    assert error is not None
    assert any(word in error for word in reason.split("|")), error


def test_slow_comparisons_end_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "MAX_SECONDS", 0.2)
    lists = "{% set a = range(60000)|list %}{% set b = range(60000)|list %}"
    for loop in (
        "{% for i in range(99999) %}{% if a == b %}{% endif %}{% endfor %}",
        "{{ ([a] * 2 * 1)|select('ne', b)|list }}" * 400,
    ):
        error = attempt(lists + loop, seconds=5, traced=False)
        assert error is not None and ("seconds" in error or "bytes" in error)


LONG = {
    "text": "{text}\n" * 150_000,
    "outputs": "{{ x }}" * 150_000,
    "sum": "{{ " + " + ".join(["x"] * 10_000) + " }}",
    "chain": "{% if x %}a" + "{% elif x %}b" * 4_000 + "{% endif %}",
    "comments": "{# a #}" * 150_000,
}
# As long as is accepted, and slow to compile: names that every branch and loop copies.
NAMES = "".join(f"{{% set x{i} = 1 %}}" for i in range(525))
SLOW = {
    "outputs": "{{ x }}" * 2_300,
    "branches": NAMES + "{% if 1 %}{% set y = 1 %}{% endif %}" * 240,
    "loops": "{% for a in b %}" * 15 + NAMES + "{{ x1 }}" * 1_160 + "{% endfor %}" * 15,
    "macros": NAMES + "{% macro a(b) %}{{ b }}{% endmacro %}" * 285,
    "sums": ("{{ " + "+".join(["x"] * 50) + " }}") * 110,
}


@pytest.mark.parametrize("name", LONG)
def test_a_template_too_long_to_compile(name: str) -> None:
    error = attempt(LONG[name])
    assert error is not None and ("tokens" in error or "more than 131072" in error)


@pytest.mark.parametrize("name", SLOW)
def test_what_is_compiled_is_compiled_in_a_second(name: str) -> None:
    tokens = list(bounded_template.BoundedEnvironment().lexer.tokeniter(SLOW[name], None))
    assert 0.9 < len(tokens) / bounds.MAX_TEMPLATE_TOKENS <= 1
    attempt(SLOW[name], seconds=2, traced=False)


def test_namespaces_that_hold_each_other_stay_opaque() -> None:
    spaces = "".join(f"{{% set n{i} = namespace() %}}" for i in range(40))
    nested = "".join(f"{{% set n{i}.x = [n{i - 1}, n{i - 1}] %}}" for i in range(39, 0, -1))
    assert attempt(spaces + nested + "{{ n39 }}{{ n39.x }}{{ n39.x == n38.x }}") is None


HOSTILE = ("300000000", "-300000000", "65536", "big", "[big]")
SUBJECTS = ("'a\\tb\\nc {0:>99999999} %99999999d'", "big", "[big, 'b']", "range(3000)", "7")


@pytest.mark.parametrize("name", sorted(FILTERS))
def test_every_filter_with_hostile_arguments(name: str) -> None:
    for subject in SUBJECTS:
        for value in HOSTILE:
            for arguments in (f"({value})", f"('a', {value})"):
                attempt(f"{BIG}{{{{ ({subject})|{name}{arguments} }}}}", traced=False)
            attempt(f"{BIG}{{{{ [{subject}]|map('{name}', {value})|list }}}}", traced=False)


OWNERS = {
    str: SUBJECTS[:2],
    bytes: ("big.encode()",),
    int: ("7", "-7"),
    float: ("1e308",),
    list: ("range(3000)|list",),
    dict: ("{big: big}", "dict"),
    set: ("({big: 1}.keys() - [])",),
}


@pytest.mark.parametrize(
    ("owner", "name"),
    [(owner, name) for owner in OWNERS for name in dir(owner) if not name.startswith("_")],
)
def test_every_method_with_hostile_arguments(owner: type, name: str) -> None:
    for subject in OWNERS[owner]:
        for value in HOSTILE:
            for arguments in (f"({value})", f"({value}, {value})", f"('a', {value})"):
                attempt(f"{BIG}{{{{ ({subject}).{name}{arguments} }}}}", traced=False)


@pytest.mark.parametrize("operator", ["+", "-", "*", "/", "//", "%", "**", "~"])
def test_every_operator_with_hostile_operands(operator: str) -> None:
    for left in (*SUBJECTS, *HOSTILE):
        for right in HOSTILE:
            attempt(f"{BIG}{{{{ ({left}) {operator} ({right}) }}}}", traced=False)
