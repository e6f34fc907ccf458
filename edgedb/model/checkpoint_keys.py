"""What each key of a decoder's settings does: the lists that families share and amend.

Read off transformers 5.24 (and the spellings that transformers 4 wrote) and llama.cpp's converter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..display import quoted
from ..errors import UnsupportedModelError
from .keys import Keys, Refusal, at_least, each, either, equals, names, needs, only

# Whatever the family: what transformers keeps for training, for its own generation, for its logs,
# and what says how to compute, not what.
_HARMLESS = names(
    """
    _attn_implementation _attn_implementation_autoset _commit_hash _flash_attn_2_enabled
    _name_or_path _pre_quantization_dtype attention_dropout attention_probs_dropout_prob
    attn_implementation attn_pdrop bad_words_ids begin_suppress_tokens bos_token_id
    cache_implementation chunk_size_feed_forward classifier_dropout cross_attention_hidden_size
    decoder_start_token_id diversity_penalty do_sample dtype early_stopping embd_pdrop
    encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty finetuning_task
    forced_bos_token_id forced_eos_token_id gradient_checkpointing hidden_dropout id2label
    initializer_range is_decoder is_llama_config label2id length_penalty max_length
    max_new_tokens max_sequence_length max_window_layers min_length name_or_path
    no_repeat_ngram_size num_beam_groups num_beams num_experts_per_tok num_labels
    num_logits_to_keep num_return_sequences output_attentions output_hidden_states
    output_router_logits output_scores pad_token_id prefix pretraining_tp problem_type
    remove_invalid_values repetition_penalty resid_pdrop return_dict return_dict_in_generate
    router_aux_loss_coef router_jitter_noise sep_token_id suppress_tokens task_specific_params
    temperature tf_legacy_loss tie_encoder_decoder tokenizer_class top_k top_p torch_dtype
    torchscript transformers.js_config transformers_version typical_p unsloth_fixed
    unsloth_version use_bfloat16 use_cache use_return_dict use_sliding_window
    """
)

_QUANTIZED = Refusal("is already quantized: export the checkpoint it was made from", only({}))
# 0 is a window without any key; none at all is null.
_WINDOW = needs("sliding-window attention", either(only(None), at_least("max_position_embeddings")))
_EXPERTS = needs("a mixture of experts", only(0))
_ACTIVATION = needs("another activation than silu", only("silu", "swish"))
_NORMS_OF_Q_AND_K = needs("norms of q and k", only(False))
_NOT_CAUSAL = needs("attention that is not causal", only(True))
_PARALLEL = needs("attention and feed-forward in parallel", only(False))
_UNROTATED = needs("layers without rotary embedding", either(only(0), each(1)))
_PARTIAL = needs("partial rotary embedding", only(1.0))
_GROWTH = needs("queries that grow with their position", only(0, 0.0))

LLAMA_CONFIG = Keys(
    fields={
        "vocab_size": "vocab_size",
        "hidden_size": "hidden_size",
        "intermediate_size": "intermediate_size",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "num_key_value_heads": "n_kv_heads",
        "head_dim": "head_dim",
        "max_position_embeddings": "max_position_embeddings",
        "rms_norm_eps": "norm_eps",
        "tie_word_embeddings": "tie_word_embeddings",
    },
    honoured=names(
        "architectures model_type original_max_position_embeddings "
        "rope_parameters rope_scaling rope_theta"
    ),
    refused={
        "add_cross_attention": needs("cross-attention", only(False)),
        "alibi": needs("ALiBi", only(False)),
        "attention_chunk_size": needs("chunked attention", at_least("max_position_embeddings")),
        "attention_multiplier": needs("another scale of attention scores", only()),
        "attn_logit_softcapping": needs("capped attention scores", only()),
        "clip_qkv": needs("clipped q, k and v", only()),
        "compression_config": _QUANTIZED,
        "embedding_multiplier": needs("a scaled embedding", only(1.0)),
        "final_logit_softcapping": needs("capped logits", only()),
        "hidden_act": _ACTIVATION,
        "hidden_activation": _ACTIVATION,
        "is_causal": _NOT_CAUSAL,
        "is_encoder_decoder": needs("an encoder", only(False)),
        # Of a window, ``sliding_window`` says how long it is.
        "layer_types": needs(
            "other layers than attention", each("full_attention", "attention", "sliding_attention")
        ),
        "logit_scale": needs("scaled logits", only(1.0)),
        "logits_scaling": needs("scaled logits", only(1.0)),
        "n_routed_experts": _EXPERTS,
        "no_rope_layer_interval": _UNROTATED,
        "no_rope_layers": _UNROTATED,
        "num_experts": _EXPERTS,
        "num_local_experts": _EXPERTS,
        "partial_rotary_factor": _PARTIAL,
        "per_layer_config": needs("layers of different shapes", only({}, [])),
        "pruned_heads": needs("layers of different shapes", only({})),
        "qk_layernorm": _NORMS_OF_Q_AND_K,
        "qk_norm": _NORMS_OF_Q_AND_K,
        "quantization": _QUANTIZED,  # MLX
        "quantization_config": _QUANTIZED,
        "query_pre_attn_scalar": needs("another scale of attention scores", only()),
        "residual_multiplier": needs("a scaled residual", only(1.0)),
        "rope_interleaved": needs("a rotary embedding of neighbours", only(False)),
        "rotary_pct": _PARTIAL,
        "sliding_window": _WINDOW,
        "transformers_weights": Refusal("keeps its weights in a file of another name", only()),
        "use_bidirectional_attention": needs("attention that is not causal", only(False)),
        "use_parallel_residual": _PARALLEL,
        "use_qk_norm": _NORMS_OF_Q_AND_K,
    },
    # Of biases, the tensors decide: one that is there is refused, a flag without one is not.
    harmless=_HARMLESS | names("attention_bias mlp_bias"),
)


# Decoders before Llama: no gate, norms that take the mean away, a key for every query.
OLDER_CONFIG = LLAMA_CONFIG.but(
    honoured="hidden_act", harmless="head_dim num_key_value_heads rms_norm_eps"
)

_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_fast": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


def activation_of(settings: Mapping[str, Any], usual: str) -> dict[str, Any]:
    """The feature that ``hidden_act`` is, but for what the family's models ``usual``ly have."""
    name = settings["hidden_act"]
    if not isinstance(name, str) or name not in _ACTIVATIONS:
        raise UnsupportedModelError(
            f"activation {quoted(name)} is not supported; "
            f"this version runs {', '.join(_ACTIVATIONS)}"
        )
    found = _ACTIVATIONS[name]
    return {} if found == usual else {"activation": found}


