"""Reading safetensors: every float type, and damaged files."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from checkpoints import weights, write_hf
from safetensors.numpy import save_file

from edgedb.convert.sources import open_source
from edgedb.convert.sources.safetensors import SafetensorsFile
from edgedb.errors import EdgeDBError, FormatError, UnsupportedModelError


def write_bfloat16(file: Path, tensors: dict[str, np.ndarray]) -> None:
    """safetensors by hand: numpy has no bfloat16."""
    header, data = {}, b""
    for name, tensor in tensors.items():
        raw = (tensor.view(np.uint32) >> 16).astype("<u2").tobytes()
        header[name] = {
            "dtype": "BF16",
            "shape": tensor.shape,
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)


def test_half_precision_is_widened_exactly(tmp_path: Path, tiny_bpe: bytes) -> None:
    tensors = weights()
    folder = write_hf(tmp_path / "m", tiny_bpe, tensors=tensors)
    write_bfloat16(folder / "model.safetensors", tensors)
    name = "model.layers.0.mlp.down_proj.weight"
    upper = (tensors[name].view(np.uint32) & 0xFFFF0000).view(np.float32)
    np.testing.assert_array_equal(open_source(folder).tensor("layers.0.mlp_down"), upper)

    halves = {key: value.astype(np.float16) for key, value in tensors.items()}
    save_file(halves, folder / "model.safetensors")
    expected = halves[name].astype(np.float32)
    np.testing.assert_array_equal(open_source(folder).tensor("layers.0.mlp_down"), expected)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.bool_])
def test_other_types_are_named_before_anything_is_read(
    tmp_path: Path, tiny_bpe: bytes, dtype: type
) -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    tensors = weights() | {name: np.ones((96, 160), dtype)}
    folder = write_hf(tmp_path / "m", tiny_bpe, tensors=tensors)
    with pytest.raises(UnsupportedModelError, match=rf"{name} is \w+; export from BF16"):
        open_source(folder)


def test_float8_is_named_before_anything_is_read(tmp_path: Path, tiny_bpe: bytes) -> None:
    folder = write_hf(tmp_path / "m", tiny_bpe)
    file = folder / "model.safetensors"
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    header["lm_head.weight"]["dtype"] = "F8_E4M3"
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])
    with pytest.raises(UnsupportedModelError, match=r"lm_head\.weight is F8_E4M3"):
        open_source(folder)


def write_header(file: Path, header: bytes, data: bytes = b"") -> None:
    file.write_bytes(len(header).to_bytes(8, "little") + header + data)


def test_cut_files_are_named(tmp_path: Path, tiny_bpe: bytes) -> None:
    folder = write_hf(tmp_path / "e", tiny_bpe)
    whole = (folder / "model.safetensors").read_bytes()
    for cut in (0, 4, 100, len(whole) - 1):
        (folder / "model.safetensors").write_bytes(whole[:cut])
        with pytest.raises(FormatError, match=r"^model.safetensors: .*truncated"):
            open_source(folder)


@pytest.mark.parametrize(
    ("header", "what"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b"[]", "not a JSON object"),
        (b'{"x": 1, "x": 1}', "'x' is there twice"),
        (b'{"x": {"dtype": "F32", "shape": [Infinity], "data_offsets": [0, 0]}}', "not a number"),
        (b'{"x": []}', "x has a damaged header"),
        (b'{"x": {"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]}}', "damaged header"),
        (b'{"x": {"dtype": "F32", "shape": ["2"], "data_offsets": [0, 8]}}', "damaged header"),
        (b'{"x": {"dtype": "F32", "shape": [2.9], "data_offsets": [0, 8]}}', "damaged header"),
        (b'{"x": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}', "damaged header"),
        (b'{"x": {"dtype": "F32", "shape": "2", "data_offsets": [0, 8]}}', "damaged header"),
        (b'{"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, true]}}', "damaged header"),
        (b'{"x": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}', "damaged header"),
        (b'{"x": {"dtype": "F32", "shape": [2], "data_offsets": [0]}}', "damaged header"),
        (b'{"x": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}', "unlike its shape"),
        (b'{"x": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}}', "expected 0"),
        (b'{"x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}', "truncated"),
        (b'{"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', "data is 8 bytes"),
        (
            b'{"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},'
            b' "y": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}',
            "tensor y starts at byte 4 of the data, expected 8",
        ),
    ],
)
def test_false_headers_are_named(tmp_path: Path, header: bytes, what: str) -> None:
    write_header(tmp_path / "x.safetensors", header, bytes(8))
    with pytest.raises(FormatError, match=rf"^x.safetensors: .*{what}"):
        SafetensorsFile(tmp_path / "x.safetensors")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.safetensors")
    with pytest.raises(EdgeDBError, match="not a regular file"):
        SafetensorsFile(tmp_path / "x.safetensors")


def test_a_file_that_shrinks_while_it_is_read_is_named(tmp_path: Path, tiny_bpe: bytes) -> None:
    folder = write_hf(tmp_path / "m", tiny_bpe)
    source = open_source(folder)
    os.truncate(folder / "model.safetensors", 10_000)
    with pytest.raises(FormatError, match="has changed"):
        source.tensor("layers.1.mlp_down")
