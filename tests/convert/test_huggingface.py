"""Hugging Face directories: one file or many, companions, and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from checkpoints import weights, write_hf

from edgedb.convert.sources import open_source
from edgedb.errors import CheckpointWarning, EdgeDBError, FormatError, UnsupportedModelError
from edgedb.model.families import program_of


def test_fused_tensors_have_rows_in_order(tmp_path: Path, tiny_bpe: bytes) -> None:
    tensors = weights()
    source = open_source(write_hf(tmp_path / "m", tiny_bpe, tensors=tensors))
    prefix = "model.layers.1."
    parts = [tensors[f"{prefix}self_attn.{x}_proj.weight"] for x in "qkv"]
    np.testing.assert_array_equal(source.tensor("layers.1.attn_qkv"), np.concatenate(parts))
    parts = [tensors[f"{prefix}mlp.{x}_proj.weight"] for x in ("gate", "up")]
    np.testing.assert_array_equal(source.tensor("layers.1.mlp_gate_up"), np.concatenate(parts))
    embedding = tensors["model.embed_tokens.weight"]
    np.testing.assert_array_equal(source.tensor("embedding", slice(7, 19)), embedding[7:19])
    with pytest.raises(ValueError, match="fused"):
        source.tensor("layers.0.attn_qkv", slice(0, 2))


def test_shards_equal_one_file(tmp_path: Path, tiny_bpe: bytes) -> None:
    one = open_source(write_hf(tmp_path / "one", tiny_bpe))
    many = open_source(write_hf(tmp_path / "many", tiny_bpe, shards=3))
    assert len(many.files()) == 3
    for name in [*program_of(one.config).matrices(), *program_of(one.config).vectors()]:
        np.testing.assert_array_equal(one.tensor(name), many.tensor(name))


@pytest.mark.parametrize(
    ("changes", "feature"),
    [
        ({"model_type": "mamba"}, "mamba"),
        ({"sliding_window": 128}, "sliding"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}, "dynamic"),
        ({"hidden_act": "gelu"}, "gelu"),
    ],
)
def test_unsupported_configurations_are_named(
    tmp_path: Path, tiny_bpe: bytes, changes: dict, feature: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=feature):
        open_source(write_hf(tmp_path / "m", tiny_bpe, tensors=weights(), **changes))


def test_names_on_no_list_are_warned_of(tmp_path: Path, tiny_bpe: bytes) -> None:
    folder = write_hf(tmp_path / "m", tiny_bpe, warp_factor=9, **{"\x1b[31m": 1})
    with pytest.warns(CheckpointWarning, match=r"'warp_factor', '\\x1b\[31m'$") as caught:
        open_source(folder)
    assert len(caught) == 1
    folder = write_hf(tmp_path / "n", tiny_bpe, **{f"k{i}": i for i in range(10_000)})
    with pytest.warns(CheckpointWarning, match="and 9990 more$"):
        open_source(folder)


def test_damaged_checkpoints_are_named(tmp_path: Path, tiny_bpe: bytes) -> None:
    missing = weights()
    del missing["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(FormatError, match=r"layers.1.mlp.up_proj.weight is missing"):
        open_source(write_hf(tmp_path / "a", tiny_bpe, tensors=missing))
    wrong = weights() | {"model.norm.weight": np.ones(95, np.float32)}
    with pytest.raises(FormatError, match=r"model.norm.weight has shape \[95\]"):
        open_source(write_hf(tmp_path / "b", tiny_bpe, tensors=wrong))
    extra = weights() | {"model.layers.0.self_attn.q_norm.weight": np.ones(24, np.float32)}
    with pytest.raises(UnsupportedModelError, match="q_norm"):
        open_source(write_hf(tmp_path / "c", tiny_bpe, tensors=extra))
    folder = write_hf(tmp_path / "d", tiny_bpe, shards=2)
    next(folder.glob("*-00002-*")).unlink()
    with pytest.raises(FormatError, match="shard model-00002"):
        open_source(folder)
    folder = write_hf(tmp_path / "e", tiny_bpe)
    for text in ("{", "[" * 100_000):
        (folder / "config.json").write_text(text)
        with pytest.raises(FormatError, match=r"config.json"):
            open_source(folder)


def test_shards_are_found_without_an_index(tmp_path: Path, tiny_bpe: bytes) -> None:
    folder = write_hf(tmp_path / "m", tiny_bpe)
    whole = open_source(folder)
    want = whole.tensor("final_norm")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    assert [f.name for f in open_source(folder).files()] == ["model-00001-of-00001.safetensors"]
    np.testing.assert_array_equal(open_source(folder).tensor("final_norm"), want)
    folder = write_hf(tmp_path / "many", tiny_bpe, shards=3)
    (folder / "model.safetensors.index.json").unlink()
    assert len(open_source(folder).files()) == 3
    (folder / "model-00001-of-00003.safetensors").unlink()
    with pytest.raises(FormatError, match=r"shard model-00001-of-00003\.safetensors is missing"):
        open_source(folder)


def test_a_whole_file_counts_beside_an_index(tmp_path: Path, tiny_bpe: bytes) -> None:
    folder = write_hf(tmp_path / "m", tiny_bpe)
    index = folder / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "gone.safetensors"}}')
    assert [file.name for file in open_source(folder).files()] == ["model.safetensors"]


@pytest.mark.parametrize("name", ["x" * 300, "..", "", "a\0b", "\ud800", ["b"], None])
def test_impossible_names_of_shards_are_refused(
    tmp_path: Path, tiny_bpe: bytes, name: object
) -> None:
    folder = write_hf(tmp_path / "m", tiny_bpe)
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(FormatError, match=r"^m: shard .* is missing$"):
        open_source(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "chat_template.jinja"])
def test_companions_that_are_no_files(tmp_path: Path, tiny_bpe: bytes, name: str) -> None:
    folder = write_hf(tmp_path / "m", tiny_bpe)
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(FormatError, match=f"{name} is not a regular file"):
        open_source(folder)


@pytest.mark.parametrize(
    ("file", "content", "what"),
    [
        ("chat_template.jinja", b"\xff", "chat_template.jinja is not UTF-8"),
        ("tokenizer_config.json", b'{"chat_template": ["default"]}', "tokenizer_config.json"),
        ("tokenizer_config.json", b'{"chat_template": [{"name": []}]}', "tokenizer_config.json"),
    ],
)
def test_damaged_companions_are_named(
    tmp_path: Path, tiny_bpe: bytes, file: str, content: bytes, what: str
) -> None:
    folder = write_hf(tmp_path / "m", tiny_bpe)
    (folder / file).write_bytes(content)
    with pytest.raises(EdgeDBError, match=what):
        open_source(folder)


@pytest.mark.parametrize("added", ["[3]", "3", '[{"content": "x"}]', '[{"id": "x"}]'])
def test_added_tokens_without_ids_are_refused(
    tmp_path: Path, tiny_bpe: bytes, tiny_sentencepiece: bytes, added: str
) -> None:
    folder = write_hf(tmp_path / "m", tiny_bpe)
    (folder / "tokenizer.model").write_bytes(tiny_sentencepiece)
    document = {**json.loads(tiny_bpe), "added_tokens": json.loads(added)}
    (folder / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(FormatError, match=r"tokenizer\.json is damaged: .*added"):
        open_source(folder)
