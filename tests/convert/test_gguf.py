"""GGUF models: the same weights as Hugging Face's, every type, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from checkpoints import weights, write_gguf, write_hf

from edgedb.convert.sources import open_source
from edgedb.errors import CheckpointWarning, UnsupportedModelError
from edgedb.model.families import program_of
from edgedb.text.tokenizer import load_tokenizer

SENTENCE = "What is 12 + 3? The café's answer:\n\tfifteen — 日本語."


def test_gguf_equals_hugging_face(tmp_path: Path, tiny_bpe: bytes, bpe_metadata: dict) -> None:
    hf = open_source(write_hf(tmp_path / "hf", tiny_bpe))
    gguf = open_source(write_gguf(tmp_path / "m.gguf", bpe_metadata))
    differing = {"norm_eps"}  # float32 in GGUF
    for field, value in hf.config.to_dict().items():
        assert field in differing or gguf.config.to_dict()[field] == value, field
    for name in [*program_of(hf.config).matrices(), *program_of(hf.config).vectors()]:
        np.testing.assert_array_equal(hf.tensor(name), gguf.tensor(name), err_msg=name)
    ids = [load_tokenizer(s.tokenizer_spec).encode(SENTENCE) for s in (hf, gguf)]
    assert ids[0] == ids[1]
    chat = "<|im_start|>user\nHi<|im_end|>"
    ids = [load_tokenizer(s.tokenizer_spec).encode(chat, special=True) for s in (hf, gguf)]
    assert ids[0] == ids[1] and ids[0][0] == 1
    assert gguf.tokenizer_spec.eos_ids == (0, 2), "<|im_end|> ends an answer too"
    assert gguf.tokenizer_spec.chat_template == "{{ messages[0]['content'] }}"
    assert hf.tokenizer_spec.special_tokens["eos_token"] == "<|im_end|>"
    assert hf.tokenizer_spec.eos_ids == (2,) and not hf.tokenizer_spec.add_bos


def test_gguf_types_are_dequantized(tmp_path: Path, bpe_metadata: dict) -> None:
    import gguf

    tensors = weights()
    writer_input = dict(tensors)
    path = write_gguf(
        tmp_path / "half.gguf",
        bpe_metadata,
        tensors={
            name: t.astype(np.float16) if t.ndim == 2 else t for name, t in writer_input.items()
        },
    )
    got = open_source(path).tensor("layers.0.mlp_down")
    want = tensors["model.layers.0.mlp.down_proj.weight"].astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(got, want)
    raw = gguf.quants.quantize(got, gguf.GGMLQuantizationType.Q8_0)
    assert np.abs(gguf.quants.dequantize(raw, gguf.GGMLQuantizationType.Q8_0) - got).max() < 0.01


def test_unsupported_ggufs_are_named(tmp_path: Path, bpe_metadata: dict) -> None:
    path = write_gguf(tmp_path / "a.gguf", bpe_metadata, architecture="gemma4")
    with pytest.raises(UnsupportedModelError, match="gemma4"):
        open_source(path)
    bias = {"blk.0.attn_norm.bias": np.zeros(96, np.float32)}
    path = write_gguf(tmp_path / "b.gguf", bpe_metadata, extra=bias)
    with pytest.raises(UnsupportedModelError, match=r"blk.0.attn_norm.bias"):
        open_source(path)
    path = write_gguf(tmp_path / "c.gguf", {**bpe_metadata, "tokenizer_pre": "afmoe"})
    with pytest.raises(UnsupportedModelError, match="afmoe"):
        open_source(path)


def test_metadata_and_tensors_together(tmp_path: Path, bpe_metadata: dict) -> None:
    more: dict = {"llama.rope.scaling.factor": 4.0, "llama.warp_factor": 9.0}
    with pytest.warns(CheckpointWarning, match=r"m\.gguf: ignored.*'llama\.warp_factor'$"):
        source = open_source(write_gguf(tmp_path / "m.gguf", bpe_metadata, more=more))
    assert source.config.rope_scaling.factor == 4.0
    more = {"llama.attention.causal": False}
    with pytest.raises(UnsupportedModelError, match=r"llama\.attention\.causal = False"):
        open_source(write_gguf(tmp_path / "b.gguf", bpe_metadata, more=more))
    divisors = {"rope_freqs.weight": np.full(12, 2, np.float32)}
    with pytest.raises(UnsupportedModelError, match=r"rope_freqs\.weight"):
        open_source(write_gguf(tmp_path / "c.gguf", bpe_metadata, extra=divisors))


def test_a_type_that_cannot_be_dequantized_is_named_at_once(
    tmp_path: Path, bpe_metadata: dict
) -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    tensors = weights() | {name: np.ones((96, 160), np.int8)}
    path = write_gguf(tmp_path / "m.gguf", bpe_metadata, tensors=tensors)
    with pytest.raises(UnsupportedModelError, match=r"blk\.1\.ffn_down\.weight has type I8"):
        open_source(path)
