"""GGUF metadata: what becomes of a key, as llama.cpp reads it."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
from anything import VALUES
from hypothesis import given
from hypothesis import strategies as st

from edgedb.convert.sources.gguf_metadata import config_of, llama3_scaling
from edgedb.errors import EdgeDBError, FormatError, UnsupportedModelError
from edgedb.model.checkpoint_config import read_config
from edgedb.model.config import ModelConfig
from edgedb.model.families import FAMILIES
from edgedb.model.rotary import RopeScaling

LLAMA: dict[str, Any] = {
    "attention.head_count": 4,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "block_count": 2,
    "context_length": 256,
    "embedding_length": 96,
    "feed_forward_length": 160,
}


def read(
    changes: dict[str, Any] | None = None,
    *,
    divisors: np.ndarray | None = None,
    architecture: str = "llama",
    tables: dict[str, np.ndarray] | None = None,
    **general: Any,
) -> tuple[ModelConfig, list[str]]:
    """The tiny model with changed keys of its architecture and others."""
    metadata = {f"{architecture}.{key}": value for key, value in (LLAMA | (changes or {})).items()}
    metadata = {"general.architecture": architecture, **metadata, **general}
    tables = tables or ({} if divisors is None else {"rope_freqs.weight": divisors})
    settings, unknown = config_of("m.gguf", metadata, vocab_size=320, tied=True, tables=tables)
    fold, more = read_config(settings)
    config = fold.config
    return config, unknown + more


def llama3_divisors(theta: float, n: int, factor: float) -> np.ndarray:
    """transformers' rule, one frequency at a time."""
    divisors = np.ones(n, np.float32)
    for i in range(n):
        wavelength = 2 * np.pi * theta ** (i / n)
        if wavelength > 8192:
            divisors[i] = factor
        elif wavelength > 8192 / 4:
            smooth = (8192 / wavelength - 1) / 3
            divisors[i] = 1 / ((1 - smooth) / factor + smooth)
    return divisors


def test_olmo_3_calls_itself_olmo2() -> None:
    """It has a window in three of four layers, which is refused."""
    olmo = {f"olmo2.{key}": value for key, value in LLAMA.items()}
    olmo["general.architecture"] = "olmo2"
    rest: dict[str, Any] = {"vocab_size": 320, "tied": False, "tables": {}}
    assert config_of("m.gguf", olmo, **rest)[0]["model_type"] == "olmo2"
    olmo |= {"olmo2.attention.sliding_window": 128}
    olmo |= {"olmo2.attention.sliding_window_pattern": [True, False]}
    with pytest.raises(UnsupportedModelError, match=r"window.*olmo2.attention.sliding_window = 12"):
        config_of("m.gguf", olmo, **rest)


def test_sizes() -> None:
    config, unknown = read({"attention.head_count_kv": 2, "attention.key_length": 32})
    assert unknown == []
    assert (config.n_heads, config.n_kv_heads, config.head_dim) == (4, 2, 32)
    assert (config.vocab_size, config.tie_word_embeddings) == (320, True)
    assert read()[0].head_dim == 24 and read()[0].rope_theta == 10000.0


def test_equal_numbers_for_all_layers_are_a_number() -> None:
    lists = {
        "attention.head_count": [4, 4],
        "attention.head_count_kv": [2, 2],
        "feed_forward_length": [160, 160],
    }
    assert read(lists) == read({"attention.head_count_kv": 2})


