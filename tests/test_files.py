"""Files that are written in one step: whole or not at all, and nothing left of a killed writer."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from edgedb.files import replacing


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def start_writer(path: Path) -> subprocess.Popen[str]:
    """A process in the middle of replacing ``path``; it ends when its input does."""
    program = (
        "import sys\nfrom pathlib import Path\nfrom edgedb.files import replacing\n"
        "with replacing(Path(sys.argv[1])) as file:\n"
        "    file.write(b'by another process')\n    file.flush()\n"
        "    print('writing', flush=True)\n    sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "writing\n"
    return process


def test_a_killed_writer_leaves_nothing_after_the_next_save(tmp_path: Path) -> None:
    path = tmp_path / "x.kv"
    for _ in range(2):
        with start_writer(path) as process:
            os.kill(process.pid, signal.SIGKILL)
    assert len(names(tmp_path)) == 1 and not path.exists(), "the second removed the first's"
    with replacing(path) as file:
        file.write(b"mine")
    assert names(tmp_path) == ["x.kv"] and path.read_bytes() == b"mine"


def test_a_living_writer_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.kv"
    with start_writer(path) as process:
        with replacing(path) as file:
            file.write(b"mine")
        assert path.read_bytes() == b"mine" and len(names(tmp_path)) == 2
        process.communicate("")
    assert process.returncode == 0
    assert names(tmp_path) == ["x.kv"] and path.read_bytes() == b"by another process"


def test_two_writers_in_one_process(tmp_path: Path) -> None:
    path = tmp_path / "x.kv"
    with replacing(path) as first, replacing(path) as second:
        first.write(b"first")
        second.write(b"second")
    assert names(tmp_path) == ["x.kv"] and path.read_bytes() == b"first"


def test_files_of_others_are_kept(tmp_path: Path) -> None:
    """Only what has the name of a temporary of this very file is taken for one."""
    kept = [".x.kv.0123456", ".x.kv.01234567", ".x.kv.old~edgedb", ".y.kv.01234567~edgedb"]
    for name in kept:
        (tmp_path / name).touch()
    (tmp_path / ".x.kv.01234567~edgedb").touch()
    with replacing(tmp_path / "x.kv") as file:
        file.write(b"mine")
    assert names(tmp_path) == sorted([*kept, "x.kv"])


def test_an_error_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "x.kv"
    with replacing(path) as file:
        file.write(b"before")
    with pytest.raises(RuntimeError), replacing(path) as file:
        file.write(b"after")
        raise RuntimeError
    assert names(tmp_path) == ["x.kv"] and path.read_bytes() == b"before"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
