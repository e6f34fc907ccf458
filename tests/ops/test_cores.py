"""CPU quotas of both versions of control groups, in trees made up here."""

from __future__ import annotations

import math
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from edgedb.ops import cores, library

V2 = "30 24 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
V1 = "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct"
HYBRID = f"41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n{V1}"
V1_GROUPS = "5:memory:/somewhere\n4:cpu,cpuacct:{}\n0::/"


def tree(root: Path, groups: str, mounts: str, files: dict[str, str]) -> Path:
    files = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    files |= {"proc/self/cgroup": groups + "\n", "proc/self/mountinfo": mounts + "\n"}
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def v1(folder: str, quota: int, period: int = 100000) -> dict[str, str]:
    folder = f"cpu,cpuacct/{folder}".rstrip("/")
    return {f"{folder}/cpu.cfs_quota_us": str(quota), f"{folder}/cpu.cfs_period_us": str(period)}


@pytest.mark.parametrize(
    ("groups", "mounts", "files", "quota"),
    [
        ("0::/", V2, {"cpu.max": "150000 100000"}, 1.5),
        ("0::/", V2, {"cpu.max": "max 100000"}, math.inf),
        ("0::/", V2, {}, math.inf),
        # The process's own group, and the groups above it.
        ("0::/a/b", V2, {"a/b/cpu.max": "300000 100000"}, 3),
        ("0::/a/b", V2, {"a/cpu.max": "200000 100000", "a/b/cpu.max": "max 100000"}, 2),
        ("0::/a/b", V2, {"a/cpu.max": "900000 100000", "a/b/cpu.max": "100000 50000"}, 2),
        ("0::/a", V2, {"b/cpu.max": "100000 100000"}, math.inf),
        # Version 1, alone and beside a version 2 without controllers.
        (V1_GROUPS.format("/"), V1, v1("", 250000), 2.5),
        (V1_GROUPS.format("/"), V1, v1("", -1), math.inf),
        (V1_GROUPS.format("/job/7"), HYBRID, v1("job", 400000) | v1("job/7", -1), 4),
        # A container that sees a part of the host's tree, and a group outside of it.
        ("0::/docker/x/y", V2.replace("/ /", "/docker/x /", 1), {"y/cpu.max": "1 2"}, 0.5),
        ("0::/docker/x", V2.replace("/ /", "/docker/z /", 1), {"cpu.max": "1 2"}, 0.5),
        ("0::/../other", V2, {"cpu.max": "100000 100000"}, 1),
        # Nothing to believe.
        ("", "", {"cpu.max": "100000 100000"}, math.inf),
        ("0::/", V2, {"cpu.max": "many few"}, math.inf),
        ("0::/", V2, {"cpu.max": "1 0"}, math.inf),
        ("nonsense", "nonsense - \n\n- - - -", {}, math.inf),
    ],
)
def test_quota(
    tmp_path: Path, groups: str, mounts: str, files: dict[str, str], quota: float
) -> None:
    assert cores.cpu_quota(tree(tmp_path, groups, mounts, files)) == quota


@pytest.mark.parametrize(
    ("quota", "threads"), [(10, 1), (99, 1), (100, 1), (150, 1), (199, 1), (200, 2), (350, 3)]
)
def test_a_part_of_a_cpu_is_no_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: int, threads: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    root = tree(tmp_path, "0::/", V2, {"cpu.max": f"{quota} 100"})
    assert cores.physical_cores(root) == cores.usable_cpus(root) == threads


def test_hardware_threads_share_a_core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 4})
    for cpu, siblings in enumerate(("0,4", "1,5", "2,6", "3,7", "0,4")):
        path = tmp_path / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        path.parent.mkdir(parents=True)
        path.write_text(siblings)
    assert (cores.physical_cores(tmp_path), cores.usable_cpus(tmp_path)) == (2, 3)


def test_fast_cores_alone_where_the_system_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    for told, expected in ((4, 4), (0, 7)):
        fake = SimpleNamespace(edb_fast_cores=lambda told=told: told)
        monkeypatch.setattr(library, "lib", fake)
        assert cores.physical_cores() == expected
    monkeypatch.setattr(library, "lib", None)
    assert cores.physical_cores() == 7


def test_this_machine() -> None:
    assert 1 <= cores.physical_cores() <= cores.usable_cpus() <= (os.cpu_count() or 1)
