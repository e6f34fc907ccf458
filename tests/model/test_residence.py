"""Where a model's bytes lie: the same bytes either way, and what decides."""

from __future__ import annotations

import io
import mmap
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from dbb_files import write_model

import edgedb
from edgedb.errors import EdgeDBError, FormatError
from edgedb.format.tensors import linear_arrays
from edgedb.model import residence
from edgedb.model.dbb import DbbFile, read_dbb
from edgedb.model.residence import MEMORIES, place
from edgedb.ops.buffer import HUGE

ENABLED = "sys/kernel/mm/transparent_hugepage/enabled"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "model.dbb")


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of five places to look at, which `auto` would think worth a copy."""
    monkeypatch.setattr(residence, "SMALLEST_COPY", 1)
    path = tmp_path / "data"
    rng = np.random.default_rng(0)
    path.write_bytes(rng.bytes(4 * HUGE + 1001))
    return path


def system(
    folder: Path, *, pages: str = "always [madvise] never", free_mb: int = 1000, huge_kb: int = 0
) -> Path:
    """A system whose mappings all have so much in huge pages."""
    smaps = "0-ffffffffffffffff r--p 00000000 00:00 0 /data file\nRss: 9 kB\n"
    files = {
        ENABLED: pages + "\n",
        "proc/meminfo": f"MemTotal: 9 kB\nMemAvailable:  {1000 * free_mb} kB\n",
        "proc/self/smaps": f"{smaps}FilePmdMapped: {huge_kb} kB\nVmFlags: rd mr\n",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def placed(path: Path, memory: str, root: Path, clock: Callable[[], float] = lambda: 0.0) -> str:
    """Where the file's bytes lie, which are those of the file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        found = place(file.fileno(), size, memory, root, clock)
    assert bytes(found.data[:]) == path.read_bytes()
    assert memoryview(found.data).readonly
    return found.memory


def test_every_memory_has_the_same_model(model: Path) -> None:
    def arrays(file: DbbFile) -> list[np.ndarray]:
        return [a for t in file.linears.values() for a in linear_arrays(t)] + [
            *file.vectors.values()
        ]

    files = [read_dbb(model, memory=memory) for memory in MEMORIES]
    assert [file.memory for file in files] == ["map", "map", "copy"]
    for file in files[1:]:
        assert file.fingerprint == files[0].fingerprint
        for a, b in zip(arrays(files[0]), arrays(file), strict=True):
            assert a.tobytes() == b.tobytes() and not b.flags.writeable
            assert a.ctypes.data % 64 == b.ctypes.data % 64, "kernels read it in place"


def test_a_model_answers_alike_and_says_where_it_lies(tiny_model: Path) -> None:
    models = [edgedb.load(tiny_model, memory=memory) for memory in ("map", "copy")]
    a, b = (model.logits([1, 5, 9]) for model in models)
    assert np.array_equal(a.view(np.uint32), b.view(np.uint32))
    assert [model.info["memory"] for model in models] == ["map", "copy"]


