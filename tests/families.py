"""The tiny checkpoints of every family, as folders with changed settings and as GGUF."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import gguf_name, interleave, stacked
from places import NOT_HERE, ROOT, SHARED
from safetensors.numpy import load_file

from edgedb.model.families import FAMILIES

# folder -> variants that are supported
SUPPORTED: dict[str, tuple[str, ...]] = {
    "bloom": (),
    "cohere2": ("v4",),
    "falcon": (),
    "falcon_7b": (),
    "falcon_rw": (),
    "gpt2": (),
    "gpt_neox": ("v4", "sequential"),
    "gemma": ("v4",),
    "gemma2": ("v4",),
    "gemma3_text": ("v4",),
    "gpt_oss": ("v4",),
    "gptj": (),
    "granite": ("v4",),
    "llama": ("v4", "linear", "yarn"),
    "llama_bias": ("v4",),
    "ministral3": ("v4",),
    "mistral": ("v4",),
    "mixtral": ("v4",),
    "olmo2": ("v4",),
    "olmo3": (),
    "olmoe": ("v4",),
    "opt": (),
    "opt_350m": (),
    "phi": ("v4",),
    "phi3": ("v4", "long", "window"),
    "qwen2": ("v4", "window"),
    "qwen3": ("v4",),
    "qwen3_moe": ("v4",),
    "smollm3": ("v4",),
    "stablelm": ("v4",),
    "starcoder2": (),
}
NOT_IN_GGUF = {("qwen2", "window")}
# Where GGUF cannot say what a folder has: settings that it can.
IN_GGUF: dict[str, dict[str, Any]] = {
    "gemma2": {"query_pre_attn_scalar": 20},
    "gemma3_text": {"query_pre_attn_scalar": 20},
    "gpt_oss": {"swiglu_limit": 7.0},
    "smollm3": {"no_rope_layers": None, "no_rope_layer_interval": 4},
}
# Matrices of GPT-2 that are stored transposed.
CONV1D = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
CASES = [(name, variant) for name, found in SUPPORTED.items() for variant in ("", *found)]


def folder_of(name: str) -> Path:
    """The checkpoint of a folder: in this source tree (``family_oracle.py``), or beside it."""
    own = ROOT / "tests" / "golden" / "families" / name
    return own if own.is_dir() else SHARED / "families" / name


class Checkpoints:
    """Folders by name; a test of one that is not there is skipped."""

    def __truediv__(self, name: str) -> Path:
        folder = folder_of(name)
        if not folder.is_dir():
            pytest.skip(NOT_HERE)
        return folder


def copy_family(source: Path, folder: Path, variant: str = "", **changes: Any) -> Path:
    """A writable copy of a checkpoint with the settings of ``variant`` and ``changes``."""
    folder.mkdir(parents=True)
    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(source / name, folder / name)
    file = source / (f"config_{variant}.json" if variant else "config.json")
    (folder / "config.json").write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder


def reference(source: Path, variant: str = "") -> tuple[list[int], np.ndarray, list[int]]:
    """Ids, logits after the last of them, and the greedy continuation."""
    stored = np.load(source / "ref.npz")
    plain = variant in ("", "v4")
    logits = stored["logits" if plain else f"logits_{variant}"]
    greedy = stored["greedy"].tolist() if plain else []
    return stored["ids"].tolist(), logits, greedy


def write_family_gguf(folder: Path, path: Path, *, experts: Any = None) -> Path:
    """The checkpoint in ``folder`` as llama.cpp's converter writes it; ``experts``: GGUF's type of
    their matrices, if not float32."""
    import gguf

    config = json.loads((folder / "config.json").read_text())
    architecture = FAMILIES[config["model_type"]].architecture
    assert architecture is not None, "only what GGUF has a name for"
    writer = gguf.GGUFWriter(path, architecture)
    aliases = FAMILIES[config["model_type"]].aliases
    config |= {name: config[key] for key, name in aliases.items() if key in config}
    config.setdefault("intermediate_size", 4 * config["hidden_size"])
    config.setdefault("max_position_embeddings", 2048)
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    keys = ("layer_norm_epsilon", "layer_norm_eps", "norm_epsilon")
    eps = next((config[key] for key in keys if key in config), None)
    if eps is not None:
        writer.add_layer_norm_eps(eps)
        _add_older(writer, config, head_dim)
    else:
        writer.add_head_count_kv(config["num_key_value_heads"])
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
        rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
        rope = rope.get("full_attention", rope)
        theta = rope.get("rope_theta", config.get("rope_theta"))
        writer.add_rope_freq_base(theta)
        _add_scaling(writer, rope, theta, head_dim)
    if config["model_type"] == "granite":
        writer.add_attention_scale(config["attention_multiplier"])
        writer.add_embedding_scale(config["embedding_multiplier"])
        writer.add_residual_scale(config["residual_multiplier"])
        writer.add_logit_scale(config["logits_scaling"])
    if config["model_type"] in ("gemma2", "gemma3_text"):
        _add_gemma(writer, config)
    if config["model_type"] == "phi3":
        _add_phi3(writer, config, rope, head_dim)
    _add_tokenizer(writer, json.loads((folder / "tokenizer.json").read_text()))
    if count := config.get("num_local_experts", config.get("num_experts")):
        writer.add_expert_count(count)
        writer.add_expert_used_count(config["num_experts_per_tok"])
        if "moe_intermediate_size" in config:
            writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    if config["model_type"] == "gpt_oss":
        writer.add_sliding_window(config["sliding_window"])
    moved = FAMILIES[config["model_type"]].interleaved
    for name, tensor in stacked(load_file(folder / "model.safetensors")).items():
        if (moved and ".q_proj." in name) or (moved and ".k_proj." in name):
            tensor = interleave(tensor, head_dim)
        if ".query_key_value." in name:
            tensor = np.concatenate([_of_each_head(tensor, heads, i) for i in range(3)])
        if config["model_type"] == "gpt2" and name.endswith(CONV1D):
            tensor = np.ascontiguousarray(tensor.T)
        if "gemma" in config["model_type"] and "norm." in name:
            tensor = tensor + np.float32(1)
        stored, kind = gguf_name(name, config["model_type"]), None
        if experts is not None and stored.endswith("_exps.weight"):
            tensor, kind = gguf.quantize(tensor, experts), experts
        writer.add_tensor(stored, tensor, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _of_each_head(tensor: np.ndarray, heads: int, part: int) -> np.ndarray:
    """Queries, keys or values (``part`` 0 to 2) of rows that go by head."""
    size = len(tensor) // heads // 3
    begins = [(3 * head + part) * size for head in range(heads)]
    return np.concatenate([tensor[begin : begin + size] for begin in begins])


def _add_older(writer: Any, config: dict[str, Any], head_dim: int) -> None:
    if "num_key_value_heads" in config:
        writer.add_head_count_kv(config["num_key_value_heads"])
    rope = config.get("rope_parameters") or {}
    theta = rope.get("rope_theta", config.get("rope_theta"))
    if theta is not None:
        writer.add_rope_freq_base(theta)
        shares = (
            rope.get("partial_rotary_factor"),
            *map(config.get, ("rotary_pct", "partial_rotary_factor")),
        )
        share = next((one for one in shares if one is not None), 1.0)
        writer.add_rope_dimension_count(int(share * head_dim))
    if "use_parallel_residual" in config:
        writer.add_parallel_residual(config["use_parallel_residual"])
    if config.get("sliding_window"):
        writer.add_sliding_window(config["sliding_window"])
    if config["model_type"] == "cohere2":
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
        writer.add_logit_scale(config["logit_scale"])
        writer.add_sliding_window_pattern([i % 3 != 2 for i in range(3)])


def _add_scaling(writer: Any, rope: dict[str, Any], theta: float, head_dim: int) -> None:
    import gguf

    kind = rope.get("rope_type", "default")
    if kind == "llama3":
        original, factor = rope["original_max_position_embeddings"], rope["factor"]
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        n = head_dim // 2
        divisors = np.ones(n, np.float32)
        for i in range(n):  # the converter's rule, one frequency at a time
            wavelength = 2 * np.pi * theta ** (i / n)
            if wavelength > original / low:
                divisors[i] = factor
            elif wavelength > original / high:
                smooth = (original / wavelength - low) / (high - low)
                divisors[i] = 1 / ((1 - smooth) / factor + smooth)
        writer.add_tensor("rope_freqs.weight", divisors)
    elif kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    elif kind == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        if "llama_4_scaling_beta" in rope:
            writer.add_rope_scaling_yarn_log_mul(rope["mscale_all_dim"])
            writer.add_attn_temperature_scale(rope["llama_4_scaling_beta"])


def _add_gemma(writer: Any, config: dict[str, Any]) -> None:
    writer.add_sliding_window(config["sliding_window"])
    if config["model_type"] == "gemma2":
        writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])
        return
    every = config["sliding_window_pattern"]
    full = [(i + 1) % every == 0 for i in range(config["num_hidden_layers"])]
    writer.add_sliding_window_pattern([not one for one in full])
    turns = config.get("rope_parameters", {}).get("sliding_attention", {})
    writer.add_rope_freq_base_swa(turns.get("rope_theta", config.get("rope_local_base_freq")))


def _add_phi3(writer: Any, config: dict[str, Any], rope: dict[str, Any], head_dim: int) -> None:
    original = config["original_max_position_embeddings"]
    share = rope.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    factor = config["max_position_embeddings"] / original
    writer.add_rope_dimension_count(int(share * head_dim))
    writer.add_sliding_window(config["sliding_window"] or 0)
    writer.add_rope_scaling_orig_ctx_len(original)
    writer.add_rope_scaling_attn_factors((1 + np.log(factor) / np.log(original)) ** 0.5)
    for length in ("long", "short"):
        divisors = np.array(rope[f"{length}_factor"], np.float32)
        writer.add_tensor(f"rope_factors_{length}.weight", divisors)


def _add_tokenizer(writer: Any, raw: dict[str, Any]) -> None:
    vocabulary = dict(raw["model"]["vocab"])
    special = {token["content"]: token["id"] for token in raw["added_tokens"]}
    ids = vocabulary | special
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(sorted(ids, key=ids.__getitem__))
    writer.add_token_types([3 if t in special else 1 for t in sorted(ids, key=ids.__getitem__)])
    merges = raw["model"]["merges"]
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    writer.add_bos_token_id(special["<s>"])
    writer.add_eos_token_id(special["</s>"])