@pytest.mark.parametrize(
    ("changes", "scaling"),
    [
        ({"rope.scaling.factor": 4.0}, RopeScaling("linear", 4.0)),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, RopeScaling("linear", 4.0)),
        ({"rope.scale_linear": 4.0}, RopeScaling("linear", 4.0)),
        ({"rope.scale_linear": 4.0, "rope.scaling.type": "linear"}, RopeScaling("linear", 4.0)),
        ({"rope.scale_linear": 4.0, "rope.scaling.factor": 2.0}, RopeScaling("linear", 2.0)),
        ({"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, RopeScaling()),
        ({"rope.scaling.factor": 0.0}, RopeScaling()),
        ({"rope.scaling.factor": 1.0, "rope.scaling.attn_factor": 1.0}, RopeScaling()),
    ],
)
def test_rotary_scaling(changes: dict, scaling: RopeScaling) -> None:
    config, unknown = read(changes)
    assert (config.rope_scaling, unknown) == (scaling, [])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"attention.causal": False}, "llama.attention.causal = False"),
        ({"attention.head_count": [4, 2]}, r"llama.attention.head_count = \[4, 2\]"),
        ({"attention.head_count_kv": [2, 0]}, r"llama.attention.head_count_kv = \[2, 0\]"),
        ({"attention.scale": 0.5}, "llama.attention.scale = 0.5"),
        ({"attention.sliding_window": 255}, "llama.attention.sliding_window = 255"),
        ({"attention.value_length": 12}, "llama.attention.value_length = 12"),
        ({"expert_count": 8, "expert_gating_func": 2}, "llama.expert_gating_func = 2"),
        ({"expert_count": 8, "expert_shared_count": 1}, "llama.expert_shared_count = 1"),
        ({"final_logit_softcapping": 30.0}, "llama.final_logit_softcapping"),
        ({"logit_scale": 0.5}, "llama.logit_scale = 0.5"),
        ({"rope.dimension_count": 12}, "llama.rope.dimension_count = 12"),
        ({"rope.dimension_sections": [8, 8, 8, 0]}, "llama.rope.dimension_sections"),
        ({"rope.scaling.attn_factor": 1.2}, "rope.scaling.attn_factor = 1.2"),
        ({"rope.scaling.type": "longrope", "rope.scaling.factor": 4.0}, "longrope"),
        ({"rope.scaling.type": ["linear"]}, "rope scaling"),
        ({"rope.scaling.yarn_ext_factor": 1.0}, "yarn_ext_factor"),
    ],
)
def test_what_would_change_the_numbers_is_refused_by_name(changes: dict, named: str) -> None:
    with pytest.raises(UnsupportedModelError, match=named):
        read(changes)


def test_a_llama_with_experts_is_mixtral() -> None:
    config, unknown = read({"expert_count": 4, "expert_used_count": 3})
    assert (config.model_type, config.n_experts, config.experts_per_token) == ("mixtral", 4, 3)
    assert (config.expert_size, config.normalized_shares, unknown) == (160, True, [])


def test_what_changes_nothing_is_accepted() -> None:
    changes = {
        "attention.causal": True,
        "attention.key_length": 24,
        "attention.scale": float(np.float32(24**-0.5)),
        "attention.sliding_window": 256,
        "attention.value_length": 24,
        "expert_count": 0,
        "logit_scale": 1.0,
        "rope.dimension_count": 24,
        "rope.dimension_sections": [0, 0, 0, 0],
        "vocab_size": 320,
    }
    assert read(changes) == read()
    assert read({"attention.sliding_window": 0, "attention.scale": 0.0}) == read()


def test_keys_on_no_list_are_returned() -> None:
    general = {
        "general.name": "x",
        "general.type": "model",
        "quantize.imatrix.file": "x",
        "split.count": 1,
        "tokenizer.ggml.model": "gpt2",
    }
    assert read(**general)[1] == []
    unknown = read({"warp_factor": 9}, **{"qwen2.block_count": 3, "x": 1})[1]
    assert unknown == ["qwen2.block_count", "x", "llama.warp_factor"]
    with pytest.raises(UnsupportedModelError, match=r"general\.type = 'adapter'"):
        read(**{"general.type": "adapter"})


@pytest.mark.parametrize("architecture", ["gemma4", "?", ["llama"], 3])
def test_another_architecture_is_refused_by_name(architecture: object) -> None:
    with pytest.raises(UnsupportedModelError, match=r"architecture .* is not supported"):
        read(**{"general.architecture": architecture})


@pytest.mark.parametrize("key", LLAMA)
def test_missing_keys_are_named(key: str) -> None:
    metadata = {f"llama.{name}": value for name, value in LLAMA.items() if name != key}
    metadata["general.architecture"] = "llama"
    with pytest.raises(FormatError, match=f"do not say llama.{key}"):
        config_of("m.gguf", metadata, vocab_size=320, tied=True, tables={})


