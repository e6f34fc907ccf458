"""Saved sessions: another process goes on with the same text; a damaged file is refused."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import edgedb
from edgedb import ContextFullError, EdgeDBError, FormatError
from edgedb.format.container import CRC_START
from edgedb.model.dbb import read_dbb
from edgedb.model.dbb_writer import DbbWriter
from edgedb.model.rotary import RopeScaling

PROMPT = [5, 9, 2, 40, 17, 23, 8]
OPTIONS = {"max_tokens": 30, "temperature": 1.5, "seed": 3}


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> edgedb.Model:
    return edgedb.load(tiny_model, context=200)


@pytest.fixture
def saved(model: edgedb.Model, tmp_path: Path) -> Path:
    session = model.session()
    session.generate(PROMPT, **OPTIONS)
    path = tmp_path / "chat.kv"
    session.save(path)
    return path


def test_a_session_stays_on_its_side_of_longrope(tiny_model: Path, tmp_path: Path) -> None:
    factors = {"short_factors": (1.0,) * 9, "long_factors": (2.0,) * 9}
    scaling = RopeScaling("longrope", original_max_position_embeddings=40, **factors)
    file, plain = tmp_path / "m.dbb", read_dbb(tiny_model)
    config = replace(plain.config, rope_scaling=scaling)
    kinds = {name: tensor.kind for name, tensor in plain.linears.items()}
    with DbbWriter(file, config, plain.tokenizer, kinds) as writer:
        for name, tensor in (*plain.linears.items(), *plain.vectors.items()):
            writer.put(name, tensor)
        writer.finish({})
    assert edgedb.load(file).context == 40
    short, long = edgedb.load(file), edgedb.load(file, context=41)
    assert not np.array_equal(short.logits(PROMPT), long.logits(PROMPT))
    session = short.session()
    session.prefill(PROMPT)
    session.save(tmp_path / "chat.kv")
    edgedb.load(file, context=20).load_session(tmp_path / "chat.kv")
    with pytest.raises(FormatError, match="other side"):
        long.load_session(tmp_path / "chat.kv")


def test_another_process_continues_with_the_same_text(
    model: edgedb.Model, tiny_model: Path, tmp_path: Path
) -> None:
    session = model.session()
    messages = [{"role": "user", "content": "Hi"}]
    said = session.chat(messages, **OPTIONS)
    messages += [{"role": "assistant", "content": said.text}, {"role": "user", "content": "More"}]
    session.extra = {"messages": messages}
    session.save(tmp_path / "chat.kv")
    never_stopped = session.chat(messages, **OPTIONS)
    program = (
        "import edgedb, json, sys\n"
        "model = edgedb.load(sys.argv[1], context=200)\n"
        "session = model.load_session(sys.argv[2])\n"
        "answer = session.chat(session.extra['messages'], **json.loads(sys.argv[3]))\n"
        "print(json.dumps([answer.tokens, answer.stats.read_tokens]))\n"
    )
    arguments = [str(tiny_model), str(tmp_path / "chat.kv"), json.dumps(OPTIONS)]
    output = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True
    ).stdout
    assert json.loads(output) == [never_stopped.tokens, never_stopped.stats.read_tokens]


def test_a_loaded_session_is_the_saved_one(model: edgedb.Model, saved: Path) -> None:
    session = model.load_session(saved)
    assert session.position == len(PROMPT) + 30
    whole = model.session()
    whole.prefill(session.tokens)
    assert session.logits().tobytes() == whole.logits().tobytes()


def test_an_empty_session(model: edgedb.Model, tmp_path: Path) -> None:
    model.session().save(tmp_path / "empty.kv")
    session = model.load_session(tmp_path / "empty.kv")
    assert session.tokens == []
    session.prefill(PROMPT)
    assert session.logits().tobytes() == model.logits(PROMPT)[-1].tobytes()


def test_any_safetensors_reader_opens_it(saved: Path) -> None:
    tensors = load_file(saved)
    assert tensors["tokens"][: len(PROMPT)].tolist() == PROMPT
    assert tensors["layers.1.values"].shape == (2, len(PROMPT) + 29, 18)


def test_the_file_is_replaced_whole_and_private(model: edgedb.Model, saved: Path) -> None:
    assert stat.S_IMODE(os.stat(saved).st_mode) == 0o600
    before = saved.read_bytes()
    session = model.session()
    session.extra = {"not JSON": object()}
    with pytest.raises(EdgeDBError, match="JSON"):
        session.save(saved)
    assert saved.read_bytes() == before
    session.extra = {}
    session.save(saved)
    assert model.load_session(saved).tokens == []
    assert os.listdir(saved.parent) == [saved.name]
    with pytest.raises(EdgeDBError, match="cannot be written"):
        session.save(saved.parent / "no such folder" / "x.kv")


def test_a_killed_save_leaves_nothing_after_the_next(
    model: edgedb.Model, tiny_model: Path, tmp_path: Path
) -> None:
    program = (
        "import edgedb, os, signal, sys\n"
        "os.fsync = lambda fd: os.kill(os.getpid(), signal.SIGKILL)\n"
        "edgedb.load(sys.argv[1], context=20).session().save(sys.argv[2])\n"
    )
    command = [sys.executable, "-c", program, str(tiny_model), str(tmp_path / "chat.kv")]
    assert subprocess.run(command).returncode == -signal.SIGKILL
    assert len(os.listdir(tmp_path)) == 1
    model.session().save(tmp_path / "chat.kv")
    assert os.listdir(tmp_path) == ["chat.kv"]


def test_another_model_context_or_cache_type_is_refused(
    model: edgedb.Model, tiny_model: Path, long_model: Path, saved: Path
) -> None:
    with pytest.raises(FormatError, match="another model"):
        edgedb.load(long_model).load_session(saved)
    with pytest.raises(ContextFullError, match="larger context"):
        edgedb.load(tiny_model, context=20).load_session(saved)
    with pytest.raises(FormatError, match=r"dtype F16.*F32"):
        edgedb.load(tiny_model, context=200, kv_dtype="float32").load_session(saved)
    with pytest.raises(FormatError, match="expected 'edgedb-session'"):
        model.load_session(tiny_model)
    with pytest.raises(FormatError, match="expected 'dbb'"):
        edgedb.load(saved)


def test_what_is_no_session_is_refused(model: edgedb.Model, tmp_path: Path) -> None:
    path = tmp_path / "x.kv"
    for content in (b"", b"abc", b"hello " * 100, b"\x10" + bytes(7) + b'{"a":1}         '):
        path.write_bytes(content)
        refused(model, path)
    refused(model, tmp_path)
    refused(model, tmp_path / "missing")


def refused(model: edgedb.Model, path: Path, word: str = "") -> None:
    with pytest.raises(FormatError) as error:
        model.load_session(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and word in message


def test_every_flipped_byte_is_noticed_or_harmless(model: edgedb.Model, saved: Path) -> None:
    data = saved.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    random = np.random.default_rng(1)
    for at in [*range(0, 200, 7), *random.integers(0, len(data), 60).tolist()]:
        damaged = bytearray(data)
        damaged[at] ^= 0x41
        saved.write_bytes(damaged)
        try:
            session = model.load_session(saved)
        except FormatError:
            continue
        assert at >= start, "the header is under a checksum of its own"
        saved.write_bytes(data)
        assert session.tokens == model.load_session(saved).tokens, "only filler may differ"


@pytest.mark.parametrize("cut", [1, 100, 3000])
def test_a_truncated_file(model: edgedb.Model, saved: Path, cut: int) -> None:
    saved.write_bytes(saved.read_bytes()[:-cut])
    refused(model, saved)


def forge(path: Path, old: bytes, new: bytes) -> None:
    """Replace bytes of the header and make its checksum right again."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].replace(old, new).rstrip()
    assert header != data[8 : 8 + length].rstrip() and len(header) <= length
    raw = bytearray(data[:8] + header.ljust(length))
    raw[CRC_START : CRC_START + 8] = b"0" * 8
    raw[CRC_START : CRC_START + 8] = b"%08x" % zlib.crc32(raw)
    path.write_bytes(raw + data[8 + length :])


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        (b'"length":"36"', b'"length":"99"', "length"),
        (b'"length":"36"', b'"length":"-1"', "length"),
        (b'"length":"36"', b'"length":"35"', "shape"),
        (b'"version":"1"', b'"version":"9"', "version"),
        (b'"layers.0.keys":{', b'"layers.7.keys":{', "layers.0.keys: missing"),
        (b'"extra":"{}"', b'"extra":"[]"', "JSON objects"),
        (b'"extra":"{}"', b'"extra":"{"', "JSON"),
        (b'"tokens":{"dtype":"I32"', b'"tokens":{"dtype":"F32"', "dtype F32"),
        (b'"tokens":{"dtype":"I32","shape":[37]', b'"tokens":{"dtype":"I32","shape":[2]', "bytes"),
    ],
)
def test_a_forged_header(
    model: edgedb.Model, saved: Path, old: bytes, new: bytes, word: str
) -> None:
    forge(saved, old, new)
    refused(model, saved, word)


@pytest.mark.parametrize(("name", "word"), [("tokens", "vocabulary"), ("layers.1.keys", "NaN")])
def test_forged_values(model: edgedb.Model, saved: Path, name: str, word: str) -> None:
    data = bytearray(saved.read_bytes())
    length = int.from_bytes(data[:8], "little")
    entry = json.loads(data[8 : 8 + length])[name]
    begin, end = (8 + length + offset for offset in entry["data_offsets"])
    crc = b"%08x" % zlib.crc32(data[begin:end])
    data[begin:end] = b"\xff" * (end - begin)
    saved.write_bytes(data)
    forge(saved, crc, b"%08x" % zlib.crc32(b"\xff" * (end - begin)))
    refused(model, saved, word)
