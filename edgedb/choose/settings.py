"""Options as text: how ``/set`` and the command line name, read, check and show them.

The sampling options are the fields of ``SamplingParams``: a field that is added there appears in
both places by itself, as long as its type has a row in ``_form``.
"""

from __future__ import annotations

import json
import re
import types
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import MISSING, dataclass, fields
from functools import lru_cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ..errors import EdgeDBError

# Help of an option, for ``/set`` and the command line; a field's ``metadata["help"]`` goes first.
HELP = {
    "temperature": "Randomness; 0 always takes the most likely token.",
    "top_k": "Only so many tokens; 0: all.",
    "top_p": "Only so much probability; 1: all.",
    "min_p": "Only this likely relative to the best; 0: all.",
    "repetition_penalty": "Makes recent tokens less likely; 1: off.",
    "typical_p": "Only so much probability, of tokens of average surprise; 1: all.",
    "presence_penalty": "Taken off the logit of every recent token.",
    "frequency_penalty": "Taken off it for each time that the token occurs.",
    "repetition_window": "Last tokens that these three penalties count, without special ones.",
    "dry_multiplier": "Penalty for repeating a sequence (DRY); 0: off.",
    "dry_base": "Growth of that penalty with each repeated token.",
    "dry_allowed_length": "Repeated tokens that it leaves alone.",
    "dry_breakers": "Texts that end a sequence for it.",
    "mirostat": "2: hold the surprise at mirostat-tau; 0: off.",
    "mirostat_tau": "Surprise to hold, in bits a token.",
    "mirostat_eta": "How quickly mirostat follows.",
    "logit_bias": "Added to the logits of tokens by id; -inf forbids one.",
    "seed": "Repeat the same choices.",
    "max_tokens": "Longest answer, in tokens.",
    "stop": "End the answer at this text; \\n in it is a new line.",
    "stop_ids": "End the answer at one of these tokens.",
    "prompt_lookup": "Tokens to guess at once from earlier text: same answer, faster if it "
    "repeats.",
    "draft_tokens": "Tokens that a draft model guesses at once, at most: same answer; 0: none.",
    "chat_template_kwargs": "Variables for the model's chat template, as JSON.",
    "trim": "When the context is full: refuse, or drop the oldest turns.",
    "stats": "Show speeds after every answer.",
    "markdown": "Render answers as Markdown, each once it is complete.",
}
# Word for None, where "off" would mislead.
_NONE = {"seed": "random", "max_tokens": "unlimited"}
_OFF = ("off", "none")

# How a text that is a value is written on one line, wherever it is typed or shown.
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", '"': '"', "'": "'"}
_NAMES = {character: name for name, character in _ESCAPES.items() if name not in "\"'"}
_ESCAPED = re.compile(r"""\\(?:x([0-9A-Fa-f]{2})|([ntr\\"']))""")
_UNSEEN = re.compile(r"[\\\x00-\x1f\x7f-\x9f]")
_WORD = re.compile(r"""(?:\\.|"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|[^\s"'\\]|\\$)+""")
_QUOTED = re.compile(r"""(\\.)|"((?:\\.|[^"\\])*)"|'((?:\\.|[^'\\])*)'""")


@dataclass(frozen=True)
class Form:
    """The text form of a type: ``read`` raises ``ValueError`` for what it cannot be."""

    expected: str  # ends the sentence "expected ..."
    read: Callable[[str], Any]
    show: Callable[[Any], str] = str
    values: tuple[str, ...] = ()  # for completion
    number: type | None = None  # int or float, where it is simply that


@dataclass(frozen=True)
class Setting:
    """One option by name."""

    name: str
    help: str
    default: Any
    form: Form
    none: str | None  # the word for None, if None is a value

    def read(self, text: str) -> Any:
        """The value that ``text`` means. Raises ``EdgeDBError`` naming the option."""
        text = text.strip()
        if self.none is not None and text.lower() in (self.none, *_OFF):
            return None
        try:
            return self.form.read(text)
        except ValueError:
            words = f" or {self.none}" if self.none else ""
            raise EdgeDBError(
                f"{self.name} = {text}: expected {self.form.expected}{words}"
            ) from None

    def show(self, value: Any) -> str:
        """``value`` as a text that ``read`` takes."""
        if value is None:
            return self.none or "none"
        return self.form.show(value)

    @property
    def values(self) -> tuple[str, ...]:
        """Words to offer for completion."""
        return (*self.form.values, *((self.none,) if self.none else ()), "default")


def settings_of(cls: type) -> dict[str, Setting]:
    """The fields of a dataclass that a text can set, in their order."""
    hints = get_type_hints(cls)
    found: dict[str, Setting] = {}
    for field in fields(cls):
        optional, hint = _without_none(hints[field.name])
        form = _form(hint)
        if form is None or not field.init:
            continue
        default = field.default if field.default is not MISSING else None
        if field.default_factory is not MISSING:
            default = field.default_factory()
        text = field.metadata.get("help") or HELP.get(field.name, "")
        none = _NONE.get(field.name, "off") if optional else None
        found[field.name] = Setting(field.name, text, default, form, none)
    return found


