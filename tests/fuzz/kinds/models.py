"""The small valid model files that inputs start from, and what is done with a model that loads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

import edgedb
from edgedb.convert.compaction import compacted
from edgedb.format.tensors import Kind as StoredAs
from edgedb.model.config import ModelConfig
from edgedb.model.dbb_writer import DbbWriter
from edgedb.model.families import program_of
from edgedb.model.rotary import RopeScaling
from edgedb.run.engine import Model
from edgedb.text.spec import TokenizerSpec

from ... import dbb_files
from ...dbb_files import random_linear
from ...tiny_tokenizers import byte_level_bpe, sentencepiece_bpe

CONFIG = ModelConfig(
    model_type="llama",
    vocab_size=401,
    hidden_size=24,
    intermediate_size=40,
    n_layers=1,
    n_heads=3,
    n_kv_heads=1,
    head_dim=8,
    max_position_embeddings=128,
)
# With everything that a plain Llama has none of.
FEATURES = replace(
    CONFIG,
    model_type="qwen3",
    n_layers=2,
    rope_scaling=RopeScaling("yarn", factor=2.0, original_max_position_embeddings=64),
    tie_word_embeddings=True,
    attention_bias=True,
    sliding_window=5,
    windowed_layers=(1,),
)
EXPERTS = replace(dbb_files.EXPERTS, vocab_size=CONFIG.vocab_size)
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content']"
    " | trim + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
KINDS: dict[str, StoredAs] = {
    "embedding": "int8",
    "attn_qkv": 5,
    "attn_out": "float16",
    "mlp_gate_up": 2,
    "mlp_down": "float32",
    "router": "float16",
    "experts_gate_up": 3,
    "experts_down": "int8",
    "head": "int8",
}
# What users type, and what has made tokenizers fail.
TEXTS = (
    "Hello world",
    "  two  spaces\n\n\tand\r\n a tab ",
    "Zwölf 日本語 \U0001f600\u200d\U0001f469 \u0301\u0301 \ufeff\u2581\u2581 \ufffd\u0e33\u1e9b",
    "a\0b <s></s><|im_start|><|im_end|> <0x41> \\ \" ' 12345678901234567890 don't",
    "",
    " " * 300 + "x" + "\n" * 300,
    "ab" * 400,
    "a" * 3000 + "\n" + "b " * 500,
)


def specs() -> list[TokenizerSpec]:
    """One tokenizer of each kind; the last is the first with its vocabulary in tables."""
    names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    bpe = TokenizerSpec("tokenizers", byte_level_bpe(), 1, (2,), False, TEMPLATE, names)
    pieces = sentencepiece_bpe()
    return [
        bpe,
        TokenizerSpec("sentencepiece", pieces, 1, (2,), True, TEMPLATE, {}),
        compacted(bpe),
    ]


def write(path: Path, spec: TokenizerSpec, config: ModelConfig = CONFIG) -> bytes:
    """A small model with this tokenizer; the bytes of the file."""
    rng = np.random.default_rng(0)
    program = program_of(config)
    kinds = {name: KINDS[name.rpartition(".")[2]] for name in program.matrices()}
    with DbbWriter(path, config, spec, kinds) as writer:
        stacks = program.stacks()
        for name, shape in program.matrices().items():
            if name not in stacks:
                writer.put(name, random_linear(kinds[name], *shape, rng))
                continue
            for expert in range(stacks[name]):
                writer.put_expert(name, expert, random_linear(kinds[name], *shape, rng))
            writer.end_stack(name)
        for name, size in program.vectors().items():
            writer.put(name, np.ones(size, np.float32))
        writer.finish({"group": 64})
    return path.read_bytes()


def load(path: Path, kv_dtype: str = "float16") -> Model:
    """The model as a command would load it, on one thread."""
    return edgedb.load(path, threads=1, kv_dtype=kv_dtype)


def use(model: Model) -> None:
    """Ask a model for a little of everything."""
    for text in TEXTS[:4]:
        model.detokenize(model.tokenize(text))
    for chunk in model.generate("Hello <s>", max_tokens=3, temperature=0, stream=True):
        chunk.text.encode()
    if model.tokenizer_spec.chat_template is not None:
        model.chat_tokens([{"role": "user", "content": "Hello"}])
    assert model.info
