"""What checkpoints call the tensors: edgedb's names, without ``layers.{i}.``, and theirs.

A tensor of several parts is their rows, one after the other; ``{i}`` stands for the layer. A bias
is called like its matrix, with ``.bias`` in place of ``.weight``, where it has no names of its own.
Of a stack ``{e}`` stands for the expert; without it a part has a first axis of experts.
"""

from __future__ import annotations

from collections.abc import Mapping

Names = Mapping[str, tuple[str, ...]]

_LAYER = "model.layers.{i}."
_LLAMA: Names = {
    "embedding": ("model.embed_tokens.weight",),
    "attn_norm": (_LAYER + "input_layernorm.weight",),
    "attn_qkv": tuple(_LAYER + f"self_attn.{x}_proj.weight" for x in "qkv"),
    "attn_out": (_LAYER + "self_attn.o_proj.weight",),
    "mlp_norm": (_LAYER + "post_attention_layernorm.weight",),
    "mlp_gate_up": tuple(_LAYER + f"mlp.{x}_proj.weight" for x in ("gate", "up")),
    "mlp_down": (_LAYER + "mlp.down_proj.weight",),
    "final_norm": ("model.norm.weight",),
    "head": ("lm_head.weight",),
}
_Q_K_NORMS: Names = {
    "q_norm": (_LAYER + "self_attn.q_norm.weight",),
    "k_norm": (_LAYER + "self_attn.k_norm.weight",),
}
# Llama's "post attention" is before the feed-forward; this one is behind the attention.
_NORMS_BEHIND: Names = {
    "attn_post_norm": (_LAYER + "post_attention_layernorm.weight",),
    "mlp_post_norm": (_LAYER + "post_feedforward_layernorm.weight",),
}

_NORMS_AROUND: Names = {
    **_NORMS_BEHIND,
    "mlp_norm": (_LAYER + "pre_feedforward_layernorm.weight",),
}
_OPT_LAYER = "model.decoder.layers.{i}."
_OPT: Names = {
    "embedding": ("model.decoder.embed_tokens.weight",),
    "positions": ("model.decoder.embed_positions.weight",),
    "attn_norm": (_OPT_LAYER + "self_attn_layer_norm.weight",),
    "attn_qkv": tuple(_OPT_LAYER + f"self_attn.{x}_proj.weight" for x in "qkv"),
    "attn_out": (_OPT_LAYER + "self_attn.out_proj.weight",),
    "mlp_norm": (_OPT_LAYER + "final_layer_norm.weight",),
    "mlp_up": (_OPT_LAYER + "fc1.weight",),
    "mlp_down": (_OPT_LAYER + "fc2.weight",),
    "final_norm": ("model.decoder.final_layer_norm.weight",),
    "head": ("lm_head.weight",),
}
_H = "transformer.h.{i}."
_GPT2: Names = {
    "embedding": ("transformer.wte.weight",),
    "positions": ("transformer.wpe.weight",),
    "attn_norm": (_H + "ln_1.weight",),
    "attn_qkv": (_H + "attn.c_attn.weight",),
    "attn_out": (_H + "attn.c_proj.weight",),
    "mlp_norm": (_H + "ln_2.weight",),
    "mlp_up": (_H + "mlp.c_fc.weight",),
    "mlp_down": (_H + "mlp.c_proj.weight",),
    "final_norm": ("transformer.ln_f.weight",),
    "head": ("lm_head.weight",),
}
_FUSED: Names = {
    "attn_qkv": (_LAYER + "self_attn.qkv_proj.weight",),
    "mlp_gate_up": (_LAYER + "mlp.gate_up_proj.weight",),
}


def _experts(block: str, router: str, gate: str, up: str, down: str) -> Names:
    """A mixture of experts, each in tensors of its own."""
    expert = _LAYER + block + "experts.{e}."
    return {
        "router": (f"{_LAYER}{block}{router}.weight",),
        "experts_gate_up": (f"{expert}{gate}.weight", f"{expert}{up}.weight"),
        "experts_down": (f"{expert}{down}.weight",),
    }


