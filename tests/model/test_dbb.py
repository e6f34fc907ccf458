import dataclasses
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from dbb_files import (
    CONFIG,
    KINDS,
    TOKENIZER,
    content,
    edit_file,
    seal,
    write_experts,
    write_model,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from edgedb.errors import FormatError, UnsupportedModelError
from edgedb.format.container import CRC_START
from edgedb.format.tensors import DenseTensor, Int8Tensor, PairTensor, linear_arrays
from edgedb.model.dbb import read_dbb
from edgedb.model.dbb_writer import DbbWriter
from edgedb.model.families import program_of
from edgedb.model.summary import summarize
from edgedb.text.piece_tables import tables_of
from edgedb.text.spec import TokenizerSpec


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "model.dbb")


def refused(path: Path, *words: str, verify: bool = True) -> str:
    """The one-line message of the FormatError that reading ``path`` gives; holds every word."""
    with pytest.raises(FormatError) as caught:
        read_dbb(path, verify=verify)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    for word in words:
        assert word in message, message
    return message


# Round trip


def _nested(depth):
    return '{"a":' * depth + "1" + "}" * depth


def test_deep_but_not_too_deep(model, tmp_path):
    def edit(header):
        header["__metadata__"]["quantization"] = _nested(64)

    assert read_dbb(edit_file(model, tmp_path / "deep.dbb", edit)).quantization["a"]


@pytest.mark.parametrize("verify", [True, False])
def test_reads_what_was_written(model, verify):
    file = read_dbb(model, verify=verify)
    assert file.path == model
    assert file.config == CONFIG
    assert file.tokenizer == TOKENIZER
    assert file.quantization == {"group": 64, "teacher": "none"}
    assert file.size_bytes == model.stat().st_size
    assert list(file.linears) == list(program_of(CONFIG).matrices())
    for name, tensor in file.linears.items():
        assert tensor.kind == KINDS[name]
        assert (tensor.rows, tensor.cols) == program_of(CONFIG).matrices()[name]
        for found, expected in zip(
            linear_arrays(tensor), linear_arrays(content(name)), strict=True
        ):
            assert found.dtype == expected.dtype
            assert not found.flags.writeable
            assert found.ctypes.data % 64 == 0
            np.testing.assert_array_equal(found, expected)
    for name, norm in file.vectors.items():
        np.testing.assert_array_equal(norm, content(name))
    types = {type(tensor) for tensor in file.linears.values()}
    assert types == {PairTensor, Int8Tensor, DenseTensor}


def test_safetensors_reads_it(model):
    with safe_open(model, "np") as file:
        assert file.metadata()["format"] == "dbb"
        assert json.loads(file.metadata()["config"]) == CONFIG.to_dict()
        blocks = file.get_tensor("layers.0.attn_out.blocks")
        np.testing.assert_array_equal(blocks, content("layers.0.attn_out").blocks)
        assert file.get_tensor("tokenizer.file").tobytes() == TOKENIZER.data


