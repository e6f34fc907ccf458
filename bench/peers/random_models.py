"""Models of a known shape with random weights, as files of llama.cpp's.

Random bits cost a kernel what trained ones cost. Scales are those of a matrix that keeps its
input's size, so that activations stay finite and normal.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np

from edgedb.errors import EdgeDBError
from edgedb.measure.shapes import SHAPES
from edgedb.model.config import ModelConfig
from edgedb.model.families import FAMILIES, program_of

Q = gguf.GGMLQuantizationType

# Random blocks that a GGUF file's matrices are cut from, each at another place: every matrix has
# its own memory, though not its own values. More than the largest matrix.
_POOL_BYTES = 128 << 20


def write_gguf(path: Path, shape: str, layers: str, *, words: bool = False) -> None:
    """A GGUF with every layer's matrices in format ``layers`` (``TQ2_0``, ``Q2_K``, ``Q4_0``).

    The head is Q6_K, and an embedding that is none Q4_0, as llama-quantize picks them for these
    formats (its Q2_K gives some matrices more bits: this one is smaller and faster). No tokenizer,
    or with ``words`` one of as many words.
    """
    config = SHAPES[shape]
    architecture = FAMILIES[config.model_type].architecture
    if architecture is None or program_of(config).stacks():
        raise EdgeDBError(f"{shape} is not written as GGUF")
    partial = path.with_name(path.name + ".partial")
    writer = gguf.GGUFWriter(partial, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.n_layers)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.n_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    if config.sliding_window is not None:  # of which layers, the architecture says
        writer.add_sliding_window(config.sliding_window)
    writer.add_vocab_size(config.vocab_size)
    if words:
        _add_words(writer, config.vocab_size)
    else:
        writer.add_tokenizer_model("none")
    plan = list(_matrices(config, getattr(Q, layers)))
    for name, kind, n_rows, cols in plan:
        n_bytes = n_rows * row_bytes(kind, cols)
        data = np.dtype(np.float32 if kind == Q.F32 else np.uint8)
        writer.add_tensor_info(name, _gguf_shape(kind, n_rows, cols), data, n_bytes, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    pools: dict[Q, np.ndarray] = {}
    rng = np.random.Generator(np.random.PCG64(0))
    for _, kind, n_rows, cols in plan:
        if kind == Q.F32:
            writer.write_tensor_data(np.ones(cols, np.float32))
            continue
        block_bytes = gguf.GGML_QUANT_SIZES[kind][1]
        if kind not in pools:
            n_blocks = _POOL_BYTES // block_bytes
            pools[kind] = random_blocks(kind, n_blocks, config.hidden_size, rng).reshape(-1)
        n_bytes = n_rows * row_bytes(kind, cols)
        writer.write_tensor_data(_cut(pools[kind], n_bytes, block_bytes, rng))
    writer.close()
    os.replace(partial, path)


def _add_words(writer: gguf.GGUFWriter, vocab_size: int) -> None:
    """SentencePiece's special pieces and bytes, then a word for each other id."""
    T = gguf.TokenType
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    kinds = [T.UNKNOWN, T.CONTROL, T.CONTROL, *[T.BYTE] * 256]
    writer.add_tokenizer_model("llama")
    writer.add_token_list([*pieces, *(f"\u2581t{i}" for i in range(len(pieces), vocab_size))])
    writer.add_token_scores([0.0] * vocab_size)
    writer.add_token_types([*kinds, *[T.NORMAL] * (vocab_size - len(kinds))])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def _cut(pool: np.ndarray, n_bytes: int, block_bytes: int, rng: np.random.Generator) -> np.ndarray:
    """``n_bytes`` of whole blocks from somewhere in ``pool``; more than it holds, over again."""
    n_starts = max(len(pool) - n_bytes, 0) // block_bytes + 1
    start = int(rng.integers(n_starts)) * block_bytes
    return np.resize(pool[start : start + n_bytes], n_bytes)


