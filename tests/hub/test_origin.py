"""``origin.json``: what is written is read, whatever else lies there."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgedb.hub.origin import FILE, forget_origin, origin_of, write_origin


def test_records_of_several_models(tmp_path: Path) -> None:
    one, two = tmp_path / "one.dbb", tmp_path / "two.dbb"
    write_origin(one, {"repository": "a/b"})
    write_origin(two, {"repository": "a/b", "revision": "x"})
    assert origin_of(one) == {"repository": "a/b"} and origin_of(two)["revision"] == "x"
    assert origin_of(tmp_path / "three.dbb") == {}
    forget_origin(one)
    assert origin_of(one) == {} and origin_of(two)
    forget_origin(two)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[1]", b'{"one.dbb": 3}', b"\xff", b"[" * 100_000, b'{"a": ' + b"9" * 5000],
)
def test_a_damaged_file_says_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    assert origin_of(tmp_path / "one.dbb") == {}
    write_origin(tmp_path / "one.dbb", {"repository": "a/b"})
    assert origin_of(tmp_path / "one.dbb") == {"repository": "a/b"}