@pytest.fixture(scope="module")
def with_tables(tmp_path_factory) -> Path:
    """A model whose tokenizer has its vocabulary in tables."""
    tables = tables_of({"vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]})
    spec = TokenizerSpec("bpe", b"{}", tables=tables)
    with DbbWriter(tmp_path_factory.mktemp("m") / "tables.dbb", CONFIG, spec, KINDS) as writer:
        for name in writer.remaining:
            writer.put(name, content(name))
        path = writer.finish({})
    file = read_dbb(path)
    assert file.tokenizer == spec
    assert not file.tokenizer.tables.merges.flags.writeable
    assert sum(summarize(file)["bytes"].values()) == path.stat().st_size
    return path


def test_tables_of_pieces_are_checked(with_tables, model, tmp_path):
    def kind(header):
        text = header["__metadata__"]["tokenizer"]
        header["__metadata__"]["tokenizer"] = text.replace('"bpe"', '"tokenizers"')

    def shape(header):
        header["tokenizer.piece_ends"]["shape"] = [3, 1]

    def type_(header):
        header["tokenizer.piece_ends"]["dtype"] = "F32"

    def missing(header):
        header.pop("tokenizer.whole")  # which has no bytes

    def other(header):
        text = header["__metadata__"]["tokenizer"]
        header["__metadata__"]["tokenizer"] = text.replace('"sentencepiece"', '"bpe"')

    def outside(body, document):
        begin = document["tokenizer.merges"]["data_offsets"][0]
        body[begin : begin + 4] = (3).to_bytes(4, "little")

    path = tmp_path / "m.dbb"
    refused(edit_file(with_tables, path, kind), "tables of pieces belong to the kind bpe")
    refused(edit_file(model, path, other), "the kind bpe, and it needs them")
    refused(edit_file(with_tables, path, shape), "tokenizer.piece_ends: shape [3, 1]")
    refused(edit_file(with_tables, path, type_), "tokenizer.piece_ends: dtype F32, expected I32")
    refused(edit_file(with_tables, path, missing), "whole: missing")
    for verify in (True, False):
        refused(edit_file(with_tables, path, data=outside), "tokenizer.merges", verify=verify)


def test_tied_model_has_no_head(tmp_path):
    tied = dataclasses.replace(CONFIG, tie_word_embeddings=True)
    kinds = {name: kind for name, kind in KINDS.items() if name != "head"}
    with DbbWriter(tmp_path / "tied.dbb", tied, TOKENIZER, kinds) as writer:
        for name in writer.remaining:
            writer.put(name, content(name))
        file = read_dbb(writer.finish({}))
    assert "head" not in file.linears
    assert summarize(file)["kinds"]["head"] == "tied"


def test_summary_adds_up(model):
    file = read_dbb(model)
    summary = summarize(file)
    json.dumps(summary)
    assert sum(summary["bytes"].values()) == model.stat().st_size
    assert summary["quantization"]["teacher"] == "none"
    assert summary["kinds"]["layers"]["2 pairs"] == 2
    first, second, third = summary["sparsity"]
    assert 0.5 < first["b1"] < 0.7
    assert 0.5 < second["b2"] < 0.7
    assert third["weights"] == 130 * 24
    assert summary["kinds"]["layers"]["1.5 pairs"] == 1


# Files that are not model files


def test_missing_file(tmp_path):
    refused(tmp_path / "none.dbb", "no such file")


def test_directory(tmp_path):
    refused(tmp_path, "is a directory", "edgedb convert")


def test_fifo_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe.dbb")
    refused(tmp_path / "pipe.dbb", "not a regular file")


def test_empty_file(tmp_path):
    (tmp_path / "empty.dbb").touch()
    refused(tmp_path / "empty.dbb", "is empty")


def test_gguf(tmp_path):
    (tmp_path / "m.dbb").write_bytes(b"GGUF" + bytes(100))
    refused(tmp_path / "m.dbb", "is a GGUF file", "edgedb convert")


@pytest.mark.parametrize("magic", [b"\x80\x02}q\x00", b"PK\x03\x04"])
def test_pickle(tmp_path, magic):
    (tmp_path / "m.dbb").write_bytes(magic + bytes(100))
    refused(tmp_path / "m.dbb", "pickle")


def test_safetensors_checkpoint(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": np.zeros(3, np.float32)}, path, {"format": "pt"})
    refused(path, "safetensors checkpoint", "edgedb convert")
    save_file({"a": np.zeros(3, np.float32)}, path)
    refused(path, "safetensors checkpoint")


def test_text_file(tmp_path):
    (tmp_path / "m.dbb").write_bytes(b"This is not a model at all, just text.")
    refused(tmp_path / "m.dbb", "not a .dbb")
    (tmp_path / "m.dbb").write_bytes(b"\x10" + bytes(7) + b"and neither is this text.")
    refused(tmp_path / "m.dbb", "not a .dbb")


# Damage to a real one


@pytest.mark.parametrize("size", [1, 7, 8, 100, 5000])
def test_truncated_in_the_header(model, tmp_path, size):
    path = tmp_path / "cut.dbb"
    path.write_bytes(model.read_bytes()[:size])
    refused(path, "truncated")


def test_truncated_in_the_data(model, tmp_path):
    path = tmp_path / "cut.dbb"
    path.write_bytes(model.read_bytes()[:-150])
    refused(path, "final_norm: ends at byte", "truncated")


def test_bytes_at_the_end(model, tmp_path):
    path = tmp_path / "long.dbb"
    path.write_bytes(model.read_bytes() + b"\0")
    refused(path, "the tensors cover")


def test_bit_flip_in_a_tensor(model, tmp_path):
    raw = bytearray(model.read_bytes())
    start, header = 8 + int.from_bytes(raw[:8], "little"), json.loads(_header(raw))
    raw[start + header["layers.1.mlp_down.blocks"]["data_offsets"][0] + 77] ^= 4
    path = tmp_path / "flip.dbb"
    path.write_bytes(raw)
    refused(path, "layers.1.mlp_down.blocks: checksum", "damaged")
    read_dbb(path, verify=False)


def test_bit_flip_in_the_header(model, tmp_path):
    raw = bytearray(model.read_bytes())
    raw[raw.index(b"hidden_size")] ^= 1
    path = tmp_path / "flip.dbb"
    path.write_bytes(raw)
    refused(path, "header: its checksum", verify=False)


def test_checksum_digits_are_lower_case(model, tmp_path):
    # Upper case would be the same number, but one flipped bit.
    raw = bytearray(model.read_bytes())
    digits = raw[CRC_START : CRC_START + 8]
    if digits.isdigit():
        pytest.skip("this header's checksum has no letter")
    raw[CRC_START : CRC_START + 8] = digits.upper()
    path = tmp_path / "flip.dbb"
    path.write_bytes(raw)
    refused(path, "header: its checksum")


@pytest.mark.parametrize("length", [1 << 30, 1 << 63, (1 << 64) - 1])
def test_oversized_header(model, tmp_path, length):
    path = tmp_path / "huge.dbb"
    path.write_bytes(length.to_bytes(8, "little") + model.read_bytes()[8:])
    refused(path, "not a .dbb file", f"have {length} bytes")


def test_header_longer_than_the_file(model, tmp_path):
    path = tmp_path / "huge.dbb"
    path.write_bytes((1 << 20).to_bytes(8, "little") + model.read_bytes()[8:])
    refused(path, "the file ends after")


NAME = "layers.0.attn_qkv"
HALVED = "layers.1.mlp_gate_up"  # one pair and a half
WHOLE_PAIRS = "d94c86f32161c3fd052525b4612d634714ff56a8dc106ae0a7916bf1c12f6bac"


def change(tensor, **values):
    return lambda header: header[tensor].update(values)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (change("final_norm", dtype="F64"), ["final_norm: dtype 'F64'", "F32"]),
        (change(f"{NAME}.blocks", dtype="I8"), [f"{NAME}.blocks: dtype I8, expected U8"]),
        (change("layers.0.mlp_down.weight", dtype="U8"), ["layers.0.mlp_down.weight"]),
        (
            change(f"{NAME}.blocks", shape=[1, 1, 1152]),
            [f"{NAME}.blocks: shape [1, 1, 1152], expected [1, 1, 1, 1152]"],
        ),
        (change(f"{HALVED}.half", dtype="I8"), [f"{HALVED}.half: dtype I8, expected U8"]),
        (
            change(f"{HALVED}.half", shape=[1, 3, 576]),
            [f"{HALVED}.half: shape [1, 3, 576], expected [3, 1, 576]"],
        ),
        (
            lambda h: h["__metadata__"].update(version="1"),
            [f"{HALVED}.half: half a pair, which needs version 2"],
        ),
        (change("final_norm", shape=[2, 12]), ["final_norm: shape [2, 12], expected [24]"]),
        (change("final_norm", shape=[23]), ["final_norm: F32 [23] needs 92 bytes, found 96"]),
        (change("final_norm", shape=[-24]), ["final_norm: shape [-24]"]),
        (change("final_norm", shape=[24.0]), ["final_norm: shape"]),
        (change("final_norm", shape=[True] * 2), ["final_norm: shape"]),
        (change("final_norm", shape=[]), ["final_norm: shape"]),
        # Their product is 24 modulo 2^64.
        (change("final_norm", shape=[(1 << 62) + 6, 4]), ["final_norm", "needs"]),
        (change("final_norm", data_offsets=[96, 0]), ["final_norm: data_offsets"]),
        (change("final_norm", data_offsets=[0, 96]), ["expected"]),
        (lambda h: h["final_norm"].pop("dtype"), ["final_norm: expected dtype"]),
        (lambda h: h.update(final_norm=[]), ["final_norm: expected dtype"]),
        (lambda h: h["final_norm"].update(extra=1), ["final_norm: expected dtype"]),
        (lambda h: h.update(surprise=h.pop("final_norm")), ["surprise: no checksum"]),
        (lambda h: h["__metadata__"].pop("config"), ["metadata 'config' is missing"]),
        (lambda h: h["__metadata__"].pop("tokenizer"), ["metadata 'tokenizer' is missing"]),
        (lambda h: h["__metadata__"].pop("checksums"), ["metadata 'checksums' is missing"]),
        (
            lambda h: h["__metadata__"].update(version="4"),
            ["version '4'; this edgedb reads 1, 2, 3"],
        ),
        (lambda h: h["__metadata__"].update(version=1), ["'version' is not a string"]),
        (lambda h: h["__metadata__"].update(format="pt"), ["format is 'pt'"]),
        (lambda h: h["__metadata__"].update(config="{"), ["config: not valid JSON"]),
        (lambda h: h["__metadata__"].update(config="[]"), ["config: expected a JSON object"]),
        (lambda h: h["__metadata__"].update(config='{"a":1,"a":2}'), ["'a' is there twice"]),
        (lambda h: h["__metadata__"].update(config='{"a":NaN}'), ["NaN is not a number"]),
        (lambda h: h["__metadata__"].update(config="[" * 99999), ["nested too deeply"]),
        (lambda h: h["__metadata__"].update(quantization=_nested(65)), ["more than 64 deep"]),
        (
            lambda h: h["__metadata__"].update(quantization='{"a":1e999}'),
            ["'1e999' is not a number"],
        ),
        (lambda h: h["__metadata__"].update(quantization="1"), ["quantization: expected"]),
        (lambda h: h["__metadata__"].update(checksums="[]"), ["checksums: expected"]),
        (lambda h: h["__metadata__"].update(tokenizer='{"kind":"x"}'), ["tokenizer: kind 'x'"]),
    ],
)
def test_hostile_header(model, tmp_path, edit, words):
    refused(edit_file(model, tmp_path / "bad.dbb", edit), *words)


def test_tensor_twice_in_the_header(model, tmp_path):
    raw = model.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    text = _header(raw).decode().rstrip()
    twice = text[:-1] + ',"final_norm":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'
    path = tmp_path / "bad.dbb"
    path.write_bytes(seal(twice) + raw[start:])
    refused(path, "header: 'final_norm' is there twice")


@pytest.mark.parametrize(
    "name", ["embedding.codes", "head.scales", f"{NAME}.blocks", f"{NAME}.row_scale", "final_norm"]
)
def test_missing_tensor(model, tmp_path, name):
    def remove(header):
        _rename(header, name, "pad.99")

    message = refused(edit_file(model, tmp_path / "bad.dbb", remove))
    assert f"{name.removesuffix('.codes').removesuffix('.blocks')}: missing from the file" in (
        message
    )


def test_surprise_tensor(model, tmp_path):
    def add(header):
        header["extra"] = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
        _edit_json(header, "checksums", lambda sums: sums.update(extra="00000000"))

    refused(edit_file(model, tmp_path / "bad.dbb", add), "extra: a model of this shape has no such")


def test_matrix_stored_twice(model, tmp_path):
    def add(header):
        header["head.weight"] = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
        _edit_json(header, "checksums", lambda sums: sums.update({"head.weight": "00000000"}))

    refused(edit_file(model, tmp_path / "bad.dbb", add), "head: stored twice")


@pytest.mark.parametrize(
    ("tensor", "offset", "patch", "reason"),
    [
        (f"{NAME}.row_scale", 4, np.float32(np.nan).tobytes(), "value nan at index 1"),
        ("final_norm", 0, np.float32(np.inf).tobytes(), "value inf at index 0"),
        ("embedding.scales", 8, np.float32(-np.inf).tobytes(), "value -inf at index 2"),
        ("layers.0.mlp_down.weight", 2, np.float16(np.nan).tobytes(), "NaN or infinite"),
        ("embedding.codes", 9, b"\x80", "code -128"),
        (f"{NAME}.blocks", 1024, b"\x80", "scale codes outside -127..127"),
        (f"{HALVED}.half", 512 + 63, b"\x80", "scale code -128"),
        (f"{HALVED}.row_scale", 4 * 130, np.float32(np.nan).tobytes(), "value nan at index 130"),
        ("layers.0.mlp_gate_up.blocks", -65, b"\x7f", "scale codes outside -127..127"),
        ("pad.0", 3, b"\x01", "filler must be"),
    ],
)
def test_hostile_values(model, tmp_path, tensor, offset, patch, reason):
    def damage(data, header):
        begin, end = header[tensor]["data_offsets"]
        at = (end if offset < 0 else begin) + offset
        data[at : at + len(patch)] = patch
        if offset < 0:
            data[end - 1] = 1  # c1 + c2 = 128 in the last lane, which no row uses
            data[at] = 127

    refused(edit_file(model, tmp_path / "bad.dbb", data=damage), tensor, reason)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"n_layers": 10**9}, ["n_layers = 1000000000"]),
        ({"hidden_size": -1}, ["hidden_size = -1"]),
        ({"vocab_size": 1 << 20}, ["embedding.codes: shape", "expected [16384, 1, 4096]"]),
        ({"n_layers": 3}, ["layers.2.attn_qkv: missing"]),
        ({"n_layers": 1}, ["layers.1", "no such tensor"]),
        ({"tie_word_embeddings": True}, ["head", "no such tensor"]),
    ],
)
def test_config_that_does_not_fit(model, tmp_path, values, words):
    def edit(header):
        _edit_json(header, "config", lambda config: config.update(values))

    refused(edit_file(model, tmp_path / "bad.dbb", edit), *words)


