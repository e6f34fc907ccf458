"""ModelConfig: what is read, and what is refused by name."""

from __future__ import annotations

import pytest

from edgedb.config import ModelConfig, RopeScaling
from edgedb.errors import FormatError, UnsupportedModelError

LLAMA_2_7B = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "tie_word_embeddings": False,
}
LLAMA_31_ROPE = {
    "factor": 8.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}


def test_llama_2() -> None:
    config = ModelConfig.from_hf(LLAMA_2_7B)
    assert (config.head_dim, config.qkv_size, config.rope_theta) == (128, 3 * 4096, 10000.0)
    shapes = config.linear_shapes()
    assert shapes["layers.31.mlp_gate_up"] == (22016, 4096)
    assert shapes["head"] == (32000, 4096)
    assert len(config.norm_shapes()) == 65


def test_grouped_queries_and_tied_head() -> None:
    config = ModelConfig.from_hf(
        LLAMA_2_7B | {"num_key_value_heads": 8, "tie_word_embeddings": True}
    )
    assert config.qkv_size == 4096 + 2 * 1024
    assert "head" not in config.linear_shapes()


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_llama_3_scaling(key: str) -> None:
    config = ModelConfig.from_hf(LLAMA_2_7B | {key: LLAMA_31_ROPE | {"rope_theta": 5e5}})
    assert config.rope_scaling == RopeScaling("llama3", 8.0, 1.0, 4.0, 8192)


def test_mistral_without_window_is_a_llama() -> None:
    raw = LLAMA_2_7B | {"model_type": "mistral", "sliding_window": None}
    assert ModelConfig.from_hf(raw).model_type == "mistral"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "gpt2"}, "gpt2"),
        ({"model_type": ["llama"]}, "llama"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"model_type": "mistral", "sliding_window": 4096}, "sliding_window=4096"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"num_local_experts": 8}, "mixture of experts"),
        ({"partial_rotary_factor": 0.5}, "partial rotary"),
        ({"quantization_config": {"bits": 4}}, "already quantized"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
    ],
)
def test_unsupported_features_are_named(change: dict[str, object], named: str) -> None:
    with pytest.raises(UnsupportedModelError, match=named):
        ModelConfig.from_hf(LLAMA_2_7B | change)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"num_hidden_layers": 10**9}, "n_layers"),
        ({"num_hidden_layers": True}, "n_layers"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"hidden_size": "4096"}, "hidden_size"),
        ({"hidden_size": 4097}, "multiple"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"num_key_value_heads": 5}, "key/value"),
        ({"head_dim": 33}, "odd"),
        ({"rms_norm_eps": float("nan")}, "norm_eps"),
        ({"rope_theta": -1.0}, "rope_theta"),
        ({"rope_scaling": [8.0]}, "rope_scaling"),
        ({"rope_scaling": LLAMA_31_ROPE | {"factor": 0.0}}, "factor"),
        ({"rope_scaling": LLAMA_31_ROPE | {"high_freq_factor": 1.0}}, "high_freq_factor"),
    ],
)
def test_impossible_values_are_named(change: dict[str, object], named: str) -> None:
    with pytest.raises(FormatError, match=named):
        ModelConfig.from_hf(LLAMA_2_7B | change)


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "num_attention_heads"])
def test_missing_values_are_named(key: str) -> None:
    with pytest.raises(FormatError, match=key):
        ModelConfig.from_hf({k: v for k, v in LLAMA_2_7B.items() if k != key})


def test_dictionary_round_trip() -> None:
    config = ModelConfig.from_hf(LLAMA_2_7B | {"rope_scaling": LLAMA_31_ROPE})
    assert ModelConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize("raw", [None, [], "llama", {"model_type": "llama"}])
def test_a_file_without_a_config_is_refused(raw: object) -> None:
    with pytest.raises(FormatError, match="config"):
        ModelConfig.from_dict(raw)


def test_unknown_keys_in_a_file_are_refused() -> None:
    raw = ModelConfig.from_hf(LLAMA_2_7B).to_dict() | {"sliding_window": 4096}
    with pytest.raises(FormatError, match="sliding_window"):
        ModelConfig.from_dict(raw)
