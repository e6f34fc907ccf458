"""Tiny random Llama checkpoints on disk: a Hugging Face directory, and the same model as GGUF."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 320,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def weights(config: dict[str, Any] = CONFIG, seed: int = 0) -> dict[str, np.ndarray]:
    """Random float32 tensors under Hugging Face's names."""
    rng = np.random.default_rng(seed)
    d, f, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    q = config["num_attention_heads"] * config["head_dim"]
    kv = config["num_key_value_heads"] * config["head_dim"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, d)}
    for i in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{i}."
        shapes |= {
            prefix + "input_layernorm.weight": (d,),
            prefix + "self_attn.q_proj.weight": (q, d),
            prefix + "self_attn.k_proj.weight": (kv, d),
            prefix + "self_attn.v_proj.weight": (kv, d),
            prefix + "self_attn.o_proj.weight": (d, q),
            prefix + "post_attention_layernorm.weight": (d,),
            prefix + "mlp.gate_proj.weight": (f, d),
            prefix + "mlp.up_proj.weight": (f, d),
            prefix + "mlp.down_proj.weight": (d, f),
        }
    shapes["model.norm.weight"] = (d,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocab, d)
    return {
        name: (
            rng.normal(0, 0.1, shape) if len(shape) > 1 else rng.uniform(0.5, 1.5, shape)
        ).astype(np.float32)
        for name, shape in shapes.items()
    }


