"""Which regular expressions of a tokenizer are run: those of real ones, and none that explode."""

from __future__ import annotations

import pytest

from edgedb import UnsupportedModelError
from edgedb.text.bounded_regex import MAX_CHARS, check_regex

_SHORT = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SPACES = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
PUBLISHED = {
    "gpt-2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "llama 3": _SHORT + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*" + _SPACES,
    "qwen 2": _SHORT + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*" + _SPACES,
    "qwen 3.5": _SHORT
    + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    + _SPACES,
    "gpt-4": r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
    "gpt-4o": rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_SHORT}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_SHORT}?|\p{{N}}{{1,3}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _SPACES,
    "tekken": rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _SPACES,
    "deepseek 3": r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?"
    r"[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*" + _SPACES,
    "deepseek 3, Chinese": "[一-龥\u3040-ゟ\u30a0-ヿ]+",
    "deepseek coder": r"\s?\p{L}+",
    "deepseek llm": r"\s?[!-/:-~\uFF01-\uFF0F\uFF1A-\uFF5E\u2018-‟\u3000-。]+",
    "deepseek llm, end": r"\s+$",
    "falcon": "[0-9][0-9][0-9]",
    "falcon, punctuation": r"[\p{P}\$\+<=>\^~\|`]+",
    "bloom": r" ?[^(\s|[.,!?…。\uFF0C、।\u06D4،])]+",
    "starcoder": r"\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}",
    "command-a": r"\d{1,3}(?=(?:\d{3})*\b)",
    "superbpe": r"(?=(\d{3})+(?!\d))",
    "exaone": _SHORT
    + r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?"
    r"|\s*[\r\n]|\s+(?!\S)|\s+",
    "kimi": rf"[\p{{Han}}]+|[^\r\n\p{{L}}\p{{N}}]?[{_UPPER[1:-1]}&&[^\p{{Han}}]]*"
    rf"[{_LOWER[1:-1]}&&[^\p{{Han}}]]+{_SHORT}?|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
    + _SPACES,
    "seed coder": _SHORT + "|\\p{N}{1}| ?[^\\s\\p{L}\\p{N}\r\n]+|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
    "gemma 4": r"[^\n]+|[\n]+",
    "chameleon": "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
    "t5": " {2,}",
}
EXPLOSIVE = {
    r"(a*)*b": "follow",
    r"(\w+\s?)+$": "follow",
    r"(a|aa)+$": "follow",
    r"(.*)(.*)(.*)x": "follow",
    r"(?:ab*){2}": "follow",
    r"[^x]+x": "follow",
    r"\s*[\r\n]+x": "follow",
    r"(?=.*)a": "look-ahead",
    r"x+?": "lazy",
    "a?" * 30 + "a" * 30: "ways",
    r"(?:a|b|c){1,9}d": "ways",
    r"(?:a{1,1000}){1,1000}": "ways",
    r"(?:a{1000}){1000}": "characters",
    r"a{99999}": "characters",
    r"a{2}{3}": "repetition of a repetition",
    r"a{3,2}": "wrong way",
    r"(?<=a)b": "group",
    r"(?<n>a\g<n>?b)": "group",
    r"(a)\1": "escape",
    r"(?(1)a)": "group",
    r"a{,x}": "brace",
    r"[]a]": "class",
    r"[a": "class",
    r"(a": "end",
    r"a)": "unexpected",
    r"*a": "nothing",
    "\\": "escape",
    "(" * 500: "groups",
    "[" * 500: "classes",
    "a" * (MAX_CHARS + 1): str(MAX_CHARS),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_published_tokenizers_use(name: str) -> None:
    check_regex(PUBLISHED[name], "here")


@pytest.mark.parametrize("pattern", EXPLOSIVE)
def test_what_could_take_for_ever(pattern: str) -> None:
    with pytest.raises(UnsupportedModelError, match="here: the regular") as error:
        check_regex(pattern, "here")
    assert EXPLOSIVE[pattern] in str(error.value)
    assert len(str(error.value)) < 300 and "\n" not in str(error.value)
