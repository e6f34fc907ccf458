"""Chat templates: pieces of real ones and of attacks, put together at random and mutated."""

from __future__ import annotations

from pathlib import Path
from random import Random

from edgedb.text.spec import TokenizerSpec
from edgedb.text.template import render

from .. import mutators
from . import models
from .kind import Files, Kind

_MESSAGES = (
    [{"role": "user", "content": "Hello"}],
    [
        {"role": "system", "content": "Be brief.\n"},
        {"role": "user", "content": "Hi <b> & 'you' \U0001f600" * 20},
        {"role": "assistant", "content": "{{ 1 }} <think>\nno\n</think> yes"},
        {"role": "user", "content": ""},
    ],
)


def _words(text: str) -> list[str]:
    return text.split()


_NAMES = _words("""
    messages message bos_token eos_token tools loop ns x y loop.index0 messages[0]
    messages[-1].content message['role'] nothing self namespace range dict cycler joiner
    lipsum caller varargs kwargs raise_exception strftime_now add_generation_prompt
""")
_FILTERS = _words("""
    trim tojson length upper join(',') list first last default('x') replace('a','bb')
    map(attribute='role') selectattr('role','equalto','user') batch(3) slice(2) sort unique
    groupby('role') indent(4) center(50) wordcount string int float sum round(2) random pprint
    xmlattr urlize format(1,2) truncate(9) wordwrap(3) items dictsort reverse abs safe escape
    striptags urlencode filesizeformat max min tojson(indent=4) map('upper') select reject('none')
    count attr('x')
""")
_METHODS = _words(r"""
    strip() split('a') upper() items() keys() get('x') replace('','ab') startswith('H')
    format(x,y=1) join(x) rsplit('\n',1) encode() zfill(70) ljust(9000) __class__ _x append(1)
    count('l') splitlines() expandtabs(99) title() isdigit() partition('a') format_map(x) x.y.z
""")
_NUMBERS = _words("0 1 -1 3 64 99999 65536 300000000 2**63 1e308 1.5")
_TESTS = _words("""
    defined none string mapping iterable number odd divisibleby(0) sameas(x) in(x) true eq(1)
""")
_OPERATORS = ("+", "-", "*", "/", "//", "%", "**", "~", "==", "<", "in", "not in", "and", "or")
_LITERALS = ("", "a", "ab\n", "{0}", "%s", "%9999d", "x" * 200, "<|im_end|>")
# What stands alone, and what stands around a body.
_ALONE = (
    "{% include 'x' %}", "{% import 'x' as y %}", "{% extends 'x' %}", "{% break %}", "{# a #}",
    "{% raw %}{{ {% endraw %}", "{% continue %}",
)  # fmt: skip
_AROUND = (
    ("{% set x %}", "{% endset %}{{ x }}"),
    ("{% filter upper %}", "{% endfilter %}"),
    ("{% generation %}", "{% endgeneration %}"),
    ("{% call y() %}", "{% endcall %}"),
    ("{% with x = 1 %}", "{% endwith %}"),
    ("{% block b %}", "{% endblock %}"),
    ("{% autoescape true %}", "{% endautoescape %}"),
)


