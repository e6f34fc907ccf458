"""A system without POSIX, as far as one can be had here: no fcntl, no pread, nothing open moves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from dbb_files import CONFIG, KINDS, TOKENIZER, content

from edgedb import descriptors
from edgedb.files import replacing
from edgedb.model.dbb import read_dbb
from edgedb.model.dbb_writer import DbbWriter

# What Windows' Python lacks; an import or a use of it outside of a check ends the script.
_BARE = """
import os, signal, sys
for module in ("fcntl", "termios", "tty", "pty", "pwd", "grp", "resource", "readline"):
    sys.modules[module] = None
for name in ("pread", "pwrite", "O_NONBLOCK", "O_NOFOLLOW", "sched_getaffinity",
             "posix_fallocate", "getpgrp", "tcgetpgrp"):
    if hasattr(os, name):
        delattr(os, name)
for name in ("SIGCONT", "SIGTSTP", "SIGWINCH", "SIGUSR1", "SIGKILL"):
    if hasattr(signal, name):
        delattr(signal, name)
"""


def bare(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", _BARE + code, *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_model_answers_and_its_session_is_saved(tiny_model: Path, tmp_path: Path) -> None:
    code = """
import edgedb
model = edgedb.load(sys.argv[1])
session = model.session()
for chunk in session.stream("ab", max_tokens=4, temperature=0):
    print(chunk.text)
session.save(sys.argv[2])
print(model.load_session(sys.argv[2]).tokens)
"""
    saved = tmp_path / "session"
    here = subprocess.run(
        [sys.executable, "-c", "import os, signal, sys\n" + code, str(tiny_model), str(saved)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert bare(code, str(tiny_model), str(saved)) == here.stdout


@pytest.mark.parametrize("command", ["--help", "info", "models"])
def test_commands(command: str) -> None:
    bare("from edgedb.cli.commands import main\nmain([sys.argv[1]])", command)


def test_every_module_can_be_imported() -> None:
    """Save those that build upon a package of their own, which may ask for more of a system."""
    code = """
import pkgutil, importlib, edgedb
optional = ("ray", "llm")
sys.modules.update(dict.fromkeys(optional))
for m in pkgutil.walk_packages(edgedb.__path__, 'edgedb.'):
    if m.name not in ('edgedb.__main__', 'edgedb.libedgedb'):
        try:
            importlib.import_module(m.name)
        except ModuleNotFoundError as error:
            assert error.name.partition(".")[0] in optional, error
"""
    bare(code)


@pytest.fixture
def nothing_open_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuses, as Windows does, to move or delete what this process has open."""
    monkeypatch.setattr(descriptors, "OPEN_FILES_MOVE", False)
    monkeypatch.delattr(os, "pread")
    monkeypatch.delattr(os, "pwrite")
    replace, unlink = os.replace, os.unlink

    def is_open(path: str | os.PathLike[str]) -> bool:
        return any(
            os.path.realpath(f"/proc/self/fd/{fd}") == os.path.realpath(path)
            for fd in os.listdir("/proc/self/fd")
        )

    def checked_replace(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
        assert not is_open(source) and not is_open(target)
        replace(source, target)

    def checked_unlink(path: str | os.PathLike[str]) -> None:
        assert not is_open(path)
        unlink(path)

    monkeypatch.setattr(os, "replace", checked_replace)
    monkeypatch.setattr(os, "unlink", checked_unlink)


linux_alone = pytest.mark.skipif(
    not Path("/proc/self/fd").exists(), reason="asks Linux what is open"
)


@linux_alone
def test_a_file_is_replaced(nothing_open_moves: None, tmp_path: Path) -> None:
    path = tmp_path / "file"
    left = tmp_path / ".file.01234567~edgedb"
    left.write_bytes(b"of a writer that was killed")
    for text in (b"one\r\n", b"two\n"):
        with replacing(path) as file:
            file.write(text)
        assert path.read_bytes() == text
    assert os.listdir(tmp_path) == ["file"]


@linux_alone
@pytest.mark.parametrize("note", ["short", "long" * 20_000])
def test_a_model_is_written(nothing_open_moves: None, tmp_path: Path, note: str) -> None:
    path = tmp_path / "m.dbb"
    with DbbWriter(path, CONFIG, TOKENIZER, KINDS) as writer:
        for name in writer.remaining:
            writer.put(name, content(name))
        writer.finish({"note": note})
    assert read_dbb(path).quantization == {"note": note}
    assert os.listdir(tmp_path) == ["m.dbb"]
