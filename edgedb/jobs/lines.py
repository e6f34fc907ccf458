"""The lines of a batch: a JSON object each, with an id of its own, and maybe with a fault."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..arguments import unicode
from ..display import quoted
from ..errors import EdgeDBError
from ..files import open_regular
from ..strict_json import parse_json

MAX_LINE = 4 << 20  # bytes; also the most that a request to a server may have


@dataclass(frozen=True)
class Line:
    """One request. ``error`` says why there is none."""

    number: int  # of the line in its file, from 1
    text: str = field(repr=False)  # the line itself
    id: str | int | None = None  # as it stands there; the line's number where it has none
    request: dict[str, Any] = field(default_factory=dict, repr=False)
    url: str | None = None  # of OpenAI's API, in whose form the line is; None: it is a plain one
    error: str | None = None

    @property
    def key(self) -> str:
        """Of the id and the whole request: under another key something else was asked."""
        name = f"line {self.number}" if self.id is None else repr(self.id)
        asked = f"{name}\0{self.text}".encode("utf-8", "surrogatepass")
        return hashlib.sha256(asked).hexdigest()[:32]

    def seed(self, run_seed: int) -> int:
        """The seed of its answer, unless it names one: a hash of the run's and its id, so that it
        depends on no other line and on no machine. 48 bits, which every reader of JSON keeps."""
        digest = hashlib.sha256(f"{run_seed}\0{self.id}".encode()).digest()
        return int.from_bytes(digest[:6], "big")

    @property
    def beginning(self) -> str:
        """A text that begins like another line's if their prompts do."""
        asked = self.request
        if "messages" in asked:
            return json.dumps([asked.get("tools"), asked["messages"]], ensure_ascii=False)
        if "input" in asked:
            return json.dumps([asked.get("instructions"), asked["input"]], ensure_ascii=False)
        prompt = asked.get("prompt")
        return prompt if isinstance(prompt, str) else json.dumps(prompt)


def read_lines(path: Path) -> list[Line]:
    """The lines of a file that are not blank.

    A line that is wrong says so. Raises ``EdgeDBError`` if the file cannot be read, holds no line,
    or two lines have one id.
    """
    lines = list(_read(path))
    if not lines:
        raise EdgeDBError(f"{path} has no lines; give a JSON object with a prompt on each")
    first: dict[str, int] = {}
    for line in lines:
        if line.id is not None and first.setdefault(str(line.id), line.number) != line.number:
            raise EdgeDBError(
                f"{path}: lines {first[str(line.id)]} and {line.number} have the same id "
                f"{quoted(line.id)}; give each its own"
            )
    # A line that cannot be read fails in the form of the others.
    url = next((line.url for line in lines if line.error is None), None)
    return [replace(line, url=url) if line.id is None else line for line in lines]


def parse_line(number: int, text: str) -> Line:
    """What line ``number`` asks. Never raises: a fault is what the line says."""
    name: str | int | None = None
    url: str | None = None
    try:
        request = parse_json(text, f"line {number}")
        if not isinstance(request, dict):
            raise EdgeDBError("expected a JSON object")
        if "custom_id" not in request:
            name = request.pop("id", None)
            name = str(number) if name is None else _id("id", name)
            return Line(number, text, name, request)
        url = ""
        name = _id("custom_id", request.pop("custom_id"))
        url, body = _call(request)
        return Line(number, text, name, body, url)
    except EdgeDBError as error:
        reason = str(error).removeprefix(f"line {number}: ")
        return Line(number, text, name, url=url, error=reason)


def _id(key: str, name: Any) -> str | int:
    if isinstance(name, int) and not isinstance(name, bool):
        return name
    if isinstance(name, str):
        return unicode(key, name)
    raise EdgeDBError(f"{key} = {quoted(name)}: expected a text or a whole number")


def _call(request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Where OpenAI's form would send what."""
    for name in request.keys() - {"method", "url", "body"}:
        raise EdgeDBError(f"there is no key {quoted(name)} beside custom_id, method, url and body")
    method, url, body = (request.get(name) for name in ("method", "url", "body"))
    if method != "POST":
        raise EdgeDBError(f"method = {quoted(method)}: expected POST")
    if not isinstance(url, str):
        raise EdgeDBError(f"url = {quoted(url)}: expected one like /v1/chat/completions")
    if not isinstance(body, dict):
        raise EdgeDBError(f"body = {quoted(body)}: expected a JSON object")
    return url, body


def _read(path: Path) -> Iterator[Line]:
    with open_regular(path) as file:
        number = 0
        while raw := file.readline(MAX_LINE + 1):
            number += 1
            if len(raw) > MAX_LINE:
                while raw and not raw.endswith(b"\n"):
                    raw = file.readline(MAX_LINE)
                yield Line(number, "", error=f"longer than {MAX_LINE:,} bytes")
                continue
            if number == 1:
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            if raw.strip():
                yield _decoded(number, raw)


def _decoded(number: int, raw: bytes) -> Line:
    try:
        return parse_line(number, raw.decode("utf-8").strip())
    except UnicodeDecodeError as error:
        return Line(number, "", error=f"not UTF-8 text (byte {error.start})")
