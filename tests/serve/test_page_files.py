"""The page's three files as they are on disk: small, whole, and asking nobody else for anything."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from places import ROOT

FOLDER = ROOT / "edgedb" / "serve" / "page"
NAMES = ("index.html", "page.css", "page.js")
MAX_BYTES = 60_000
# What could make markup or code of a text.
SINKS = r"\.(inner|outer)HTML|insertAdjacentHTML|document\.write|\beval\(|new Function|DOMParser"


class Attributes(HTMLParser):
    """Every attribute of a page, as (tag, name, value)."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [(tag, name, value or "") for name, value in attrs]


def read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def test_the_page_is_three_small_files() -> None:
    assert sorted(file.name for file in FOLDER.iterdir()) == sorted(NAMES)
    assert sum((FOLDER / name).stat().st_size for name in NAMES) <= MAX_BYTES


def test_nothing_comes_from_elsewhere() -> None:
    attributes = Attributes(read("index.html")).found
    loaded = [v for _, name, v in attributes if name in ("src", "href") and not v.startswith("#")]
    assert sorted(v for v in loaded if not v.startswith("data:")) == ["page.css", "page.js"]
    assert not re.search(r"url\(|@import", read("page.css"))
    assert not re.search(r"\bimport[ (]|importScripts|https?://[a-z]", read("page.js"))


def test_nothing_is_inline() -> None:
    """As the policy has it: no style and no handler in the markup, no script but the file."""
    html = read("index.html")
    wrong = [(tag, name) for tag, name, _ in Attributes(html).found if name[:2] == "on"]
    assert not wrong and not re.search(r"<style|\sstyle=|<script(?![^>]*\ssrc=)", html)


def test_no_text_becomes_markup() -> None:
    assert not re.findall(SINKS, read("page.js"))


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_written_by_hand(name: str) -> None:
    lines = read(name).splitlines()
    assert max(map(len, lines)) <= 400 and len(lines) > 100