def _usual_scale(value: Any, settings: Mapping[str, Any]) -> bool:
    """1 / sqrt(head_dim), or 0, which stands for it."""
    head_dim = settings.get("attention.key_length")
    if type(value) is not float or type(head_dim) is not int or head_dim < 1:
        return False
    return value == 0 or math.isclose(value, head_dim**-0.5, rel_tol=1e-6)


LLAMA_METADATA = Keys(
    fields={
        "attention.head_count": "num_attention_heads",
        "attention.head_count_kv": "num_key_value_heads",
        "attention.key_length": "head_dim",
        "attention.layer_norm_rms_epsilon": "rms_norm_eps",
        "block_count": "num_hidden_layers",
        "context_length": "max_position_embeddings",
        "embedding_length": "hidden_size",
        "feed_forward_length": "intermediate_size",
        "rope.freq_base": "rope_theta",
    },
    honoured=names(
        """
        rope.scale_linear rope.scaling.attn_factor rope.scaling.factor
        rope.scaling.original_context_length rope.scaling.type rope.scaling.yarn_beta_fast
        rope.scaling.yarn_beta_slow rope.scaling.yarn_ext_factor
        """
    ),
    refused={
        "attention.causal": _NOT_CAUSAL,
        "attention.clamp_kqv": needs("clipped q, k and v", only(0.0)),
        "attention.max_alibi_bias": needs("ALiBi", only(0.0)),
        "attention.scale": needs("another scale of attention scores", _usual_scale),
        # 0 is no window in GGUF.
        "attention.sliding_window": needs(
            "sliding-window attention", either(only(0), at_least("context_length"))
        ),
        "attention.temperature_scale": needs("scores scaled by position", only(0.0)),
        "attention.value_length": needs("heads of two sizes", equals("attention.key_length")),
        "attn_logit_softcapping": needs("capped attention scores", only(0.0)),
        "embedding_scale": needs("a scaled embedding", only(0.0, 1.0)),
        "expert_count": _EXPERTS,
        "final_logit_softcapping": needs("capped logits", only(0.0)),
        "logit_scale": needs("scaled logits", only(0.0, 1.0)),
        "residual_scale": needs("a scaled residual", only(0.0, 1.0)),
        "rope.dimension_count": needs("partial rotary embedding", equals("attention.key_length")),
        "rope.dimension_sections": needs("a rotary embedding in sections", each(0)),
        "rope.scaling.alpha": needs("another rotary scaling", only(0.0)),
        "rope.scaling.yarn_attn_factor": needs("scaled attention scores", only(1.0)),
        "rope.scaling.yarn_log_multiplier": needs("rotary scaling yarn", only(0.0)),
        "tensor_data_layout": needs("another order of rows", only("Meta AI original pth")),
        "use_parallel_residual": _PARALLEL,
    },
    # Those of experts and of windows count beside one, and that is refused.
    harmless=names(
        """
        attention.key_length_swa attention.layer_norm_epsilon attention.sliding_window_pattern
        attention.value_length_swa decoder_start_token_id expert_feed_forward_length
        expert_gating_func expert_used_count expert_weights_norm expert_weights_scale pooling_type
        rope.dimension_count_swa rope.freq_base_swa rope.scaling.finetuned
        vocab_size
        """
    ),
)