def _matrices(config: ModelConfig, layers: Q) -> Iterator[tuple[str, Q, int, int]]:
    """``(GGUF name, format, rows, columns)`` of every tensor; one row for a vector."""
    d, f = config.hidden_size, config.intermediate_size
    q, kv = config.q_size, config.kv_size
    tied = config.tie_word_embeddings
    yield "token_embd.weight", fitting(Q.Q6_K if tied else Q.Q4_0, d), config.vocab_size, d
    for i, kind in enumerate(program_of(config).layers):
        for name, rows, cols in (
            ("attn_q", q, d),
            ("attn_k", kv, d),
            ("attn_v", kv, d),
            ("attn_output", d, q),
            ("ffn_gate", f, d),
            ("ffn_up", f, d),
            ("ffn_down", d, f),
        ):
            yield f"blk.{i}.{name}.weight", fitting(layers, cols), rows, cols
        for name, length in program_of(config).kinds[kind].vectors.items():
            yield f"blk.{i}.{_NORMS[name]}.weight", Q.F32, 1, length
    yield "output_norm.weight", Q.F32, 1, d
    if not tied:
        yield "output.weight", fitting(Q.Q6_K, d), config.vocab_size, d


# What norms are called in GGUF.
_NORMS = {
    "attn_norm": "attn_norm",
    "attn_post_norm": "post_attention_norm",
    "mlp_norm": "ffn_norm",
    "mlp_post_norm": "post_ffw_norm",
    "q_norm": "attn_q_norm",
    "k_norm": "attn_k_norm",
}


def fitting(kind: Q, cols: int) -> Q:
    """``kind``, or what llama-quantize takes where its blocks of 256 do not fit a row."""
    if cols % gguf.GGML_QUANT_SIZES[kind][0] == 0:
        return kind
    return Q.Q8_0 if kind == Q.Q6_K else Q.Q4_0


def row_bytes(kind: Q, cols: int) -> int:
    """Bytes of one row of ``cols`` weights."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    return cols // block * size


def _gguf_shape(kind: Q, n_rows: int, cols: int) -> tuple[int, ...]:
    if kind == Q.F32:
        return (cols,)
    return (n_rows, row_bytes(kind, cols))  # the writer takes bytes for quantized data


def random_blocks(kind: Q, n: int, cols: int, rng: np.random.Generator) -> np.ndarray:
    """``n`` valid blocks, uint8 ``[n, bytes of a block]``; weights near ``1 / sqrt(cols)``."""
    size = gguf.GGML_QUANT_SIZES[kind][1]
    blocks = rng.integers(0, 256, (n, size), np.uint8)

    def scale(at: int, largest_level: float) -> None:
        value = np.array([1 / (largest_level * cols**0.5)], np.float16)
        blocks[:, at : at + 2] = value.view(np.uint8)

    if kind == Q.Q4_0:  # scale, 32 levels of -8..7
        scale(0, 4)
    elif kind == Q.Q8_0:  # scale, 32 levels of -128..127
        scale(0, 64)
    elif kind == Q.TQ2_0:  # 256 ternary digits, scale
        digits = rng.integers(0, 3, (n, 256), np.uint8).reshape(n, 4, 64)
        blocks[:, :64] = digits[:, 0] | digits[:, 1] << 2 | digits[:, 2] << 4 | digits[:, 3] << 6
        scale(64, 1)
    elif kind == Q.Q2_K:  # 16 x (scale, minimum) of 4 bits each, 256 levels of 0..3, two scales
        scale(80, 8)
        scale(82, 12)
    elif kind == Q.Q6_K:  # 256 levels of -32..31, 16 int8 scales, scale
        blocks[:, 192:208] = rng.integers(1, 64, (n, 16), np.uint8)
        scale(208, 16 * 32)
    else:
        raise ValueError(f"no random blocks of {kind.name}")
    return blocks
