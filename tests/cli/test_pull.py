"""``edgedb pull`` against a hub on loopback: what is taken, and every way to be refused."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoints import CONFIG, write_gguf, write_hf
from click.testing import CliRunner, Result
from fake_hub import FakeHub
from terminal import Terminal

import edgedb
from edgedb.cli import commands as cli
from edgedb.cli import pull, talk
from edgedb.hub import repository
from edgedb.hub.modelfiles import find_model
from edgedb.hub.names import HubName
from edgedb.hub.origin import FILE, origin_of

Run = Callable[..., Result]
NAME = "owner/tiny"
QUICK = "--no-calibration"


@pytest.fixture
def run(hub: FakeHub) -> Run:
    def invoke(*arguments: object, text: str | None = None) -> Result:
        return CliRunner().invoke(cli.main, [str(a) for a in arguments], input=text)

    return invoke


@pytest.fixture
def folder(hub: FakeHub, tiny_bpe: bytes, tmp_path: Path) -> dict[str, bytes]:
    """A repository with two shards, and with what is never taken."""
    found = write_hf(tmp_path / "checkpoint", tiny_bpe, shards=2)
    files = {path.name: path.read_bytes() for path in found.iterdir()}
    files |= {"pytorch_model.bin": b"pickle", "modeling_tiny.py": b"code", "README.md": b"text"}
    hub.put(NAME, files)
    return files


def succeeded(result: Result) -> None:
    assert result.exit_code == 0, result.output + result.stderr + repr(result.exception)


def refused(result: Result, *words: str) -> None:
    """Exit code 2, the last line says so, and nothing of it can be used."""
    line = result.stderr.splitlines()[-1]
    assert result.exit_code == 2 and line.startswith("edgedb: "), result.stderr
    for word in words:
        assert word in line
    assert not models()


def models() -> list[str]:
    return sorted(str(p.relative_to("data/edgedb/models")) for p in Path("data").rglob("*.dbb"))


def left_over() -> list[Path]:
    return [p for p in Path().rglob("*") if p.name.endswith(repository.UNFINISHED)]


def test_a_folder_of_shards(run: Run, hub: FakeHub, folder: dict[str, bytes]) -> None:
    result = run("pull", NAME, QUICK)
    succeeded(result)
    assert models() == ["owner--tiny/tiny-4.dbb"]
    taken = set(folder) - {"pytorch_model.bin", "modeling_tiny.py", "README.md"}
    assert set(hub.fetched()) == taken
    # The same bits as from a folder; where it comes from is in the record alone.
    run("convert", "checkpoint", "own.dbb", QUICK)
    text = edgedb.load("own.dbb").generate("Once", max_tokens=8, temperature=0).text
    for name in (NAME, f"{NAME}@main", "tiny-4", "tiny-4.dbb"):
        assert edgedb.load(name).generate("Once", max_tokens=8, temperature=0).text == text
    path = find_model(NAME)
    origin = origin_of(path)
    assert origin["repository"] == NAME and origin["revision"] == hub.commit(NAME, "main")
    assert origin["versions"]["edgedb"] == edgedb.__version__
    assert set(origin["files"]) == taken
    assert origin["files"]["config.json"]["bytes"] == len(folder["config.json"])
    assert edgedb.load(path).file.quantization["source"]["name"] == NAME
    assert not left_over()


def test_what_is_here_is_not_made_again(run: Run, hub: FakeHub, folder: dict[str, bytes]) -> None:
    succeeded(run("pull", NAME, QUICK))
    made = find_model(NAME).stat().st_mtime_ns
    hub.requests.clear()
    again = run("pull", NAME, QUICK)
    assert "on this disk" in again.stderr and not hub.fetched()
    assert find_model(NAME).stat().st_mtime_ns == made


def test_a_changed_revision_is_pulled_and_a_commit_stays(
    run: Run, hub: FakeHub, folder: dict[str, bytes], tiny_bpe: bytes, tmp_path: Path
) -> None:
    succeeded(run("pull", NAME, QUICK))
    old = origin_of(find_model(NAME))["revision"]
    changed = json.dumps({**CONFIG, "rms_norm_eps": 1e-6}).encode()
    hub.put(NAME, {**folder, "config.json": changed})
    succeeded(run("pull", NAME, QUICK))
    new = origin_of(find_model(NAME))["revision"]
    assert new == hub.commit(NAME, "main") != old
    assert models() == ["owner--tiny/tiny-4.dbb"]
    assert find_model(f"{NAME}@{new[:8]}") == find_model(NAME)
    refused_name = run("info", f"{NAME}@{old[:8]}")
    assert f"edgedb pull {NAME}@{old[:8]}" in refused_name.stderr


def test_a_gguf_file(run: Run, hub: FakeHub, bpe_metadata: dict[str, Any], tmp_path: Path) -> None:
    content = write_gguf(tmp_path / "x.gguf", bpe_metadata).read_bytes()
    files = {"tiny-F16.gguf": content, "tiny-Q2_K.gguf": b"GGUF", "mmproj-F16.gguf": b"GGUF"}
    hub.put(NAME, files)
    hub.architecture = "llama"
    succeeded(run("pull", NAME, QUICK))
    assert hub.fetched() == ["tiny-F16.gguf"]
    assert edgedb.load(NAME).generate("Once", max_tokens=4).text is not None
    succeeded(run("pull", NAME, QUICK, "--offline"))
    hub.put(NAME, {"a-Q2_K.gguf": b"GGUF", "b-Q4_0.gguf": b"GGUF"})
    assert "--file 'a-Q2_K.gguf', 'b-Q4_0.gguf'" in run("pull", NAME).stderr


def test_a_split_gguf(run: Run, hub: FakeHub, bpe_metadata: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "split").mkdir()
    write_gguf(tmp_path / "split" / "tiny.gguf", bpe_metadata, parts=3)
    files = {path.name: path.read_bytes() for path in (tmp_path / "split").iterdir()}
    hub.put(NAME, files)
    succeeded(run("pull", NAME, QUICK))
    assert sorted(hub.fetched()) == sorted(files) and len(files) == 3


def test_a_dbb_is_taken_as_it_is(run: Run, hub: FakeHub, tiny_model: Path) -> None:
    content = tiny_model.read_bytes()
    hub.put(NAME, {"tiny-trained.dbb": content, "config.json": b"{}", "model.safetensors": b""})
    succeeded(run("pull", NAME))
    assert models() == ["owner--tiny/tiny-trained.dbb"]
    assert find_model("tiny-trained").read_bytes() == content
    assert hub.fetched() == ["tiny-trained.dbb"]
    assert not Path("cache").exists() or not list(Path("cache").rglob("*.dbb"))
    hub.put(NAME, {"a.dbb": content, "b.dbb": content + b" "})
    assert "choose: --file" in run("pull", NAME).stderr
    succeeded(run("pull", NAME, "--file", "a.dbb"))
    assert models() == ["owner--tiny/a.dbb", "owner--tiny/tiny-trained.dbb"]


def test_a_damaged_dbb_never_appears(run: Run, hub: FakeHub, tiny_model: Path) -> None:
    content = tiny_model.read_bytes()
    hub.put(NAME, {"tiny.dbb": content[:-64] + bytes(64)})
    refused(run("pull", NAME), NAME)
    assert not left_over()


@pytest.mark.parametrize("ranges", [True, False])
def test_a_dropped_connection_is_taken_up_again(
    run: Run, hub: FakeHub, tiny_model: Path, ranges: bool
) -> None:
    hub.put(NAME, {"tiny.dbb": tiny_model.read_bytes()})
    hub.cut["tiny.dbb"], hub.ranges = 40_000, ranges
    succeeded(run("pull", NAME))
    asked = [r for method, path, r in hub.requests if method == "GET" and "resolve" in path]
    chunks = 40_000 // 4096 * 4096
    assert asked == [None, f"bytes={chunks}-"]


def test_ctrl_c_and_the_same_command_again(
    run: Run, hub: FakeHub, folder: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []

    def write(counted: Any, data: bytes) -> int:
        written.append(counted._stream.write(data))
        if sum(written) > 30_000:
            raise KeyboardInterrupt
        return written[-1]

    with monkeypatch.context() as patched:
        patched.setattr(repository._Counted, "write", write)
        stopped = run("pull", NAME, QUICK)
    assert stopped.exit_code == 130 and "The same command goes on from here" in stopped.stderr
    assert not models() and [p.stat().st_size for p in left_over()] == [sum(written)]
    assert f"edgedb pull {NAME}" in run("info", NAME).stderr
    hub.requests.clear()
    succeeded(run("pull", NAME, QUICK))
    ranges = [r for _, path, r in hub.requests if path.endswith("safetensors") and r]
    assert ranges == [f"bytes={sum(written)}-"]
    assert not left_over()


def test_an_interrupted_conversion_goes_on(
    run: Run, hub: FakeHub, folder: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgedb.model.dbb_writer import DbbWriter

    put, done = DbbWriter.put, []

    def interrupted(writer: Any, name: str, *more: Any) -> None:
        if len(done) == 4:
            raise KeyboardInterrupt
        done.append(name)
        put(writer, name, *more)

    with monkeypatch.context() as patched:
        patched.setattr(DbbWriter, "put", interrupted)
        assert run("pull", NAME, QUICK).exit_code == 130
    assert not models()
    hub.requests.clear()
    again: list[str] = []
    monkeypatch.setattr(
        DbbWriter, "put", lambda writer, name, *more: (again.append(name), put(writer, name, *more))
    )
    succeeded(run("pull", NAME, QUICK))
    assert not hub.fetched() and not set(done) & set(again)


def test_what_came_is_compared_with_its_hash(
    run: Run, hub: FakeHub, folder: dict[str, bytes]
) -> None:
    for name in ("tokenizer_config.json", "model-00002-of-00002.safetensors"):
        content = folder[name]
        hub.tampered = {name: content[:-2] + b"  "}
        refused(run("pull", NAME, QUICK), name, "hash", "same command again")
        assert not left_over()
    hub.tampered = {}
    succeeded(run("pull", NAME, QUICK))


def test_an_unsupported_model_is_refused_before_the_download(
    run: Run, hub: FakeHub, folder: dict[str, bytes]
) -> None:
    for changes in ({"model_type": "mamba"}, {"quantization_config": {"quant_method": "gptq"}}):
        config = json.dumps({**CONFIG, **changes}).encode()
        hub.put(NAME, {**folder, "config.json": config})
        refused(run("pull", NAME), NAME, next(iter(changes)))
    hub.put(NAME, {"x.gguf": b"GGUF"})
    hub.architecture = "mamba"
    refused(run("pull", NAME), NAME, "architecture 'mamba'")
    without = {n: c for n, c in folder.items() if n != "tokenizer.json"}
    hub.put(NAME, without)
    refused(run("pull", NAME), "no tokenizer")
    hub.put(NAME, {n: c for n, c in folder.items() if not n.startswith("model")})
    refused(run("pull", NAME), "(.bin, .pt) are not read")
    hub.put(NAME, {n: c for n, c in folder.items() if "00002-of" not in n})
    refused(run("pull", NAME), "shard model-00002-of-00002.safetensors is missing")
    assert set(hub.fetched()) == {"config.json", "model.safetensors.index.json"}


def test_a_full_disk_is_seen_before_the_download(
    run: Run, hub: FakeHub, folder: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=200_000))
    refused(run("pull", NAME), "GB are free")
    assert not [name for name in hub.fetched() if name.endswith(".safetensors")]


def test_gated_missing_and_strange(run: Run, hub: FakeHub, folder: dict[str, bytes]) -> None:
    hub.gated.add(NAME)
    refused(run("pull", NAME), f"{hub.address}/{NAME}", "HF_TOKEN")
    refused(run("pull", "owner/none"), "no repository owner/none")
    refused(run("pull", f"{NAME}@none"), "no revision 'none'")
    for name in ("tiny", "../tiny", "owner/..", "owner/tiny@../x", "a/b/c", "own--er/tiny", "/a/b"):
        result = run("pull", name)
        assert result.exit_code == 2 and "no name of a model" in result.stderr, name


def test_names_that_lead_elsewhere_are_no_files(
    run: Run, hub: FakeHub, folder: dict[str, bytes], tiny_model: Path
) -> None:
    hub.listed = ["../evil.dbb", "/evil.dbb", "a/evil.dbb", "..\\evil.dbb", ".evil.dbb", "x\0.dbb"]
    index = json.loads(folder["model.safetensors.index.json"])
    index["weight_map"] = dict.fromkeys(index["weight_map"], "../../evil.safetensors")
    hub.put(NAME, {**folder, "model.safetensors.index.json": json.dumps(index).encode()})
    refused(run("pull", NAME), "shard evil.safetensors is missing")


def test_without_a_network(
    run: Run, hub: FakeHub, folder: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    refused(run("pull", NAME, "--offline"), "neither on this disk nor in the hub's cache")
    succeeded(run("pull", NAME, QUICK))
    hub.requests.clear()
    with monkeypatch.context() as patched:
        patched.setattr(constants, "HF_HUB_OFFLINE", True)
        assert "not asked: HF_HUB_OFFLINE forbids it" in run("pull", NAME).stderr
        succeeded(run("info", NAME))
        succeeded(run("generate", NAME, "-p", "Hi", "-n", 2))
        result = run("pull", "owner/other")
        assert result.exit_code == 2 and "HF_HUB_OFFLINE" in result.stderr
    assert not hub.requests
    find_model(NAME).unlink()
    succeeded(run("pull", NAME, QUICK, "--offline"))
    assert models() and not hub.requests
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    result = run("pull", NAME)
    assert result.exit_code == 0 and "no way to http://127.0.0.1:9" in result.stderr


def test_the_package_may_be_missing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    refused(run("pull", NAME), "pip install huggingface_hub")


def test_a_pipe_is_told_the_command_and_a_terminal_is_asked(
    run: Run, hub: FakeHub, folder: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    refused(run("chat", NAME, text="Hi\n"), f"edgedb pull {NAME}")
    refused(run("generate", NAME, text="Hi\n"), f"edgedb pull {NAME}")
    assert not hub.requests
    asked: list[str] = []

    def confirm(question: str, **_: Any) -> bool:
        asked.append(question)
        return len(asked) > 1

    monkeypatch.setattr(pull.click, "confirm", confirm)
    monkeypatch.setattr(talk, "_terminal", lambda: True)
    monkeypatch.setattr(pull, "carry_out", lambda plan, threads=None: asked.append(str(plan.out)))
    refused(run("chat", NAME, "-p", "Hi"), f"edgedb pull {NAME}")
    run("chat", NAME, "-p", "Hi")
    assert asked[0] == asked[1] and "kB and convert them to about" in asked[0]
    assert asked[2].endswith("data/edgedb/models/owner--tiny/tiny-4.dbb")


def test_what_does_not_fit_is_said_before_the_download(
    run: Run, hub: FakeHub, folder: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(pull.click, "confirm", lambda question, **_: asked.append(question))
    monkeypatch.setattr(talk, "_terminal", lambda: True)
    monkeypatch.setattr("edgedb.measure.memory.memory_bytes", lambda: 10**9)
    run("chat", NAME, "-p", "Hi")
    assert "although it needs about" in asked[0] and "1.00 GB here" in asked[0]
    assert f"(edgedb fits {NAME})" in run("pull", NAME, QUICK).stderr
    monkeypatch.setattr("edgedb.measure.memory.memory_bytes", lambda: 10**11)
    assert "needs" not in run("pull", NAME, QUICK).stderr


def test_a_conversation_begins_with_a_pull(hub: FakeHub, tiny_model: Path) -> None:
    hub.put(NAME, {"tiny.dbb": tiny_model.read_bytes()})
    command = [sys.executable, "-m", "edgedb", "chat", NAME, "--plain", "-n", "3"]
    env = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HUB_CACHE": "cache"}
    with Terminal(command, env, timeout=60) as terminal:
        terminal.expect(r"owner/tiny is not on this disk: download 160 kB\? \[y/N\]: ")
        terminal.send("y\n")
        terminal.expect("tiny: numpy")
        terminal.send("/quit\n")
        assert terminal.finish() == 0
    assert models() == ["owner--tiny/tiny.dbb"]


def test_two_at_once(run: Run, hub: FakeHub, tiny_model: Path) -> None:
    content = tiny_model.read_bytes()
    hub.put(NAME, {"tiny.dbb": content})
    opened = repository.open_repository(HubName("owner", "tiny"))
    place = Path("data/edgedb/models/owner--tiny")
    place.mkdir(parents=True)
    begun = repository._partial(place, opened.files["tiny.dbb"])
    with begun.open("wb") as other:
        repository._lock(other, begun)
        refused(run("pull", NAME), "another process")
    succeeded(run("pull", NAME))


def test_models_show_path_and_rm(run: Run, hub: FakeHub, tiny_model: Path) -> None:
    assert "edgedb pull" in run("models").stderr or run("models").stdout
    hub.put(NAME, {"tiny.dbb": tiny_model.read_bytes()})
    succeeded(run("pull", NAME))
    commit = str(hub.commit(NAME, "main"))
    assert f"{NAME}@{commit[:12]}" in run("models").stdout
    (record,) = [r for r in json.loads(run("models", "--json").stdout) if r["name"] == "tiny"]
    assert record["origin"]["revision"] == commit
    shown = run("show", NAME).stdout
    assert commit[:12] in shown and "file tiny.dbb" in shown
    assert json.loads(run("show", "tiny", "--json").stdout) == record
    assert run("path", NAME).stdout == f"{find_model(NAME).absolute()}\n"
    place = find_model(NAME).parent
    (place / "tiny.dbb.partial").touch()
    (place / "other.dbb").write_bytes(tiny_model.read_bytes())
    asked = run("rm", "tiny")
    assert asked.exit_code == 2 and "--yes" in asked.stderr
    assert "tiny.dbb.partial" in asked.stdout and "other" not in asked.stdout
    succeeded(run("rm", "tiny", "--yes"))
    assert os.listdir(place) == ["other.dbb"]
    assert FILE not in run("rm", NAME).stdout
    succeeded(run("rm", NAME, "--yes"))
    assert not place.exists()
    assert "is not on this disk" in run("rm", NAME, "--yes").stderr
    Path("mine.dbb").write_bytes(b"x")
    kept = run("rm", "mine.dbb", "--yes")
    assert kept.exit_code == 2 and "left alone" in kept.stderr and Path("mine.dbb").exists()
    for command in ("show", "path", "rm"):
        assert run(command, "nowhere").exit_code == 2
