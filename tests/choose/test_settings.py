"""Options as text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from edgedb import EdgeDBError
from edgedb.choose.sampling import SamplingParams
from edgedb.choose.settings import escape, sampling_settings, settings_of, unescape


@dataclass(frozen=True)
class Sample:
    switch: bool = False
    count: int = 3
    share: float = 0.5
    maybe: int | None = None
    mode: Literal["slow", "fast"] = "slow"
    level: Literal[0, 1, 2] = 0
    bias: Mapping[int, float] = field(default_factory=dict)
    ids: tuple[int, ...] = ()
    seed: int | None = None
    texts: tuple[str, ...] = ()
    hook: Callable[[int], int] | None = None
    hooks: tuple[Callable[[int], int], ...] = ()
    variables: Mapping[str, Any] = field(default_factory=dict)
    said: int = field(default=1, metadata={"help": "What it is."})


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("switch", "on", True),
        ("switch", "NO", False),
        ("count", "-7", -7),
        ("share", "1e-3", 0.001),
        ("maybe", "5", 5),
        ("maybe", "off", None),
        ("seed", "random", None),
        ("mode", "Fast", "fast"),
        ("level", "2", 2),
        ("bias", "5=-1.5, 7=2", {5: -1.5, 7: 2.0}),
        ("bias", "5:3", {5: 3.0}),
        ("bias", "off", {}),
        ("ids", "3,4 5", (3, 4, 5)),
        ("ids", "off", ()),
        ("texts", '"a b" c\\n', ("a b", "c\n")),
        ("texts", r"""'it"s' "it's" a'b c'""", ('it"s', "it's", "ab c")),
        (
            "texts",
            r"""\n \\n "\t\r" \d "\"" '\'' \x1b[""",
            ("\n", r"\n", "\t\r", r"\d", '"', "'", "\x1b["),
        ),
        ("texts", r"""'"' \\ a\ """, ('"', "\\", "a\\")),
        ("texts", "it's", None),
        ("texts", r'"it\"', None),
        ("texts", "off", ()),
        (
            "variables",
            '{"enable_thinking": false, "n": [1, "é"]}',
            {"enable_thinking": False, "n": [1, "é"]},
        ),
        ("variables", "off", {}),
        ("variables", "[1]", None),
        ("variables", "{", None),
        ("variables", "[" * 100_000, None),
        ("switch", "perhaps", None),
        ("count", "2.5", None),
        ("share", "much", None),
        ("mode", "medium", None),
        ("level", "3", None),
        ("bias", "5", None),
        ("ids", "a", None),
    ],
)
def test_reading_and_showing(name: str, text: str, value: Any) -> None:
    setting = settings_of(Sample)[name]
    if value is None and text not in ("off", "random"):
        with pytest.raises(EdgeDBError, match=f"^{name} = .*: expected "):
            setting.read(text)
    else:
        assert setting.read(text) == value
        assert setting.read(setting.show(value)) == value


def test_every_character_survives_its_text_form() -> None:
    everything = "".join(map(chr, range(0x250))) + r"\n\\n \x41 \" "
    shown = escape(everything)
    assert unescape(shown) == everything
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in shown)
    texts = settings_of(Sample)["texts"]
    for value in ((everything,), ("off",), ("'", '"', "\"'"), ("\n", "\\n", "\\")):
        assert texts.read(texts.show(value)) == value


def test_fields_without_a_text_are_left_out() -> None:
    found = settings_of(Sample)
    assert "hook" not in found and "hooks" not in found
    assert found["said"].help == "What it is."
    assert found["mode"].values == ("slow", "fast", "default")


def test_every_sampling_option_can_be_set_and_explains_itself() -> None:
    for name, setting in sampling_settings().items():
        assert setting.help, f"{name} needs a help text in edgedb/choose/settings.py"
        assert setting.read(setting.show(setting.default)) == setting.default
    functions = {"processors", "logits_processors"}
    assert vars(SamplingParams()).keys() - sampling_settings().keys() <= functions
