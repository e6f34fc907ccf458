"""What is taken of a repository, by the names of its files."""

from __future__ import annotations

import re

import pytest
from places import ROOT

from edgedb.convert.sources.listing import BESIDE_WEIGHTS, choose, weight_files
from edgedb.errors import EdgeDBError, FormatError, UnsupportedModelError

FOLDER = ["config.json", "tokenizer.json", "model.safetensors"]


def test_what_comes_first() -> None:
    ggufs = ["m-Q8_0.gguf", "m-F16.gguf", "m-BF16.gguf"]
    assert choose([*FOLDER, *ggufs, "m.dbb"], None, False).files == ("m.dbb",)
    assert choose([*FOLDER, *ggufs, "m.dbb"], None, True).kind == "folder"
    assert choose([*FOLDER, *ggufs], None, False).kind == "folder"
    assert choose(ggufs, None, False).files == ("m-BF16.gguf",)
    assert choose(ggufs[:2], None, False).main == "m-F16.gguf"
    assert choose([*FOLDER, *ggufs], "m-Q8_0.gguf", False).files == ("m-Q8_0.gguf",)


def test_a_dbb_has_the_bits_that_it_has() -> None:
    with pytest.raises(EdgeDBError, match="leave out --bits"):
        choose(["m.dbb"], "m.dbb", True)


def test_parts_of_a_gguf_are_one_and_must_be_all() -> None:
    parts = [f"m-{i:05}-of-00003.gguf" for i in (1, 2, 3)]
    assert choose(parts, None, False).files == tuple(parts)
    with pytest.raises(UnsupportedModelError, match="no GGUF"):
        choose(parts[:2], None, False)
    assert choose([*parts[:2], "m-F16.gguf"], None, False).main == "m-F16.gguf"
    with pytest.raises(UnsupportedModelError):  # the count is a number of a name, and no size
        choose(["m-00001-of-99999.gguf"], None, False)


def test_nothing_else_is_taken() -> None:
    with pytest.raises(UnsupportedModelError, match=r"\(.bin, .pt\) are not read"):
        choose(["config.json", "tokenizer.json", "pytorch_model.bin", "model.py"], None, False)
    for wanted in ("config.json", "pytorch_model.bin", "none.dbb"):
        with pytest.raises(EdgeDBError, match=r"is no \.dbb or GGUF"):
            choose([*FOLDER, "pytorch_model.bin"], wanted, False)
    taken = choose([*FOLDER, "vocab.json", "model.py", "pytorch_model.bin"], None, False).files
    assert set(taken) < set(FOLDER)


def test_every_file_that_is_read_is_fetched() -> None:
    """Names in the code that opens checkpoints."""
    read: set[str] = set()
    for file in (ROOT / "edgedb" / "convert" / "sources").glob("*.py"):
        text = file.read_text(encoding="utf-8")
        read |= set(re.findall(r'path / "([\w.]+)"', text))
        read |= set(re.findall(r'^FILE = "([\w.]+)"', text, re.M))
    assert {"tokenizer_config.json", "tekken.json"} <= read <= set(BESIDE_WEIGHTS)


def test_weights_by_index_number_or_name() -> None:
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert weight_files("m", shards, {}) == shards
    index = {"weight_map": {"a": shards[1], "b": "../" + shards[0], "c": shards[1]}}
    assert weight_files("m", shards, index) == shards
    assert weight_files("m", [*shards, "model.safetensors"], index) == ["model.safetensors"]
    with pytest.raises(FormatError, match=r"shard model-00002-of-00002\.safetensors is missing"):
        weight_files("m", shards[:1], {})
    with pytest.raises(FormatError, match="saved as safetensors first"):
        weight_files("m", ["pytorch_model.bin"], {})
    with pytest.raises(FormatError, match="no weight_map"):
        weight_files("m", shards, {"weight_map": 3})