@lru_cache(maxsize=1)
def sampling_settings() -> dict[str, Setting]:
    """The fields of ``SamplingParams``."""
    from .sampling import SamplingParams  # imports numpy, which `edgedb --help` need not wait for

    return settings_of(SamplingParams)


def _without_none(hint: Any) -> tuple[bool, Any]:
    if get_origin(hint) in (Union, types.UnionType):
        rest = [part for part in get_args(hint) if part is not type(None)]
        optional = len(rest) < len(get_args(hint))
        return optional, rest[0] if len(rest) == 1 else hint
    return False, hint


def _form(hint: Any) -> Form | None:
    """The text form of a type; None if there is none, as for a function."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is bool:
        return Form("on or off", _read_bool, lambda value: "on" if value else "off", ("on", "off"))
    if hint is int:
        return Form("a whole number", int, number=int)
    if hint is float:
        return Form("a number", float, lambda value: f"{value:.6g}", number=float)
    if hint is str:
        return Form("a text", str)
    if origin is Literal and all(isinstance(choice, str) for choice in arguments):
        return Form(" or ".join(arguments), lambda text: _choose(text, arguments), str, arguments)
    if origin is Literal and all(type(choice) is int for choice in arguments):
        words = tuple(map(str, arguments))
        return Form(" or ".join(words), lambda text: int(_choose(text, words)), str, words)
    if _is(origin, Mapping) and arguments == (int, float):
        return Form("ID=NUMBER,ID=NUMBER... or off", _read_map, _show_map, ("off",))
    if _is(origin, Mapping) and arguments == (str, Any):
        return Form(
            'a JSON object like {"enable_thinking": false} or off', read_variables, _show_variables
        )
    items = [part for part in arguments if part is not Ellipsis]
    if _is(origin, Sequence, AbstractSet) and items == [int]:
        return Form("whole numbers like 2,17 or off", _read_ints, _show_ints, ("off",))
    if _is(origin, Sequence, AbstractSet) and items == [str]:
        return Form('texts like "###" "User:" or off', _read_texts, _show_texts, ("off",))
    return None


def _is(origin: Any, *kinds: type) -> bool:
    return isinstance(origin, type) and issubclass(origin, kinds)


def _read_bool(text: str) -> bool:
    words = {"on": True, "true": True, "yes": True, "1": True}
    words |= {"off": False, "false": False, "no": False, "0": False}
    if text.lower() not in words:
        raise ValueError
    return words[text.lower()]


def _choose(text: str, choices: Sequence[str]) -> str:
    if text.lower() not in choices:
        raise ValueError
    return text.lower()


def _read_ints(text: str) -> tuple[int, ...]:
    if text.lower() in _OFF:
        return ()
    return tuple(int(part) for part in text.replace(",", " ").split())


def _read_map(text: str) -> dict[int, float]:
    if text.lower() in _OFF:
        return {}
    pairs = [part.replace(":", "=").split("=") for part in text.replace(",", " ").split()]
    return {int(key): float(value) for key, value in pairs}


def read_variables(text: str) -> dict[str, Any]:
    """Variables for a chat template, none for off. Raises ``ValueError`` for what is no JSON
    object."""
    if text.lower() in _OFF:
        return {}
    try:
        found = json.loads(text)
    except RecursionError:
        raise ValueError from None
    if not isinstance(found, dict):
        raise ValueError
    return found


def _show_variables(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False) if value else "off"


def unescape(text: str) -> str:
    r"""``\n``, ``\t``, ``\r``, ``\\``, ``\"``, ``\'`` and ``\xNN`` in ``text`` become what they
    stand for; any other backslash is one."""
    return _ESCAPED.sub(
        lambda found: chr(int(found[1], 16)) if found[1] else _ESCAPES[found[2]], text
    )


def escape(text: str) -> str:
    """``text`` without control characters, so that ``unescape`` gives it back."""
    return _UNSEEN.sub(lambda found: "\\" + _NAMES.get(found[0], f"x{ord(found[0]):02x}"), text)


def _read_texts(text: str) -> tuple[str, ...]:
    """Words with spaces between them; quotes hold one together."""
    if text.lower() in _OFF:
        return ()
    if _WORD.sub("", text).strip():
        raise ValueError  # a quote that nothing ends
    words = (_QUOTED.sub(lambda found: found[found.lastindex or 0], w) for w in _WORD.findall(text))
    return tuple(map(unescape, words))


def _show_ints(value: Sequence[int]) -> str:
    return ",".join(map(str, sorted(value))) or "off"


def _show_map(value: Mapping[int, float]) -> str:
    return ",".join(f"{key}={bias:g}" for key, bias in value.items()) or "off"


def _show_texts(value: Sequence[str]) -> str:
    return " ".join(map(_quoted, value)) or "off"


def _quoted(text: str) -> str:
    shown = escape(text)
    if '"' in text and "'" not in text:
        return f"'{shown}'"
    return '"' + shown.replace('"', '\\"') + '"'