def test_unsupported_model_names_the_file(model, tmp_path):
    def edit(header):
        _edit_json(header, "config", lambda config: config.update(model_type="mamba"))

    path = edit_file(model, tmp_path / "bad.dbb", edit)
    with pytest.raises(UnsupportedModelError, match=r"bad\.dbb: .*mamba"):
        read_dbb(path)


@pytest.mark.parametrize(
    ("name", "whole", "pairs"),
    [(NAME, 0, "0"), (NAME, 9, "9"), (NAME, 1 << 40, f"{1 << 40}"), (HALVED, 0, "0.5"),
     (HALVED, 8, "8.5")],
)  # fmt: skip
def test_too_many_pairs(model, tmp_path, name, whole, pairs):
    def edit(header):
        entry = header[f"{name}.blocks"]
        # Keep the bytes right, so that the number of pairs is what is wrong.
        entry["shape"] = [whole, 0, 1, 1152]
        size = entry["data_offsets"][1] - entry["data_offsets"][0]
        header["pad.99"] = {"dtype": "U8", "shape": [size], "data_offsets": entry["data_offsets"]}
        entry["data_offsets"] = [entry["data_offsets"][0]] * 2
        _edit_json(header, "checksums", lambda sums: sums.update({"pad.99": "00000000"}))

    refused(edit_file(model, tmp_path / "bad.dbb", edit), f"{pairs} pairs, expected 1 to 8")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("half", "pad.99", f"{HALVED}.row_scale: shape [2, 130], expected [1, 130]"),
        ("blocks", "pad.99", f"{HALVED}: missing from the file"),
        ("half", "head.half", f"{HALVED}.row_scale: shape [2, 130]"),
        ("half", "layers.0.mlp_gate_up.half", "row_scale: shape [3, 130], expected [4, 130]"),
    ],
)
def test_half_a_pair_in_the_wrong_place(model, tmp_path, old, new, words):
    def move(header):
        _rename(header, f"{HALVED}.{old}", new)

    refused(edit_file(model, tmp_path / "bad.dbb", move), words)


