"""How much memory there is, and how fast it is read."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgedb import EdgeDBError
from edgedb.measure import memory

V2 = "30 24 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw"
V1 = "32 31 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"


@pytest.mark.parametrize(
    ("groups", "mounts", "file", "text", "granted"),
    [
        ("0::/", V2, "memory.max", "1000000", 1_000_000),
        ("0::/", V2, "memory.max", "max", None),
        ("5:memory:/", V1, "memory/memory.limit_in_bytes", "2000000", 2_000_000),
        ("5:memory:/", V1, "memory/memory.limit_in_bytes", str(1 << 62), None),
        ("4:cpu:/", V1, "memory/memory.limit_in_bytes", "2000000", None),
    ],
)
def test_a_control_group_grants_less(
    tmp_path: Path, groups: str, mounts: str, file: str, text: str, granted: int | None
) -> None:
    files = {"proc/self/cgroup": groups, "proc/self/mountinfo": mounts}
    for name, content in {**files, f"sys/fs/cgroup/{file}": text}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    whole = memory.memory_bytes(tmp_path / "nothing")
    assert whole > 10**8
    assert memory.memory_bytes(tmp_path) == (granted or whole)


def test_a_system_that_does_not_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("os.sysconf")
    with pytest.raises(EdgeDBError, match="give --memory"):
        memory.memory_bytes()


def test_windows_is_asked_in_its_own_way(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(memory, "_windows_memory_bytes", lambda: 5 << 30)
    assert memory.memory_bytes(tmp_path) == 5 << 30


def test_reading_has_a_speed() -> None:
    assert 1e8 < memory.read_speed(threads=2, size_bytes=1 << 24) < 1e13
