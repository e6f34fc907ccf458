"""Checkpoints: one file or many, every float type, GGUF's permutation, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from checkpoints import CONFIG, weights, write_gguf, write_hf
from safetensors.numpy import save_file

from edgedb.errors import EdgeDBError, FormatError, UnsupportedModelError
from edgedb.tokenizer import load_tokenizer
from tools.sources import open_source
from tools.sources.gguf import _llama3_scaling

SENTENCE = "What is 12 + 3? The café's answer:\n\tfifteen — 日本語."


@pytest.fixture
def bpe_metadata(tiny_bpe: bytes) -> dict:
    """The tiny BPE tokenizer as GGUF writer calls."""
    raw = json.loads(tiny_bpe)
    tokens = sorted(raw["model"]["vocab"], key=raw["model"]["vocab"].get)
    return {
        "tokenizer_model": "gpt2",
        "tokenizer_pre": "gpt-2",
        "token_list": tokens,
        "token_types": [3] * 3 + [1] * (len(tokens) - 3),
        "token_merges": [m if isinstance(m, str) else " ".join(m) for m in raw["model"]["merges"]],
        "bos_token_id": 1,
        "eos_token_id": 0,
        "chat_template": "{{ messages[0]['content'] }}",
    }


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
    for name in [*one.config.linear_shapes(), *one.config.norm_shapes()]:
        np.testing.assert_array_equal(one.tensor(name), many.tensor(name))


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


def test_gguf_sentencepiece_gives_the_same_ids(tmp_path: Path, tiny_sentencepiece: bytes) -> None:
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_proto=tiny_sentencepiece)
    n = model.vocab_size()
    kinds = [
        2 if model.is_unknown(i) else 3 if model.is_control(i) else 6 if model.is_byte(i) else 1
        for i in range(n)
    ]
    metadata = {
        "tokenizer_model": "llama",
        "token_list": [model.id_to_piece(i) for i in range(n)],
        "token_scores": [model.get_score(i) for i in range(n)],
        "token_types": kinds,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    tensors = weights({**CONFIG, "vocab_size": n})
    spec = open_source(write_gguf(tmp_path / "m.gguf", metadata, tensors=tensors)).tokenizer_spec
    assert spec.kind == "sentencepiece" and spec.add_bos and spec.eos_ids == (2,)
    tokenizer = load_tokenizer(spec)
    for text in (SENTENCE, " two  spaces ", ""):
        assert tokenizer.encode(text, add_bos=False) == model.encode(text)
        assert tokenizer.decode(model.encode(text)) == model.decode(model.encode(text))


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


@pytest.mark.parametrize(
    ("changes", "feature"),
    [
        ({"model_type": "mamba"}, "mamba"),
        ({"attention_bias": True}, "attention_bias"),
        ({"sliding_window": 4096}, "sliding"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
        ({"hidden_act": "gelu"}, "gelu"),
    ],
)
def test_unsupported_configurations_are_named(
    tmp_path: Path, tiny_bpe: bytes, changes: dict, feature: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=feature):
        open_source(write_hf(tmp_path / "m", tiny_bpe, tensors=weights(), **changes))


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
    whole = (folder / "model.safetensors").read_bytes()
    for cut, what in ((4, "truncated"), (100, "truncated"), (len(whole) - 1, "outside the file")):
        (folder / "model.safetensors").write_bytes(whole[:cut])
        with pytest.raises(FormatError, match=what):
            open_source(folder)
    deep = b"[" * 100_000
    endless = b'{"x": {"dtype": "F32", "shape": [Infinity], "data_offsets": [0, 0]}}'
    for header, what in ((deep, "not JSON"), (endless, "x has a damaged header")):
        content = len(header).to_bytes(8, "little") + header
        (folder / "model.safetensors").write_bytes(content)
        with pytest.raises(FormatError, match=what):
            open_source(folder)
    for text in ("{", deep.decode()):
        (folder / "config.json").write_text(text)
        with pytest.raises(FormatError, match=r"config.json"):
            open_source(folder)


@pytest.mark.parametrize(
    ("file", "content", "what"),
    [
        ("tokenizer.model", b"\x0aand no more", "tokenizer.model is damaged"),
        ("chat_template.jinja", b"\xff", "chat_template.jinja is not UTF-8"),
        ("tokenizer_config.json", b'{"chat_template": ["default"]}', "tokenizer_config.json"),
        ("tokenizer_config.json", b'{"chat_template": [{"name": []}]}', "tokenizer_config.json"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": ["b"]}}', "is missing"),
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
    (folder / "tokenizer.json").write_text(f'{{"added_tokens": {added}}}')
    with pytest.raises(FormatError, match="added_tokens without ids"):
        open_source(folder)


def test_a_merge_of_one_token_is_named(tmp_path: Path, bpe_metadata: dict) -> None:
    bpe_metadata["token_merges"][3] = "alone"
    with pytest.raises(FormatError, match=r"m\.gguf: BPE merge 'alone'"):
        open_source(write_gguf(tmp_path / "m.gguf", bpe_metadata))
    bpe_metadata["token_merges"][3] = "no-such token"
    with pytest.raises(FormatError, match=r"m\.gguf: BPE merges: .*no-such"):
        open_source(write_gguf(tmp_path / "m.gguf", bpe_metadata))


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(EdgeDBError, match="no such file"):
        open_source(tmp_path / "nothing")
    with pytest.raises(FormatError, match=r"config.json is missing"):
        open_source(tmp_path)
    (tmp_path / "x.safetensors").write_bytes(b"12345678{}")
    with pytest.raises(FormatError, match="pass the directory"):
        open_source(tmp_path / "x.safetensors")
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + bytes(20))
    with pytest.raises(FormatError, match=r"x.gguf"):
        open_source(tmp_path / "x.gguf")


def test_reference_checkpoint(shared: Path) -> None:
    source = open_source(shared / "models" / "stories260K")
    reference = np.load(shared / "ref" / "stories260K_ref.npz")
    tokenizer = load_tokenizer(source.tokenizer_spec)
    ids = reference["ids"].tolist()
    assert tokenizer.encode(tokenizer.decode(ids)) == ids
