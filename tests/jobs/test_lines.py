"""Lines of a batch: what they ask, and what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgedb.errors import EdgeDBError
from edgedb.jobs.lines import MAX_LINE, Line, parse_line, read_lines


def read(tmp_path: Path, content: bytes) -> list[Line]:
    path = tmp_path / "in.jsonl"
    path.write_bytes(content)
    return read_lines(path)


def test_ids_are_kept_and_lines_without_one_are_counted(tmp_path: Path) -> None:
    content = (
        b'\xef\xbb\xbf{"id": "a", "prompt": "x"}\r\n\n{"prompt": "y"}\n{"id": 7, "prompt": "z"}'
    )
    lines = read(tmp_path, content)
    assert [(line.number, line.id, line.error) for line in lines] == [
        (1, "a", None),
        (3, "3", None),
        (4, 7, None),
    ]
    assert [line.request["prompt"] for line in lines] == ["x", "y", "z"]


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"{", "not valid JSON"),
        (b"[1]", "expected a JSON object"),
        (b'{"prompt": "a", "prompt": "b"}', "'prompt' is there twice"),
        (b'{"id": [], "prompt": "a"}', "id = []: expected a text or a whole number"),
        (b'{"id": true, "prompt": "a"}', "id = True: expected a text or a whole number"),
        (b'{"id": "\\ud800", "prompt": "a"}', "valid Unicode"),
        (b'{"prompt": "caf\xe9"}', "not UTF-8 text (byte 15)"),
        (b'{"prompt": "' + b"a" * MAX_LINE + b'"}', "longer than"),
    ],
)
def test_a_wrong_line_says_so_and_stands_alone(tmp_path: Path, content: bytes, fault: str) -> None:
    wrong, right = read(tmp_path, content + b'\n{"prompt": "b"}')
    assert wrong.error is not None and fault in wrong.error
    assert not wrong.error.startswith("line")  # the record has its number
    assert right.error is None and right.number == 2


def test_one_id_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EdgeDBError, match="lines 1 and 2 have the same id 5"):
        read(tmp_path, b'{"id": "5", "prompt": "a"}\n{"id": 5, "prompt": "b"}')
    with pytest.raises(EdgeDBError, match="lines 1 and 2 have the same id '2'"):
        read(tmp_path, b'{"id": 2, "prompt": "a"}\n{"prompt": "b"}')


def test_a_file_without_lines(tmp_path: Path) -> None:
    with pytest.raises(EdgeDBError, match="has no lines"):
        read(tmp_path, b"\n \n")
    with pytest.raises(EdgeDBError, match=r"nowhere\.jsonl: No such file"):
        read_lines(tmp_path / "nowhere.jsonl")


def test_keys_tell_apart_what_was_asked() -> None:
    one = parse_line(1, '{"id": "a", "prompt": "x"}')
    assert one.key == parse_line(9, one.text).key  # it may move
    others = [
        parse_line(1, '{"id": "a", "prompt": "y"}'),
        parse_line(1, '{"prompt": "x"}'),
        parse_line(2, '{"prompt": "x"}'),
        Line(1, "", error="too long"),
        Line(2, "", error="too long"),
    ]
    assert len({one.key, *(line.key for line in others)}) == 6


def test_a_seed_depends_on_the_run_and_the_id_alone() -> None:
    seed = parse_line(1, '{"id": "a", "prompt": "x"}').seed(0)
    assert seed == 0x5F1AA0C8DAD9  # for ever: runs go on with another version
    assert seed == parse_line(5, '{"id": "a", "prompt": "y"}').seed(0)
    assert seed != parse_line(1, '{"id": "a", "prompt": "x"}').seed(1)
    assert seed != parse_line(1, '{"id": "b", "prompt": "x"}').seed(0)


def test_lines_in_openai_s_form(tmp_path: Path) -> None:
    call = (
        b'{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "x"}}'
    )
    wrong, right = read(tmp_path, b"{\n" + call)
    assert (right.id, right.url, right.error) == ("a", "/v1/completions", None)
    assert right.request == {"prompt": "x"} and right.beginning == "x"
    assert wrong.error is not None and wrong.url == right.url  # it fails in the others' form


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"custom_id": None}, "custom_id = None"),
        ({"method": "GET"}, "method = 'GET': expected POST"),
        ({"url": 5}, "url = 5: expected one like"),
        ({"body": "x"}, "body = 'x': expected a JSON object"),
        ({"prompt": "x"}, "there is no key 'prompt' beside custom_id"),
    ],
)
def test_a_wrong_line_in_openai_s_form(change: dict[str, object], fault: str) -> None:
    call = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {}, **change}
    line = parse_line(1, json.dumps(call))
    assert line.error is not None and fault in line.error and line.url is not None
    assert line.id == change.get("custom_id", "a")