def write_hf(
    folder: Path,
    tokenizer_json: bytes,
    *,
    tensors: dict[str, np.ndarray] | None = None,
    shards: int = 1,
    **changes: Any,
) -> Path:
    """A checkpoint directory; ``changes`` replace entries of config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {**CONFIG, **changes}
    tensors = weights(config) if tensors is None else tensors
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_bytes(tokenizer_json)
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}})
    )
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    names = sorted(tensors)
    where = {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in names[i::shards]}
        save_file(part, folder / file)
        where |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return folder


_GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_NORMS_AROUND = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_GGUF_FUSED = {"self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up"}
_GGUF_EXPERTS = {
    "mlp.gate": "ffn_gate_inp",
    "mlp.experts.gate_proj": "ffn_gate_exps",
    "mlp.experts.up_proj": "ffn_up_exps",
    "mlp.experts.down_proj": "ffn_down_exps",
}
_GGUF_NO_GATE = {"mlp.dense_h_to_4h": "ffn_up", "mlp.dense_4h_to_h": "ffn_down"}
# model_type -> names that mean something else there, or that it alone has
_GGUF_NAMES_OF = {
    "bloom": {
        "transformer.word_embeddings": "token_embd",
        "transformer.word_embeddings_layernorm": "token_embd_norm",
        "transformer.ln_f": "output_norm",
        "self_attention.query_key_value": "attn_qkv",
        "self_attention.dense": "attn_output",
        **_GGUF_NO_GATE,
    },
    "gpt_neox": {
        "gpt_neox.embed_in": "token_embd",
        "gpt_neox.final_layer_norm": "output_norm",
        "embed_out": "output",
        "attention.query_key_value": "attn_qkv",
        "attention.dense": "attn_output",
        **_GGUF_NO_GATE,
    },
    "starcoder2": {"mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down"},
    "phi": {
        "model.final_layernorm": "output_norm",
        "self_attn.dense": "attn_output",
        "mlp.fc1": "ffn_up",
        "mlp.fc2": "ffn_down",
    },
    "gpt2": {
        "transformer.wte": "token_embd",
        "transformer.wpe": "position_embd",
        "transformer.ln_f": "output_norm",
        "ln_1": "attn_norm",
        "attn.c_attn": "attn_qkv",
        "attn.c_proj": "attn_output",
        "ln_2": "ffn_norm",
        "mlp.c_fc": "ffn_up",
        "mlp.c_proj": "ffn_down",
    },
    "olmo2": {
        "post_attention_layernorm": "post_attention_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
    },
    "gpt_oss": {
        **_GGUF_EXPERTS,
        "mlp.router": "ffn_gate_inp",
        "post_attention_layernorm": "post_attention_norm",
        "self_attn.sinks": "attn_sinks",
    },
    "mixtral": {
        "block_sparse_moe.gate": "ffn_gate_inp",
        "block_sparse_moe.experts.w1": "ffn_gate_exps",
        "block_sparse_moe.experts.w2": "ffn_down_exps",
        "block_sparse_moe.experts.w3": "ffn_up_exps",
    },
    "olmoe": _GGUF_EXPERTS,
    "gemma2": _NORMS_AROUND,
    "gemma3_text": _NORMS_AROUND,
    "phi3": _GGUF_FUSED,
    "qwen3_moe": _GGUF_EXPERTS,
}


def write_gguf(
    path: Path,
    tokenizer: dict[str, Any],
    *,
    tensors: dict[str, np.ndarray] | None = None,
    architecture: str = "llama",
    extra: dict[str, np.ndarray] | None = None,
    parts: int = 1,
    more: dict[str, bool | float | str] | None = None,
    config: dict[str, Any] = CONFIG,
) -> Path:
    """The model of ``config`` as llama.cpp's converter writes it: rows of q and k interleaved.

    Split into ``parts`` files, the first is returned. ``more``: metadata under their full names.
    """
    import gguf

    tensors = weights(config) if tensors is None else tensors
    most = -(-len(tensors) // parts) if parts > 1 else 0
    writer = gguf.GGUFWriter(path, architecture, split_max_tensors=most)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_key_length(config["head_dim"])
    for key, value in tokenizer.items():
        getattr(writer, f"add_{key}")(value)
    kinds = {bool: writer.add_bool, float: writer.add_float32, str: writer.add_string}
    for name, setting in (more or {}).items():
        kinds[type(setting)](name, setting)
    for name, tensor in tensors.items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            tensor = interleave(tensor, config["head_dim"])
        writer.add_tensor(gguf_name(name), tensor)
    for name, tensor in (extra or {}).items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path if parts == 1 else path.with_name(f"{path.stem}-00001-of-{parts:05}.gguf")


def interleave(weight: np.ndarray, head_dim: int) -> np.ndarray:
    """Row i of the first half of a head, then row i of its second half, and so on."""
    out = np.empty_like(weight)
    for head in range(0, len(weight), head_dim):
        for i in range(head_dim // 2):
            out[head + 2 * i] = weight[head + i]
            out[head + 2 * i + 1] = weight[head + head_dim // 2 + i]
    return out


def stacked(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same with the tensors of a layer's experts as one, ``experts.3.w1`` as ``experts.w1``;
    those of gpt-oss by rows, gate and up apart."""
    experts: dict[str, dict[int, np.ndarray]] = {}
    found = {}
    for name, tensor in tensors.items():
        kind = "bias" if name.endswith("_bias") else "weight"
        rows = tensor.swapaxes(1, 2) if tensor.ndim == 3 else tensor
        if re.search(r"experts\.gate_up_proj", name):
            block = name[: name.index("gate_up")]
            found[f"{block}gate_proj.{kind}"] = np.ascontiguousarray(rows[:, ::2])
            found[f"{block}up_proj.{kind}"] = np.ascontiguousarray(rows[:, 1::2])
            continue
        if re.search(r"experts\.down_proj(_bias)?$", name):
            block = name[: name.index("down_proj")]
            found[f"{block}down_proj.{kind}"] = np.ascontiguousarray(rows)
            continue
        if name.endswith(".sinks"):
            found[f"{name}.weight"] = tensor
            continue
        block, expert, rest = re.fullmatch(r"(.*\.experts\.)?(?:(\d+)\.)?(.*)", name).groups("")  # type: ignore[union-attr]
        if block and expert:
            experts.setdefault(block + rest, {})[int(expert)] = tensor
        else:
            found[name] = tensor
    return found | {name: np.stack([of[i] for i in range(len(of))]) for name, of in experts.items()}


def gguf_name(name: str, model_type: str = "llama") -> str:
    """What llama.cpp's converter calls a tensor of a Hugging Face folder."""
    names = _GGUF_NAMES | _GGUF_NAMES_OF.get(model_type, {})
    stem, _, kind = name.rpartition(".")
    if stem in names:
        return f"{names[stem]}.{kind}"
    _, _, layer, rest = stem.split(".", 3)
    return f"blk.{layer}.{names[rest]}.{kind}"