_GPT_OSS: Names = {
    **_LLAMA,
    "attn_sinks": (_LAYER + "self_attn.sinks",),
    "router": (_LAYER + "mlp.router.weight",),
    "experts_gate_up": (_LAYER + "mlp.experts.gate_up_proj",),
    "experts_gate_up.bias": (_LAYER + "mlp.experts.gate_up_proj_bias",),
    "experts_down": (_LAYER + "mlp.experts.down_proj",),
    "experts_down.bias": (_LAYER + "mlp.experts.down_proj_bias",),
}
_EXPERTS = _experts("mlp.", "gate", "gate_proj", "up_proj", "down_proj")
_GPTJ: Names = {
    "embedding": ("transformer.wte.weight",),
    "attn_norm": (_H + "ln_1.weight",),
    "attn_qkv": tuple(_H + f"attn.{x}_proj.weight" for x in "qkv"),
    "attn_out": (_H + "attn.out_proj.weight",),
    "mlp_up": (_H + "mlp.fc_in.weight",),
    "mlp_down": (_H + "mlp.fc_out.weight",),
    "final_norm": ("transformer.ln_f.weight",),
    "head": ("lm_head.weight",),
}
_BLOOM: Names = {
    "embedding": ("transformer.word_embeddings.weight",),
    "embedding_norm": ("transformer.word_embeddings_layernorm.weight",),
    "attn_norm": (_H + "input_layernorm.weight",),
    "attn_qkv": (_H + "self_attention.query_key_value.weight",),
    "attn_out": (_H + "self_attention.dense.weight",),
    "mlp_norm": (_H + "post_attention_layernorm.weight",),
    "mlp_up": (_H + "mlp.dense_h_to_4h.weight",),
    "mlp_down": (_H + "mlp.dense_4h_to_h.weight",),
    "final_norm": ("transformer.ln_f.weight",),
    "head": ("lm_head.weight",),
}
_NEOX = "gpt_neox.layers.{i}."
_GPT_NEOX: Names = {
    "embedding": ("gpt_neox.embed_in.weight",),
    "attn_norm": (_NEOX + "input_layernorm.weight",),
    "attn_qkv": (_NEOX + "attention.query_key_value.weight",),
    "attn_out": (_NEOX + "attention.dense.weight",),
    "mlp_norm": (_NEOX + "post_attention_layernorm.weight",),
    "mlp_up": (_NEOX + "mlp.dense_h_to_4h.weight",),
    "mlp_down": (_NEOX + "mlp.dense_4h_to_h.weight",),
    "final_norm": ("gpt_neox.final_layer_norm.weight",),
    "head": ("embed_out.weight",),
}
_PHI: Names = {
    **_LLAMA,
    "attn_out": (_LAYER + "self_attn.dense.weight",),
    "mlp_up": (_LAYER + "mlp.fc1.weight",),
    "mlp_down": (_LAYER + "mlp.fc2.weight",),
    "final_norm": ("model.final_layernorm.weight",),
}

# model_type -> names in Hugging Face's safetensors
HUGGING_FACE: Mapping[str, Names] = {
    "bloom": _BLOOM,
    "cohere2": _LLAMA,
    "gpt_neox": _GPT_NEOX,
    "falcon": {k: v for k, v in _BLOOM.items() if k != "embedding_norm"},
    "gptj": _GPTJ,
    "phi": _PHI,
    "starcoder2": {
        **_LLAMA,
        "mlp_up": (_LAYER + "mlp.c_fc.weight",),
        "mlp_down": (_LAYER + "mlp.c_proj.weight",),
    },
    "stablelm": _LLAMA,
    "gemma": _LLAMA,
    "gemma2": {**_LLAMA, **_NORMS_AROUND},
    "gemma3_text": {**_LLAMA, **_NORMS_AROUND, **_Q_K_NORMS},
    "gpt2": _GPT2,
    "gpt_oss": _GPT_OSS,
    "granite": _LLAMA,
    "llama": _LLAMA,
    "ministral3": _LLAMA,
    "mistral": _LLAMA,
    "mixtral": {**_LLAMA, **_experts("block_sparse_moe.", "gate", "w1", "w3", "w2")},
    "olmo2": {**_LLAMA, **_Q_K_NORMS, **_NORMS_BEHIND},
    "olmo3": {**_LLAMA, **_Q_K_NORMS, **_NORMS_BEHIND},
    "olmoe": {**_LLAMA, **_Q_K_NORMS, **_EXPERTS},
    "opt": _OPT,
    "phi3": {**_LLAMA, **_FUSED},
    "qwen2": _LLAMA,
    "qwen3": {**_LLAMA, **_Q_K_NORMS},
    "qwen3_moe": {**_LLAMA, **_Q_K_NORMS, **_EXPERTS},
    "smollm3": _LLAMA,
}

# model_type -> parts of names that some of its checkpoints have, and those that stand above
SYNONYMS: Mapping[str, Mapping[str, str]] = {
    "falcon": {".ln_attn.": ".input_layernorm.", ".ln_mlp.": ".post_attention_layernorm."},
}

# model_type -> of a matrix that may be a table times another matrix: that other one, and whether it
# is turned (its rows are the product's columns). The table has the name that stands above or, where
# a checkpoint has no such matrix, that of the embedding.
PRODUCTS: Mapping[str, Mapping[str, tuple[str, bool]]] = {
    "opt": {
        "embedding": ("model.decoder.project_in.weight", True),
        "head": ("model.decoder.project_out.weight", False),
    },
}