def test_only_a_half_needs_version_2(model, tmp_path, monkeypatch):
    with safe_open(model, "np") as file:
        assert file.metadata()["version"] == "2"
    monkeypatch.setitem(KINDS, HALVED, 2)
    raw = write_model(tmp_path / "m.dbb").read_bytes()
    header = json.loads(_header(raw))
    assert header.pop("__metadata__")["version"] == "1"
    # Tensors and data of commit 12a2cea, which knew no halves.
    digest = hashlib.sha256(json.dumps(header).encode() + raw[8 + len(_header(raw)) :])
    assert digest.hexdigest() == WHOLE_PAIRS


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_flipped_bits_never_pass(model, tmp_path, data):
    raw = bytearray(model.read_bytes())
    start = 8 + int.from_bytes(raw[:8], "little")
    # Half of the examples in the header, which is the smaller part but has more to go wrong.
    end = start if data.draw(st.booleans()) else len(raw)
    bits = data.draw(st.sets(st.integers(0, 8 * end - 1), min_size=1, max_size=5))
    for bit in bits:
        raw[bit // 8] ^= 1 << bit % 8
    path = tmp_path / "flip.dbb"
    path.write_bytes(raw)
    refused(path)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_header_gives_a_format_error_or_a_model(model, tmp_path, data):
    def edit(header):
        table = data.draw(st.sampled_from(["tensor", "entry", "metadata", "config", "tokenizer"]))
        value = data.draw(JSON_VALUES)
        if table == "metadata":
            keys = sorted(header["__metadata__"].keys() - {"header_crc32"})
            header["__metadata__"][data.draw(st.sampled_from(keys))] = value
        elif table in ("config", "tokenizer"):
            inner = json.loads(header["__metadata__"][table])
            inner[data.draw(st.sampled_from(sorted(inner)))] = value
            header["__metadata__"][table] = json.dumps(inner)
        else:
            name = data.draw(st.sampled_from(sorted(header.keys() - {"__metadata__"})))
            if table == "tensor":
                header[name] = value
            else:
                header[name][data.draw(st.sampled_from(sorted(header[name])))] = value

    path = edit_file(model, tmp_path / "fuzz.dbb", edit)
    try:
        read_dbb(path)
    except (FormatError, UnsupportedModelError) as error:
        assert "\n" not in str(error)


def _header(raw: bytes | bytearray) -> bytes:
    return bytes(raw[8 : 8 + int.from_bytes(raw[:8], "little")])


def _rename(header: dict, old: str, new: str) -> None:
    header[new] = header.pop(old)
    _edit_json(header, "checksums", lambda sums: sums.update({new: sums.pop(old)}))


def _edit_json(header: dict, key: str, edit) -> None:
    value = json.loads(header["__metadata__"][key])
    edit(value)
    header["__metadata__"][key] = json.dumps(value)


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    return write_experts(tmp_path_factory.mktemp("experts") / "model.dbb")


def test_experts_are_read_as_they_were_written(experts):
    file = read_dbb(experts)
    stack = file.linears["layers.0.experts_gate_up"]
    assert (len(stack), stack.rows, stack.cols, stack.kind) == (3, 68, 24, 3)
    assert "layers.1.experts_gate_up" not in file.linears
    one = stack[1]
    assert one.half is not None and np.shares_memory(one.half, stack.arrays[2])
    assert sum(stack[i].nbytes for i in range(3)) == stack.nbytes == 3 * stack.expert_bytes
    with pytest.raises(IndexError):
        stack[3]


STACK = "layers.0.experts_gate_up"


def fewer(header, name):
    """Two experts where there were three; what is left over is a tensor of its own."""
    entry = header[name]
    begin, end = entry["data_offsets"]
    middle = begin + (end - begin) // 3 * 2
    entry["shape"][0], entry["data_offsets"][1] = 2, middle
    rest = {"dtype": "U8", "shape": [end - middle], "data_offsets": [middle, end]}
    header["rest"] = rest


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda h: fewer(h, f"{STACK}.blocks"), ["rest"]),
        (lambda h: h["__metadata__"].update(version="2"), ["experts needs version 3"]),
        (lambda h: h[f"{STACK}.blocks"]["shape"].insert(0, 1), ["1 to 5 sizes"]),
        (
            lambda h: h.update(surprise=h.pop(f"{STACK}.row_scale")),
            ["surprise: no checksum"],
        ),
        (
            lambda h: h["layers.0.router.weight"].update(shape=[24, 3]),
            ["layers.0.router.weight: shape [24, 3], expected [3, 24]"],
        ),
        (lambda h: config_with(h, n_experts=2), ["layers.0.router.weight: shape [3, 24]"]),
        (lambda h: config_with(h, n_experts=4), ["expected [4, 24]"]),
        (lambda h: config_with(h, experts_per_token=4), ["experts_per_token = 4"]),
        (lambda h: config_with(h, dense_layers=[2]), ["dense_layers"]),
        (lambda h: config_with(h, dense_layers="x"), ["dense_layers"]),
        (lambda h: config_with(h, dense_layers=[0, 1]), ["layers.0.mlp_gate_up: missing"]),
        (lambda h: config_with(h, normalized_shares=1), ["normalized_shares"]),
        (lambda h: config_with(h, n_experts=1 << 40), ["n_experts"]),
    ],
)
def test_hostile_experts(experts, tmp_path, edit, words):
    refused(edit_file(experts, tmp_path / "bad.dbb", edit), *words)


def config_with(header, **features):
    config = json.loads(header["__metadata__"]["config"])
    config["features"] |= features
    header["__metadata__"]["config"] = json.dumps(config)


def test_a_damaged_expert_is_found(experts, tmp_path):
    raw = bytearray(experts.read_bytes())
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    begin, _ = header[f"{STACK}.half"]["data_offsets"]
    raw[start + begin + 600] ^= 1
    path = tmp_path / "bad.dbb"
    path.write_bytes(raw)
    refused(path, f"{STACK}.half: checksum")
