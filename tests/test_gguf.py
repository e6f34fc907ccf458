"""GGUF models: the same weights as Hugging Face's, every type, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from checkpoints import weights, write_gguf, write_hf

from edgedb.errors import FormatError, UnsupportedModelError
from edgedb.tokenizer import load_tokenizer
from tools.sources import open_source
from tools.sources.gguf import _llama3_scaling

SENTENCE = "What is 12 + 3? The café's answer:\n\tfifteen — 日本語."


def test_gguf_equals_hugging_face(tmp_path: Path, tiny_bpe: bytes, bpe_metadata: dict) -> None:
    hf = open_source(write_hf(tmp_path / "hf", tiny_bpe))
    gguf = open_source(write_gguf(tmp_path / "m.gguf", bpe_metadata))
    differing = {"norm_eps"}  # float32 in GGUF
    for field, value in hf.config.to_dict().items():
        assert field in differing or gguf.config.to_dict()[field] == value, field
    for name in [*hf.config.linear_shapes(), *hf.config.norm_shapes()]:
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


def test_llama3_scaling_is_read_back_from_gguf() -> None:
    theta, n, factor = 500000.0, 64, 8.0
    divisors = np.ones(n, np.float32)
    for i in range(n):  # transformers' rule, one frequency at a time
        wavelength = 2 * np.pi * theta ** (i / n)
        if wavelength > 8192:
            divisors[i] = factor
        elif wavelength > 8192 / 4:
            smooth = (8192 / wavelength - 1) / 3
            divisors[i] = 1 / ((1 - smooth) / factor + smooth)
    scaling = _llama3_scaling(divisors, theta)
    assert scaling["rope_type"] == "llama3" and scaling["factor"] == factor
    with pytest.raises(UnsupportedModelError, match="rope_freqs"):
        _llama3_scaling(divisors**2, theta)


@pytest.mark.parametrize("sizes", [{"head_count": [4, 2]}, {"key_length": 0}, {"key_length": "x"}])
def test_impossible_heads_of_a_gguf_are_refused(
    tmp_path: Path, bpe_metadata: dict, sizes: dict
) -> None:
    source = open_source(write_gguf(tmp_path / "a.gguf", bpe_metadata))
    metadata = dict.fromkeys(("embedding_length", "feed_forward_length", "block_count"), 64)
    metadata |= {"context_length": 64, "attention.layer_norm_rms_epsilon": 1e-5}
    heads = {"head_count": 4, "head_count_kv": 4} | sizes
    metadata |= {f"attention.{name}": value for name, value in heads.items()}
    metadata = {f"llama.{name}": value for name, value in metadata.items()}
    with pytest.raises(FormatError, match="sizes of heads"):
        source._config_dict({"general.architecture": "llama", **metadata})


def test_unsupported_ggufs_are_named(tmp_path: Path, bpe_metadata: dict) -> None:
    path = write_gguf(tmp_path / "a.gguf", bpe_metadata, architecture="qwen2")
    with pytest.raises(UnsupportedModelError, match="qwen2"):
        open_source(path)
    bias = {"blk.0.attn_q.bias": np.zeros(96, np.float32)}
    path = write_gguf(tmp_path / "b.gguf", bpe_metadata, extra=bias)
    with pytest.raises(UnsupportedModelError, match=r"blk.0.attn_q.bias"):
        open_source(path)
    path = write_gguf(tmp_path / "c.gguf", {**bpe_metadata, "tokenizer_pre": "deepseek-coder"})
    with pytest.raises(UnsupportedModelError, match="deepseek-coder"):
        open_source(path)
