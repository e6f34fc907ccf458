"""What holds for every checkpoint: its tensors are compared with its configuration."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from checkpoints import CONFIG, weights, write_hf
from quick import within

import edgedb
from edgedb.convert.export import export
from edgedb.convert.sources import open_source, source
from edgedb.convert.storage import Options
from edgedb.errors import FormatError, UnsupportedModelError

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def test_a_head_that_differs_counts_whatever_config_json_says(
    tmp_path: Path, tiny_bpe: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "_COMPARED_ROWS", 100)
    tensors = weights()
    logits = []
    for tied in (True, False):
        folder = write_hf(tmp_path / f"{tied}", tiny_bpe, tensors=tensors, tie_word_embeddings=tied)
        opened = open_source(folder)
        assert not opened.config.tie_word_embeddings
        assert opened.config_dict["tie_word_embeddings"] is False
        export(opened, tmp_path / "m.dbb", Options(method="dense32"))
        logits.append(edgedb.load(tmp_path / "m.dbb").logits([3, 7, 200]))
    np.testing.assert_array_equal(*logits)

    # One number in the last rows is enough.
    tensors[HEAD] = tensors[EMBEDDING].copy()
    folder = write_hf(tmp_path / "same", tiny_bpe, tensors=tensors, tie_word_embeddings=True)
    assert open_source(folder).config.tie_word_embeddings
    tensors[HEAD][-1, -1] += 1
    folder = write_hf(tmp_path / "other", tiny_bpe, tensors=tensors, tie_word_embeddings=True)
    assert not open_source(folder).config.tie_word_embeddings


def test_a_head_of_another_shape_is_refused(tmp_path: Path, tiny_bpe: bytes) -> None:
    tensors = weights() | {HEAD: np.ones((7, 96), np.float32)}
    folder = write_hf(tmp_path / "m", tiny_bpe, tensors=tensors, tie_word_embeddings=True)
    with pytest.raises(FormatError, match=r"lm_head\.weight has shape \[7, 96\]"):
        open_source(folder)


def test_a_thousand_claimed_layers_are_refused_at_once(tmp_path: Path, tiny_bpe: bytes) -> None:
    folder = write_hf(tmp_path / "m", tiny_bpe, tensors=weights(), num_hidden_layers=1024)

    def refused() -> None:
        with pytest.raises(FormatError, match=r"layers\.2\.self_attn\.q_proj\.weight is missing"):
            open_source(folder)

    within(1, refused)  # it was 2 seconds, with the square of the layers


def test_of_biases_the_tensors_decide(tmp_path: Path, tiny_bpe: bytes) -> None:
    flags = {"attention_bias": True, "mlp_bias": True}
    opened = open_source(write_hf(tmp_path / "without", tiny_bpe, tensors=weights(), **flags))
    assert opened.config == open_source(write_hf(tmp_path / "plain", tiny_bpe)).config
    name = "model.layers.0.self_attn.q_proj.bias"
    rows = CONFIG["num_attention_heads"] * CONFIG["head_dim"]
    tensors = weights() | {name: np.zeros(rows, np.float32)}
    with pytest.raises(FormatError, match=r"self_attn\.k_proj\.bias is missing"):
        open_source(write_hf(tmp_path / "with", tiny_bpe, tensors=tensors, **flags))
    other = "model.layers.0.input_layernorm.bias"
    tensors = weights() | {other: np.zeros(CONFIG["hidden_size"], np.float32)}
    with pytest.raises(UnsupportedModelError, match=other):
        open_source(write_hf(tmp_path / "other", tiny_bpe, tensors=tensors))
