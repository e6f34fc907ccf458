"""gpt-oss as it is published: experts in MXFP4, from a folder and from GGUF."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from families import copy_family, write_family_gguf
from safetensors.numpy import load_file, save_file

from edgedb.convert.sources import Source, open_source
from edgedb.errors import FormatError, UnsupportedModelError

# float4 e2m1: sign, two bits of exponent, one of mantissa.
LEVELS = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
EXPERTS = "model.layers.1.mlp.experts."


def packed(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``[experts, rows, cols]`` as blocks and scales, and as what these stand for."""
    groups = weight.reshape(*weight.shape[:2], -1, 32)
    exponents = np.ceil(np.log2(np.abs(groups).max(-1) / 6)).astype(int)
    scaled = groups / np.exp2(exponents)[..., None]
    codes = np.abs(np.abs(scaled)[..., None] - np.array(LEVELS)).argmin(-1)
    values = np.take(LEVELS, codes) * np.sign(scaled) * np.exp2(exponents)[..., None]
    codes = (codes + 8 * (scaled < 0)).astype(np.uint8)
    blocks = codes[..., 0::2] | codes[..., 1::2] << 4
    scales = (exponents + 127).astype(np.uint8)
    whole = values.reshape(weight.shape).astype("f")
    return np.ascontiguousarray(blocks), np.ascontiguousarray(scales), whole


@pytest.fixture(scope="module")
def folders(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The tiny gpt-oss made wide enough, in MXFP4 and as the same floats."""
    root = tmp_path_factory.mktemp("mxfp4")
    changes: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 32, "swiglu_limit": 7.0}
    found = []
    for name in ("packed", "plain"):
        folder = copy_family(shared / "families" / "gpt_oss", root / name, **changes)
        rng = np.random.default_rng(0)
        tensors = {}
        for key, tensor in load_file(folder / "model.safetensors").items():
            shape = tuple({72: 64, 54: 64, 27: 32}.get(n, n) for n in tensor.shape)
            if ".experts." not in key or "bias" in key:
                tensors[key] = rng.normal(0, 0.1, shape).astype(np.float32)
                continue
            blocks, scales, values = packed(rng.normal(0, 0.1, shape).swapaxes(1, 2))
            if name == "packed":
                tensors |= {f"{key}_blocks": blocks, f"{key}_scales": scales}
            else:
                tensors[key] = np.ascontiguousarray(values.swapaxes(1, 2))
        save_file(tensors, folder / "model.safetensors")
        found.append(folder)
    settings = json.loads((found[0] / "config.json").read_text())
    settings["quantization_config"] = {"quant_method": "mxfp4"}
    (found[0] / "config.json").write_text(json.dumps(settings))
    return found[0], found[1]


def assert_same(one: Source, other: Source) -> None:
    for name in ("experts_gate_up", "experts_down", "experts_gate_up.bias", "router"):
        expected = other.tensor(f"layers.1.{name}")
        np.testing.assert_array_equal(one.tensor(f"layers.1.{name}"), expected)
        if name.startswith("experts"):
            rows = len(expected) // 4 if expected.ndim == 1 else None
            second = expected[1] if rows is None else expected[rows : 2 * rows]
            np.testing.assert_array_equal(one.expert(f"layers.1.{name}", 1), second)


def test_blocks_and_scales_are_the_floats_they_stand_for(folders: tuple[Path, Path]) -> None:
    assert_same(*map(open_source, folders))


def test_gguf_of_the_same_type(folders: tuple[Path, Path], tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    whole = write_family_gguf(folders[1], tmp_path / "m.gguf")
    small = write_family_gguf(
        folders[1], tmp_path / "s.gguf", experts=gguf.GGMLQuantizationType.MXFP4
    )
    assert small.stat().st_size < 0.7 * whole.stat().st_size
    assert_same(open_source(small), open_source(folders[1]))


SCALES = f"{EXPERTS}down_proj_scales"


@pytest.mark.parametrize(
    ("scales", "error", "words"),
    [
        (None, FormatError, "down_proj is missing"),
        (np.zeros((4, 64, 2), np.uint8), FormatError, "down_proj is missing"),
        (np.zeros((4, 64, 1), np.int8), UnsupportedModelError, "down_proj is I8, expected bytes"),
    ],
)
def test_what_is_not_packed_so_is_refused_by_name(
    folders: tuple[Path, Path],
    tmp_path: Path,
    scales: np.ndarray | None,
    error: type[Exception],
    words: str,
) -> None:
    folder = copy_family(folders[0], tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    del tensors[SCALES]
    save_file(
        tensors if scales is None else {**tensors, SCALES: scales}, folder / "model.safetensors"
    )
    with pytest.raises(error, match=words):
        open_source(folder)