_BLOCK = "blk.{i}."
_GGUF_LLAMA: Names = {
    "embedding": ("token_embd.weight",),
    "attn_norm": (_BLOCK + "attn_norm.weight",),
    "attn_qkv": tuple(_BLOCK + f"attn_{x}.weight" for x in "qkv"),
    "attn_out": (_BLOCK + "attn_output.weight",),
    "mlp_norm": (_BLOCK + "ffn_norm.weight",),
    "mlp_gate_up": tuple(_BLOCK + f"ffn_{x}.weight" for x in ("gate", "up")),
    "mlp_down": (_BLOCK + "ffn_down.weight",),
    "final_norm": ("output_norm.weight",),
    "head": ("output.weight",),
}
_GGUF_Q_K_NORMS: Names = {
    "q_norm": (_BLOCK + "attn_q_norm.weight",),
    "k_norm": (_BLOCK + "attn_k_norm.weight",),
}
_GGUF_NORMS_BEHIND: Names = {
    "attn_post_norm": (_BLOCK + "post_attention_norm.weight",),
    "mlp_post_norm": (_BLOCK + "post_ffw_norm.weight",),
}
_GGUF_EXPERTS: Names = {
    "router": (_BLOCK + "ffn_gate_inp.weight",),
    "experts_gate_up": tuple(_BLOCK + f"ffn_{x}_exps.weight" for x in ("gate", "up")),
    "experts_down": (_BLOCK + "ffn_down_exps.weight",),
}

_GGUF_OLDER: Names = {
    **_GGUF_LLAMA,
    "positions": ("position_embd.weight",),
    "attn_qkv": (_BLOCK + "attn_qkv.weight",),
    "mlp_up": (_BLOCK + "ffn_up.weight",),
}
_GGUF_FUSED: Names = {
    "attn_qkv": (_BLOCK + "attn_qkv.weight",),
    "mlp_gate_up": (_BLOCK + "ffn_up.weight",),
}

# model_type -> names in GGUF
GGUF: Mapping[str, Names] = {
    "bloom": {**_GGUF_OLDER, "embedding_norm": ("token_embd_norm.weight",)},
    "cohere2": _GGUF_LLAMA,
    "gpt_neox": _GGUF_OLDER,
    "starcoder2": {**_GGUF_LLAMA, "mlp_up": (_BLOCK + "ffn_up.weight",)},
    "phi": {**_GGUF_LLAMA, "mlp_up": (_BLOCK + "ffn_up.weight",)},
    "stablelm": _GGUF_LLAMA,
    "gemma": _GGUF_LLAMA,
    "gemma2": {**_GGUF_LLAMA, **_GGUF_NORMS_BEHIND},
    "gemma3_text": {**_GGUF_LLAMA, **_GGUF_NORMS_BEHIND, **_GGUF_Q_K_NORMS},
    "gpt2": _GGUF_OLDER,
    "gpt_oss": {
        **_GGUF_LLAMA,
        **_GGUF_EXPERTS,
        "attn_sinks": (_BLOCK + "attn_sinks.weight",),
        "mlp_norm": (_BLOCK + "post_attention_norm.weight",),
    },
    "granite": _GGUF_LLAMA,
    "llama": _GGUF_LLAMA,
    "ministral3": _GGUF_LLAMA,
    "mixtral": {**_GGUF_LLAMA, **_GGUF_EXPERTS},
    "olmo2": {**_GGUF_LLAMA, **_GGUF_Q_K_NORMS, **_GGUF_NORMS_BEHIND},
    "olmoe": {**_GGUF_LLAMA, **_GGUF_Q_K_NORMS, **_GGUF_EXPERTS},
    "phi3": {**_GGUF_LLAMA, **_GGUF_FUSED},
    "qwen2": _GGUF_LLAMA,
    "qwen3": {**_GGUF_LLAMA, **_GGUF_Q_K_NORMS},
    "qwen3_moe": {**_GGUF_LLAMA, **_GGUF_Q_K_NORMS, **_GGUF_EXPERTS},
    "smollm3": _GGUF_LLAMA,
}


def stored_names(names: Names, name: str) -> list[str]:
    """What a checkpoint calls the parts of tensor ``name`` of a model, in row order; of a stack
    with an ``{e}`` where the expert's number stands, if each expert has tensors of its own."""
    layer, kind = split_layer(name)
    matrix = kind.removesuffix(".bias")
    parts = names.get(kind) or names[matrix]
    if kind not in names:
        parts = tuple(part.removesuffix(".weight") + ".bias" for part in parts)
    return [part.format(i=layer, e="{e}") for part in parts]


def split_layer(name: str) -> tuple[str, str]:
    """``layers.3.attn_qkv.bias`` -> ``("3", "attn_qkv.bias")``; without a layer ``("", name)``."""
    if not name.startswith("layers."):
        return "", name
    _, layer, kind = name.split(".", 2)
    return layer, kind