@pytest.mark.parametrize(
    "changes",
    [
        {"attention.head_count": 0},
        {"attention.head_count": "x"},
        {"attention.key_length": 0},
        {"attention.key_length": "x"},
        {"attention.head_count_kv": 3},
        {"context_length": True},
        {"rope.freq_base": "x"},
        {"rope.scaling.factor": "x"},
        {"rope.scaling.factor": float("nan")},
    ],
)
def test_impossible_values_are_refused(changes: dict) -> None:
    with pytest.raises(FormatError):
        read(changes)


def test_llama3_scaling_is_read_back() -> None:
    theta = 500000.0
    divisors = llama3_divisors(theta, 12, 8.0)
    config, _ = read({"rope.freq_base": theta}, divisors=divisors)
    assert config.rope_scaling == RopeScaling("llama3", 8.0, 1.0, 4.0, 8192)
    assert llama3_scaling(llama3_divisors(theta, 64, 32.0), 128, theta)["factor"] == 32.0


@pytest.mark.parametrize(
    "divisors",
    [
        llama3_divisors(500000.0, 12, 8.0) ** 2,
        np.zeros(12, np.float32),
        np.full(12, np.nan, np.float32),
        np.full(12, np.inf, np.float32),
    ],
)
def test_other_divisors_are_refused(divisors: np.ndarray) -> None:
    with pytest.raises(UnsupportedModelError, match=r"rope_freqs\.weight"):
        read({"rope.freq_base": 500000.0}, divisors=divisors)


def test_divisors_that_cannot_be_are_refused() -> None:
    divisors = llama3_divisors(500000.0, 12, 8.0)
    with pytest.raises(FormatError, match="12 divisors for heads of 32"):
        read({"rope.freq_base": 500000.0, "attention.key_length": 32}, divisors=divisors)
    with pytest.raises(FormatError, match="12 divisors"):
        read({"rope.freq_base": 500000.0}, divisors=divisors.reshape(3, 4))
    with pytest.raises(FormatError, match="divisors"):
        read({"rope.freq_base": "x"}, divisors=divisors)
    with pytest.raises(UnsupportedModelError, match=r"beside rope\.scaling\.factor"):
        read({"rope.freq_base": 500000.0, "rope.scaling.factor": 2.0}, divisors=divisors)


def test_longrope_is_in_two_tensors() -> None:
    short, long = np.full(12, 1.5, np.float32), np.full(12, 4, np.float32)
    both = {"rope_factors_short.weight": short, "rope_factors_long.weight": long}
    keys = {"rope.scaling.original_context_length": 64, "rope.scaling.attn_factor": 1.25}
    scaling = read(keys, tables=both, architecture="phi3")[0].rope_scaling
    assert scaling == RopeScaling(
        "longrope",
        original_max_position_embeddings=64,
        attention_factor=1.25,
        short_factors=(1.5,) * 12,
        long_factors=(4.0,) * 12,
    )
    with pytest.raises(FormatError, match=r"rope_factors_long\.weight is missing"):
        read(keys, tables={"rope_factors_short.weight": short}, architecture="phi3")
    with pytest.raises(UnsupportedModelError, match="beside another rotary scaling"):
        read(keys | {"rope.scaling.factor": 2.0}, tables=both, architecture="phi3")
    assert read({"rope.dimension_count": 18}, architecture="phi3")[0].rotary_dim == 18
    for window, expected in ((0, None), (11, 11)):
        config, _ = read({"attention.sliding_window": window}, architecture="phi3")
        assert config.sliding_window == expected


KEYS = sorted(
    {*FAMILIES["llama"].metadata.fields, *FAMILIES["llama"].metadata.refused, "rope.scaling.type"}
)


@given(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=3), st.booleans())
def test_whatever_a_value_is_the_error_is_ours(changes: dict[str, Any], scaled: bool) -> None:
    divisors = llama3_divisors(10000.0, 12, 8.0) if scaled else None
    with contextlib.suppress(EdgeDBError):
        read(changes, divisors=divisors)