OLDER_METADATA = LLAMA_METADATA.but(
    fields={"attention.layer_norm_epsilon": "layer_norm_epsilon"},
    harmless="attention.layer_norm_rms_epsilon",
)

_ROPE = Keys(
    honoured=names("rope_theta rope_type type"),
    refused={
        "llama_4_scaling_beta": _GROWTH,
        "mrope_section": needs("a rotary embedding in sections", each(0)),
        "partial_rotary_factor": _PARTIAL,
    },
)
# rope_type -> the keys of rope_parameters, or of rope_scaling as transformers 4 called it.
ROPE_KEYS = {
    "default": _ROPE,
    "linear": Keys(
        honoured=_ROPE.honoured | names("factor"),
        refused=_ROPE.refused,
        harmless=names("original_max_position_embeddings"),
    ),
    "llama3": Keys(
        honoured=_ROPE.honoured
        | names("factor high_freq_factor low_freq_factor original_max_position_embeddings"),
        refused=_ROPE.refused,
    ),
    "yarn": Keys(
        honoured=_ROPE.honoured
        | names(
            "attention_factor beta_fast beta_slow factor mscale mscale_all_dim "
            "original_max_position_embeddings truncate"
        ),
        refused=_ROPE.refused,
        harmless=names("finetuned"),
    ),
    "longrope": Keys(
        honoured=_ROPE.honoured
        | names(
            "attention_factor factor long_factor original_max_position_embeddings short_factor"
        ),
        refused={
            **_ROPE.refused,
            "long_mscale": needs("a factor of its own for long contexts", only()),
            "short_mscale": needs("a factor of its own for short contexts", only()),
        },
    ),
}
ROPE_KEYS["su"] = ROPE_KEYS["longrope"]  # as the first Phi-3 called it
