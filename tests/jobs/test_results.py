"""What is done so far: kept through every end, and written in the order of the input."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from edgedb.errors import EdgeDBError
from edgedb.jobs.lines import Line, parse_line
from edgedb.jobs.records import Record, answered, failure
from edgedb.jobs.results import Results

SAME = {"model": "m", "temperature": 0.7}
LINES = [parse_line(i, json.dumps({"id": f"é{i}", "prompt": "x"})) for i in range(1, 5)]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def record(line: Line) -> Record:
    return answered(line, {"text": f"answer {line.number}"}, 3)


def part(out: Path) -> Path:
    return out.with_name("out.jsonl.part")


def interrupted(out: Path, *lines: Line) -> None:
    with Results(out, SAME) as results:
        for line in lines:
            results.add(line, record(line))


def test_the_output_is_in_the_order_of_the_input(out: Path) -> None:
    for order in (LINES, LINES[::-1]):
        with Results(out, SAME, overwrite=True) as results:
            assert results.left(LINES) == LINES
            for line in order:
                results.add(line, record(line))
            assert results.finish(LINES) == 0
        assert out.read_text() == "".join(record(line).text + "\n" for line in LINES)
        assert not part(out).exists()


def test_a_run_goes_on_where_another_ended(out: Path) -> None:
    interrupted(out, LINES[2], LINES[0])
    assert not out.exists()
    with Results(out, SAME) as results:
        assert results.left(LINES) == [LINES[1], LINES[3]]
        results.add(LINES[1], record(LINES[1]))
    interrupted(out, LINES[3])
    with Results(out, SAME) as results:
        assert results.left(LINES) == []
        results.finish(LINES)
    assert [json.loads(line)["id"] for line in out.read_text().splitlines()] == [
        line.id for line in LINES
    ]


def test_every_end_of_the_file_is_survived(out: Path) -> None:
    """Whichever byte was the last to reach the disk."""
    interrupted(out, *LINES)
    whole = part(out).read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for n in range(len(whole)):
        part(out).write_bytes(whole[:n])
        with Results(out, SAME) as results:
            n_done = max(0, sum(end <= n for end in ends) - 1)
            assert len(results.left(LINES)) == len(LINES) - n_done
            for line in results.left(LINES):
                results.add(line, record(line))
        assert part(out).read_bytes() == whole


def test_a_changed_line_is_another_one(out: Path) -> None:
    interrupted(out, *LINES)
    changed = parse_line(2, json.dumps({"id": LINES[1].id, "prompt": "y"}))
    lines = [LINES[0], changed, LINES[3]]  # and one is gone
    with Results(out, SAME) as results:
        assert results.left(lines) == [changed]
        results.add(changed, record(changed))
        results.finish(lines)
    assert len(out.read_text().splitlines()) == 3


def test_failures_are_tried_again_and_counted(out: Path) -> None:
    with Results(out, SAME) as results:
        for line in LINES[:3]:
            results.add(line, failure(line, "no memory"))
    with Results(out, SAME) as results:
        assert results.left(LINES) == LINES
        results.add(LINES[0], record(LINES[0]))
    with Results(out, SAME) as results:
        assert results.left(LINES) == LINES[1:]
        results.add(LINES[3], record(LINES[3]))
        assert results.finish(LINES) == 2
    texts = [json.loads(line) for line in out.read_text().splitlines()]
    assert texts[1] == {"id": "é2", "line": 2, "error": "no memory"}
    assert "error" not in texts[0]


def test_another_run_is_not_gone_on_with(out: Path) -> None:
    interrupted(out, LINES[0])
    with pytest.raises(EdgeDBError, match=r"begun with temperature = 0\.7, and this run has 0\.2"):
        Results(out, {**SAME, "temperature": 0.2})
    with pytest.raises(EdgeDBError, match="begun with model = 'm', and this run has None"):
        Results(out, {"temperature": 0.7})
    with Results(out, {}, overwrite=True) as results:
        assert results.left(LINES) == LINES


def test_two_runs_at_once_are_refused(out: Path) -> None:
    with Results(out, SAME), pytest.raises(EdgeDBError, match="another run is at work"):
        Results(out, SAME, overwrite=True)


def test_what_is_complete_is_not_begun_again(out: Path) -> None:
    out.write_text("results of last week\n")
    with pytest.raises(EdgeDBError, match="is there already; give another name, or --overwrite"):
        Results(out, SAME)
    assert out.read_text() == "results of last week\n"
    # Between the output and the end of its part, the run may have been killed.
    interrupted_part = part(out)
    out.unlink()
    interrupted(out, *LINES)
    out.write_text("")
    with Results(out, SAME) as results:
        assert results.left(LINES) == []
        results.finish(LINES)
    assert len(out.read_text().splitlines()) == 4 and not interrupted_part.exists()


@pytest.mark.parametrize("damage", [b"\0" * 40 + b"\n", b'{"key": 1}\n', b"[]\n"])
def test_damage_in_the_middle_is_said(out: Path, damage: bytes) -> None:
    interrupted(out, LINES[0])
    whole = part(out).read_bytes()
    part(out).write_bytes(whole + damage + whole.splitlines(keepends=True)[1])
    with pytest.raises(EdgeDBError, match="line 3 is damaged"):
        Results(out, SAME)


def test_what_no_file_can_hold_is_escaped(out: Path) -> None:
    line = LINES[0]
    with Results(out, SAME) as results:
        results.add(line, answered(line, {"text": "é\ud800"}, 1))
        results.finish([line])
    assert json.loads(out.read_text())["text"] == "é\ud800"


def test_a_full_disk_is_one_line_and_loses_nothing(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, room = os.write, 300

    def limited(fd: int, data: bytes) -> int:
        nonlocal room
        if not room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        room -= (n := min(room, len(data)))
        return write(fd, data[:n])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", limited)
        with pytest.raises(EdgeDBError, match=r"out\.jsonl\.part: No space left on device; what"):
            interrupted(out, *LINES)
    assert len(part(out).read_bytes()) == 300
    with Results(out, SAME) as results:
        left = results.left(LINES)
        assert 0 < len(left) < len(LINES)
        for line in left:
            results.add(line, record(line))
        results.finish(LINES)
    assert out.read_text() == "".join(record(line).text + "\n" for line in LINES)
