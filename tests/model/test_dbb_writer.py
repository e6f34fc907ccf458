"""Writing a model file: whole or not at all, in any order, across interruptions."""

import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dbb_files import (
    CONFIG,
    EXPERT_KINDS,
    EXPERTS,
    KINDS,
    TOKENIZER,
    content,
    random_linear,
    write_experts,
    write_model,
)

from edgedb import descriptors
from edgedb.errors import EdgeDBError, FormatError
from edgedb.model.dbb import read_dbb
from edgedb.model.dbb_writer import DbbWriter
from edgedb.model.families import program_of


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "model.dbb")


def test_nothing_under_the_final_name_before_the_end(tmp_path):
    path = tmp_path / "m.dbb"
    write_model(path, stop_after=3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.dbb.partial", "m.dbb.partial.json"]
    write_model(path)
    assert [p.name for p in tmp_path.iterdir()] == ["m.dbb"]


def test_resume_gives_the_same_file(model, tmp_path):
    path = tmp_path / "m.dbb"
    for _ in range(4):
        write_model(path, stop_after=2)
    with DbbWriter(path, CONFIG, TOKENIZER, KINDS) as writer:
        assert writer.done == set(list(program_of(CONFIG).matrices())[:8])
        assert writer.record("layers.0.attn_qkv") == {"error": 0.25}
        with pytest.raises(KeyError):
            writer.record("final_norm")
    write_model(path)
    assert path.read_bytes() == model.read_bytes()


def test_order_of_tensors_does_not_matter(model, tmp_path):
    with DbbWriter(tmp_path / "m.dbb", CONFIG, TOKENIZER, KINDS) as writer:
        for name in reversed(writer.remaining):
            writer.put(name, content(name))
        writer.finish({"group": 64, "teacher": "none"})
    assert (tmp_path / "m.dbb").read_bytes() == model.read_bytes()


def test_other_fingerprint_starts_again(tmp_path):
    write_model(tmp_path / "m.dbb", "one", stop_after=5)
    with DbbWriter(tmp_path / "m.dbb", CONFIG, TOKENIZER, KINDS, fingerprint="two") as writer:
        assert writer.done == set()


def test_another_tokenizer_starts_again(tmp_path):
    write_model(tmp_path / "m.dbb", stop_after=5)
    other = replace(TOKENIZER, data=TOKENIZER.data[::-1])  # as long
    with DbbWriter(tmp_path / "m.dbb", CONFIG, other, KINDS) as writer:
        assert writer.done == set()


def test_bytes_that_did_not_reach_the_disk_are_written_again(model, tmp_path):
    path = tmp_path / "m.dbb"
    write_model(path, stop_after=3)
    partial = tmp_path / "m.dbb.partial"
    raw = partial.read_bytes()
    damaged = content("layers.0.attn_qkv").blocks.tobytes()
    partial.write_bytes(raw.replace(damaged, bytes(len(damaged))))
    with open(tmp_path / "m.dbb.partial.json", "a") as journal:
        journal.write('{"name": "layers.0.mlp_')
    with DbbWriter(path, CONFIG, TOKENIZER, KINDS) as writer:
        assert writer.done == {"embedding", "layers.0.attn_out"}
    write_model(path)
    assert path.read_bytes() == model.read_bytes()


@pytest.mark.parametrize("journal", ["", "{", "[]", "null\n", '{"key": 1}\n{"x": 2}\n', "\xff"])
def test_damaged_journal_starts_again(model, tmp_path, journal):
    write_model(tmp_path / "m.dbb", stop_after=3)
    (tmp_path / "m.dbb.partial.json").write_text(journal, encoding="latin-1")
    write_model(tmp_path / "m.dbb")
    assert (tmp_path / "m.dbb").read_bytes() == model.read_bytes()


@pytest.mark.parametrize("calls", [1, 2, 9, 20])
def test_killed_in_the_middle_of_a_write(model, tmp_path, calls):
    script = textwrap.dedent(
        """
        import os, signal, sys
        from pathlib import Path
        from dbb_files import write_model
        real, left = os.pwrite, [int(sys.argv[2])]
        def pwrite(fd, data, offset):
            left[0] -= 1
            if left[0] == 0:
                real(fd, data[: len(data) // 2], offset)
                os.kill(os.getpid(), signal.SIGKILL)
            return real(fd, data, offset)
        os.pwrite = pwrite
        write_model(Path(sys.argv[1]))
        """
    )
    path = tmp_path / "m.dbb"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", script, str(path), str(calls)]
    assert subprocess.run(command, env=environment).returncode == -signal.SIGKILL
    assert not path.exists()
    write_model(path)
    assert path.read_bytes() == model.read_bytes()


def test_full_disk_keeps_what_is_written(model, tmp_path, monkeypatch):
    path = tmp_path / "m.dbb"
    real = os.pwrite

    def pwrite(fd, data, offset):
        if offset > 30000:
            raise OSError(28, "No space left on device")
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(EdgeDBError, match=r"No space left on device.*MB are needed"):
        write_model(path)
    monkeypatch.undo()
    write_model(path)
    assert path.read_bytes() == model.read_bytes()


def test_no_such_directory(tmp_path):
    with pytest.raises(EdgeDBError, match="No such file or directory"):
        write_model(tmp_path / "none" / "m.dbb")


def test_two_writers_of_one_file(tmp_path):
    with (
        DbbWriter(tmp_path / "m.dbb", CONFIG, TOKENIZER, KINDS),
        pytest.raises(EdgeDBError, match="another process"),
    ):
        DbbWriter(tmp_path / "m.dbb", CONFIG, TOKENIZER, KINDS)


def test_long_record_moves_the_data(tmp_path):
    with DbbWriter(tmp_path / "m.dbb", CONFIG, TOKENIZER, KINDS) as writer:
        for name in writer.remaining:
            writer.put(name, content(name))
        writer.finish({"notes": "x" * 100_000})
    file = read_dbb(tmp_path / "m.dbb")
    assert len(file.quantization["notes"]) == 100_000
    np.testing.assert_array_equal(file.vectors["final_norm"], content("final_norm"))
    assert [p.name for p in tmp_path.iterdir()] == ["m.dbb"]


def test_a_full_disk_leaves_no_moved_data(tmp_path, monkeypatch):
    def full(source, target, size):
        raise OSError(28, "No space left on device")

    with DbbWriter(tmp_path / "m.dbb", CONFIG, TOKENIZER, KINDS) as writer:
        for name in writer.remaining:
            writer.put(name, content(name))
        monkeypatch.setattr("edgedb.model.dbb_writer.shutil.copyfileobj", full)
        with pytest.raises(EdgeDBError, match="No space left"):
            writer.finish({"notes": "x" * 100_000})
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["m.dbb.partial", "m.dbb.partial.json"]


def test_finish_wants_every_tensor(tmp_path):
    with DbbWriter(tmp_path / "m.dbb", CONFIG, TOKENIZER, KINDS) as writer:
        for name in writer.remaining[:-1]:
            writer.put(name, content(name))
        with pytest.raises(EdgeDBError, match="final_norm: never written"):
            writer.finish({})


def test_put_refuses_what_was_not_planned(tmp_path):
    with DbbWriter(tmp_path / "m.dbb", CONFIG, TOKENIZER, KINDS) as writer:
        with pytest.raises(FormatError, match="nonsense: a model of this shape has no such"):
            writer.put("nonsense", content("head"))
        with pytest.raises(FormatError, match="head: planned as int8, got 1 pair"):
            writer.put("head", content("layers.0.attn_qkv"))
        with pytest.raises(FormatError, match=r"head\.codes: .*expected int8 \[2, 1, 4096\]"):
            writer.put("head", content("layers.1.attn_out"))
        with pytest.raises(FormatError, match=r"final_norm: float64 \[24\], expected float32"):
            writer.put("final_norm", np.zeros(24))
        with pytest.raises(FormatError, match="final_norm: NaN"):
            writer.put("final_norm", np.full(24, np.nan, np.float32))


def test_the_finished_file_is_opened_before_it_gets_its_name(tmp_path):
    path = tmp_path / "m.dbb"
    unusable = replace(TOKENIZER, bos_id=None, add_bos=True)
    for tokenizer, record, what in (
        (unusable, {}, "add_bos is set but there is no bos_id"),
        (TOKENIZER, {"error": float("nan")}, "NaN is not a number"),
    ):
        with DbbWriter(path, CONFIG, tokenizer, KINDS) as writer:
            for name in writer.remaining:
                writer.put(name, content(name))
            with pytest.raises(FormatError, match=f"what was written cannot be read: .*{what}"):
                writer.finish(record)
        assert not path.exists()


def test_a_directory_is_no_file_to_write(tmp_path):
    with pytest.raises(EdgeDBError, match="is a directory"):
        DbbWriter(tmp_path, CONFIG, TOKENIZER, KINDS)


def test_what_a_killed_run_was_moving_is_removed(tmp_path):
    (tmp_path / "m.dbb.partial.grown").write_bytes(b"half")
    write_model(tmp_path / "m.dbb")
    assert [p.name for p in tmp_path.iterdir()] == ["m.dbb"]


def test_a_file_that_grew_is_still_one_writer_s(tmp_path, monkeypatch):
    """A large record moves the data into another file, which must be locked as the first was."""
    path = tmp_path / "m.dbb"
    with DbbWriter(path, CONFIG, TOKENIZER, KINDS) as writer:
        for name in writer.remaining:
            writer.put(name, content(name))
        others = []

        def read_back(self):
            with pytest.raises(EdgeDBError, match="another process"):
                DbbWriter(path, CONFIG, TOKENIZER, KINDS)
            others.append(sorted(p.name for p in tmp_path.iterdir()))

        monkeypatch.setattr(DbbWriter, "_read_back", read_back)
        writer.finish({"long": "x" * 20_000})
    assert others == [["m.dbb.partial"]]
    assert [p.name for p in tmp_path.iterdir()] == ["m.dbb"]
    assert read_dbb(path).quantization == {"long": "x" * 20_000}


def test_a_file_that_was_finished_meanwhile_is_not_emptied(tmp_path, monkeypatch, model):
    """The other process renames it between our opening and our locking."""
    path = tmp_path / "m.dbb"
    lock = descriptors.lock

    def late_lock(fd):
        monkeypatch.setattr(descriptors, "lock", lock)
        path.with_name("m.dbb.partial").write_bytes(model.read_bytes())
        path.with_name("m.dbb.partial").rename(path)
        lock(fd)

    monkeypatch.setattr(descriptors, "lock", late_lock)
    write_model(path, stop_after=1)
    assert path.read_bytes() == model.read_bytes()


@pytest.mark.parametrize("line", ["5", "{}", '{"name": []}', '{"name": "final_norm", "crcs": 5}'])
def test_damaged_lines_of_a_journal_are_ignored(model, tmp_path, line):
    path = tmp_path / "m.dbb"
    write_model(path, stop_after=3)
    with open(tmp_path / "m.dbb.partial.json", "a") as journal:
        journal.write(line + "\n")
    write_model(path)
    assert path.read_bytes() == model.read_bytes()


def test_a_stack_that_was_interrupted_begins_again(tmp_path):
    path = tmp_path / "model.dbb"
    write_experts(path, "f", stop_after=4)  # up to and with one expert of experts_gate_up
    assert not path.exists()
    with DbbWriter(path, EXPERTS, TOKENIZER, EXPERT_KINDS, fingerprint="f") as writer:
        assert len(writer.done) == 4 and writer.remaining[0] == "layers.0.experts_gate_up"
    write_experts(path, "f")
    assert len(read_dbb(path).linears["layers.0.experts_gate_up"]) == 3


def test_experts_are_put_in_order(tmp_path):
    stack = "layers.0.experts_down"
    kinds = dict.fromkeys(program_of(EXPERTS).matrices(), 2)
    matrix = random_linear(2, 24, 34)
    with DbbWriter(tmp_path / "model.dbb", EXPERTS, TOKENIZER, kinds) as writer:
        writer.put_expert(stack, 0, matrix)
        with pytest.raises(ValueError, match="expert 2 after 1 others"):
            writer.put_expert(stack, 2, matrix)
        with pytest.raises(ValueError, match="1 experts were put"):
            writer.end_stack(stack)
        with pytest.raises(FormatError, match=r"experts_down: planned as 1 pair, got int8"):
            writer.put_expert(stack, 1, random_linear("int8", 24, 34))
        with pytest.raises(FormatError, match="expected"):
            writer.put_expert(stack, 1, random_linear(2, 25, 34))