class _Writer:
    """Writes random Jinja; the deeper, the simpler."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng

    def expression(self, depth: int = 0) -> str:
        rng = self.rng
        if depth > 4 or rng.random() < 0.3:
            literal = repr(rng.choice(_LITERALS))
            name, number = rng.choice(_NAMES), rng.choice(_NUMBERS)
            return rng.choice((name, number, literal, "[1, 2]", "{'a': 1}"))
        inner = self.expression(depth + 1)
        way = rng.randrange(12)
        if way < 3:
            return f"{inner}|{rng.choice(_FILTERS)}"
        if way < 5:
            return f"({inner}).{rng.choice(_METHODS)}"
        if way < 8:
            return f"({inner} {rng.choice(_OPERATORS)} {self.expression(depth + 1)})"
        if way == 8:
            return f"({inner})[{self.expression(depth + 1)}]"
        if way == 9:
            return f"({inner} if {inner} is {rng.choice(_TESTS)} else {self.expression(depth + 1)})"
        if way == 10:
            return f"{rng.choice(_NAMES)}({inner}, x={self.expression(depth + 1)})"
        begin, end = rng.choice(_NUMBERS), rng.choice(_NUMBERS)
        return f"[{inner}, {self.expression(depth + 1)}][{begin}:{end}]"

    def body(self, depth: int = 0) -> str:
        return "".join(self.statement(depth) for _ in range(self.rng.choice((1, 1, 2))))

    def statement(self, depth: int) -> str:
        rng = self.rng
        way = rng.randrange(12) if depth < 4 else 0
        dash = rng.choice(("", "-"))
        value = self.expression(2)
        if way < 4:
            return f"{{{{{dash} {value} {dash}}}}}"
        inner = self.body(depth + 1)
        if way < 6:
            items = rng.choice(("messages", f"range({rng.choice(_NUMBERS)})", value))
            recursive = rng.choice(("", "", " if x", " recursive"))
            return f"{{%{dash} for x in {items}{recursive} %}}{inner}{{% endfor %}}"
        if way < 8:
            otherwise = f"{{% elif {value} %}}b{{% else %}}{inner}{{%{dash} endif %}}"
            return f"{{% if {value} %}}{inner}{otherwise}"
        if way == 8:
            space = f"{{% set ns = namespace(x={value}) %}}{{% set ns.x = ns.x ~ x %}}"
            return f"{{% set x = {value} %}}{inner}{space}"
        if way == 9:
            return f"{{% macro y(x=1) %}}{inner}{{% endmacro %}}{{{{ y({value}) }}}}"
        if way == 10:
            before, behind = rng.choice(_AROUND)
            return rng.choice((before + inner + behind, rng.choice(_ALONE)))
        return f"text \n {inner}"


# Templates whose size is the attack: what stands before, the repeated parts, what stands between
# and behind them.
_REPEATED = (
    ("", "{{ x }}", "", ""),
    ("{{ ", "(", "1", ")"),
    ("{{ ", "[", "", "]"),
    ("{{ ", "x + ", "x }}", ""),
    ("{{ ", "x ~ ", "x }}", ""),
    ("{{ x", "|upper", " }}", ""),
    ("{{ x", ".a", " }}", ""),
    ("{{ ", "not ", "1 }}", ""),
    ("{{ ", "-", "1 }}", ""),
    ("{{ ", "1,", "1 }}", ""),
    ("{{ x(", "1,", ") }}", ""),
    ("{{ ", "9", " }}", ""),
    ("{{ ", "1 == ", "1 }}", ""),
    ("{{ ", "1 if 1 else ", "1 }}", ""),
    ("{{ '", "a", "", ""),
    ("{{ {", "'a':{", "", "}"),
    ("", "{% if 1 %}", "", "{% endif %}"),
    ("{% if 1 %}", "{% elif 1 %}b", "{% endif %}", ""),
    ("", "{% for i in [1] %}", "", "{% endfor %}"),
    ("", "{% macro a() %}", "", "{% endmacro %}"),
    ("", "{% filter upper %}", "", "{% endfilter %}"),
    ("", "{% set x = 1 %}", "", ""),
    ("{% set ", "a,", "b = 1 %}", ""),
    ("", "text\n" * 30, "", ""),
    ("", "{", "", ""),
    ("", "{#", "", ""),
    ("", "{% raw %}", "", ""),
)
_LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}"
_ENDLESS = (
    "{% macro f(n) %}{{ f(n - 1) }}{{ f(n - 1) }}{% endmacro %}{{ f(90) }}",
    _LOOPS + "{% endfor %}{% endfor %}",
    _LOOPS + "{{ a }}{% endfor %}{% endfor %}",
    _LOOPS + "{% set x = b ~ a %}{% endfor %}{% endfor %}",
    "{% set x = range(60000)|list %}"
    "{% for a in range(99999) %}{% if x == x|list %}{% endif %}{% endfor %}",
    "{% set x = 'ab' * 30000 %}{{ (x ~ x ~ x).replace('a', 'a' * 30)|wordwrap }}",
)


def _bomb(rng: Random) -> str:
    if rng.random() < 0.3:
        return rng.choice(_ENDLESS)
    n = rng.choice((10, 100, 190, 1000, 5000, 30000, 150_000))
    before, repeated, between, behind = rng.choice(_REPEATED)
    return before + repeated * n + between + behind * n


class TemplateKind(Kind):
    name = "template"
    share = 3

    def make(self, rng: Random) -> Files:
        chance = rng.random()
        if chance < 0.02:
            source = _bomb(rng)
        elif chance < 0.2:
            source = mutators.text(rng, models.TEMPLATE)
        else:
            source = _Writer(rng).body()
            if chance < 0.5:
                source = mutators.text(rng, source)
        return {"template.jinja": mutators.encoded(source)}

    def use(self, files: Files, folder: Path) -> None:
        source = files["template.jinja"].decode("utf-8", "surrogatepass")
        spec = TokenizerSpec(
            "tokenizers", b"", chat_template=source, special_tokens={"bos_token": "<s>"}
        )
        render(spec, _MESSAGES[len(source) % 2])