def test_a_copy_needs_its_file_no_more(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.dbb"
    path.write_bytes(model.read_bytes())
    file = read_dbb(path, memory="copy")
    os.truncate(path, 0)  # a mapping would end the process
    whole = read_dbb(model)
    assert all(
        np.array_equal(a, b)
        for name in whole.linears
        for a, b in zip(
            linear_arrays(file.linears[name]), linear_arrays(whole.linears[name]), strict=True
        )
    )


def test_auto_copies_what_lies_in_small_pages(data: Path, tmp_path: Path) -> None:
    assert placed(data, "auto", system(tmp_path)) == "copy"
    assert placed(data, "auto", system(tmp_path, huge_kb=3 * HUGE // 1024)) == "copy"


@pytest.mark.parametrize(
    "here",
    [
        {"huge_kb": 4 * HUGE // 1024},  # of five places
        {"pages": "always madvise [never]"},
        {"pages": "nonsense"},
        {"free_mb": 16},  # half of it is less than the file
    ],
)
def test_auto_maps_elsewhere(data: Path, tmp_path: Path, here: dict[str, object]) -> None:
    assert placed(data, "auto", system(tmp_path, **here)) == "map"  # type: ignore[arg-type]
    assert placed(data, "map", system(tmp_path, **here)) == "map"  # type: ignore[arg-type]


def test_auto_maps_where_the_system_says_nothing(data: Path, tmp_path: Path) -> None:
    assert placed(data, "auto", tmp_path) == "map"
    assert residence.huge_pages(tmp_path) == ""
    assert residence.free_bytes(tmp_path) is None
    assert residence.huge_bytes([np.zeros(4)], tmp_path) is None


def test_auto_maps_a_file_that_caches_hold(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(residence, "SMALLEST_COPY", data.stat().st_size + 1)
    assert placed(data, "auto", system(tmp_path)) == "map"


def test_auto_gives_a_slow_copy_up(data: Path, tmp_path: Path) -> None:
    seconds: Iterator[float] = iter(range(100))  # each look at the clock is a second later
    assert placed(data, "auto", system(tmp_path), lambda: next(seconds)) == "map"
    seconds = iter(range(100))
    assert placed(data, "copy", system(tmp_path), lambda: next(seconds)) == "copy"


def test_a_copy_is_made_without_huge_pages_too(data: Path, tmp_path: Path) -> None:
    assert placed(data, "copy", system(tmp_path, pages="always madvise [never]")) == "copy"
    said = residence.describe_huge_pages(tmp_path)
    assert "switched off" in said and "small pages" in said


def test_a_copy_begins_where_a_huge_page_does(data: Path) -> None:
    with data.open("rb") as file:
        found = place(file.fileno(), data.stat().st_size, "copy").data
    assert np.frombuffer(found, np.uint8).ctypes.data % HUGE == 0


@pytest.mark.skipif(residence.huge_pages() not in ("always", "madvise"), reason="no huge pages")
def test_a_copy_lies_in_huge_pages(data: Path) -> None:
    with data.open("rb") as file:
        found = place(file.fileno(), data.stat().st_size, "copy").data
    array = np.frombuffer(found, np.uint8)
    huge = residence.huge_bytes([array])
    assert huge is not None and huge >= HUGE, "unless memory is in pieces"
    assert residence.lies("copy", [array]).startswith("copy, ")


def test_short_reads_go_on(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Short(io.FileIO):
        def readinto(self, to: memoryview) -> int:  # type: ignore[override]
            return super().readinto(to[:70001])

    monkeypatch.setattr(
        "builtins.open", lambda fd, *_, **options: Short(fd, closefd=False), raising=True
    )
    with data.open("rb") as file:
        found = place(file.fileno(), data.stat().st_size, "copy")
    assert bytes(found.data) == data.read_bytes()


def test_a_file_that_shrinks_meanwhile(data: Path) -> None:
    size = data.stat().st_size
    with data.open("rb") as file:
        os.truncate(data, size - 10)
        with pytest.raises(FormatError, match=f"truncated: it ended after {size - 10} of {size}"):
            place(file.fileno(), size, "copy")


def test_a_copy_for_which_there_is_no_memory(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = r"no memory for a copy of 8 MB \(5 MB is free\): load it with memory map"
    with pytest.raises(EdgeDBError, match=words):
        placed(data, "copy", system(tmp_path, free_mb=5))

    def refuse(fd: int, size: int, **options: object) -> mmap.mmap:
        if fd < 0:
            raise OSError(12, "Cannot allocate memory")
        return real(fd, size, **options)  # type: ignore[arg-type]

    real = mmap.mmap
    monkeypatch.setattr(residence.mmap, "mmap", refuse)
    assert placed(data, "auto", system(tmp_path)) == "map", "auto does without"
    monkeypatch.setattr(residence, "_ask_for_huge_pages", lambda memory: None)
    with pytest.raises(EdgeDBError) as caught:
        read_dbb(model, memory="copy")
    assert str(caught.value).startswith(f"{model}: no memory for a copy of ")
    assert "Cannot allocate memory" in str(caught.value)


def test_a_limit_of_memory_gives_one_line(tmp_path: Path) -> None:
    """The command, with less address space than a copy takes."""
    path = tmp_path / "large.dbb"
    with path.open("wb") as file:
        file.truncate(1 << 36)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (1 << 34, 1 << 34))

    command = [sys.executable, "-m", "edgedb", "generate", str(path), "-p", "x"]
    for memory in ("map", "copy"):
        done = subprocess.run(
            [*command, "--memory", memory],
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=limit,
            timeout=60,
        )
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1 and "memory" in done.stderr


@pytest.mark.parametrize("memory", MEMORIES)
def test_a_damaged_or_truncated_file_is_refused(model: Path, tmp_path: Path, memory: str) -> None:
    content = bytearray(model.read_bytes())
    path = tmp_path / "model.dbb"
    path.write_bytes(content[:-100])
    with pytest.raises(FormatError, match="truncated"):
        read_dbb(path, memory=memory)
    content[-5000] ^= 4
    path.write_bytes(content)
    with pytest.raises(FormatError, match="damaged"):
        read_dbb(path, memory=memory)
    path.write_bytes(b"")
    with pytest.raises(FormatError, match="is empty"):
        read_dbb(path, memory=memory)


def test_an_unknown_memory(model: Path) -> None:
    with pytest.raises(EdgeDBError, match=r"memory = .ram.: expected auto, map or copy"):
        read_dbb(model, memory="ram")


def test_a_control_group_leaves_less(tmp_path: Path) -> None:
    system(tmp_path, free_mb=1000)
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/\n")
    (tmp_path / "proc/self/mountinfo").write_text(
        "30 24 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
    )
    assert residence.free_bytes(tmp_path) == 1024 * 10**6
    (group / "memory.max").write_text("1000\n")
    (group / "memory.current").write_text("700\n")
    (group / "memory.stat").write_text("anon 1\ninactive_file 50\nactive_file 5\n")
    assert residence.free_bytes(tmp_path) == 355
    (group / "memory.max").write_text("max\n")
    assert residence.free_bytes(tmp_path) == 1024 * 10**6


def test_huge_pages_of_other_mappings_do_not_count(tmp_path: Path) -> None:
    array = np.zeros(10000)
    at = array.ctypes.data
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/smaps").write_text(
        f"{at - 4096:x}-{at:x} rw-p 00000000 00:00 0\nAnonHugePages:  2048 kB\n"
        f"{at:x}-{at + 10:x} rw-p 00000000 00:00 0 a name: with a colon\nRss: 3 kB\n"
        "AnonHugePages:  4096 kB\nShmemPmdMapped:  2048 kB\n"
        f"{at + 80000:x}-{at + 90000:x} rw-p 00000000 00:00 0\nFilePmdMapped:  2048 kB\n"
    )
    assert residence.huge_bytes([array], tmp_path) == 6 << 20
