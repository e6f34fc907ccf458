"""config.json: what is read, what is refused by name, and what is on no list."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from anything import VALUES
from hypothesis import example, given
from hypothesis import strategies as st

from edgedb.errors import EdgeDBError, FormatError, UnsupportedModelError
from edgedb.model.checkpoint_config import read_config
from edgedb.model.config import ModelConfig
from edgedb.model.families import FAMILIES, program_of
from edgedb.model.rope import inverse_frequencies, turns_of
from edgedb.model.rotary import Rope, RopeScaling
from edgedb.ops.exactmath import sincos

LLAMA_2_7B: dict[str, Any] = {
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
LINEAR = {"rope_type": "linear", "factor": 2.0}


def read(**changes: Any) -> ModelConfig:
    """Llama 2's configuration with changes, whose every name is known."""
    fold, unknown = read_config(LLAMA_2_7B | changes)
    config = fold.config
    assert unknown == []
    return config


def without(*keys: str, **changes: Any) -> ModelConfig:
    raw = {key: value for key, value in LLAMA_2_7B.items() if key not in keys}
    return read_config(raw | changes)[0].config


def test_llama_2() -> None:
    config = read()
    assert (config.head_dim, config.qkv_size, config.rope_theta) == (128, 3 * 4096, 10000.0)
    shapes = program_of(config).matrices()
    assert shapes["layers.31.mlp_gate_up"] == (22016, 4096)
    assert shapes["head"] == (32000, 4096)
    assert len(program_of(config).vectors()) == 65


def test_grouped_queries_and_tied_head() -> None:
    config = read(num_key_value_heads=8, tie_word_embeddings=True)
    assert config.qkv_size == 4096 + 2 * 1024
    assert "head" not in program_of(config).matrices()


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_llama_3_scaling(key: str) -> None:
    config = read(**{key: LLAMA_31_ROPE | {"rope_theta": 5e5}})
    assert config.rope_scaling == RopeScaling("llama3", 8.0, 1.0, 4.0, 8192)
    assert config.rope_theta == 5e5


def test_theta_beside_the_scaling_counts_where_there_is_none_inside() -> None:
    assert read(rope_theta=5e5).rope_theta == 5e5
    assert read(rope_theta=5e5, rope_scaling=LINEAR).rope_theta == 5e5
    inside = {"rope_type": "default", "rope_theta": 1e6}
    assert read(rope_theta=5e5, rope_parameters=inside).rope_theta == 1e6
    assert read(rope_theta=5e5, rope_scaling=LINEAR | {"rope_theta": 1e6}).rope_theta == 1e6
    assert read(rope_theta=5e5, rope_parameters={"rope_theta": None}).rope_theta == 5e5


def test_rope_scaling_stands_for_rope_parameters() -> None:
    config = read(rope_scaling=LINEAR, rope_parameters=LLAMA_31_ROPE | {"rope_theta": 5e5})
    assert (config.rope_scaling, config.rope_theta) == (RopeScaling("linear", 2.0), 10000.0)


def test_positions_that_llama3_scaling_starts_from() -> None:
    rope = {key: value for key, value in LLAMA_31_ROPE.items() if not key.startswith("original")}
    found = [
        read(rope_scaling=rope),
        read(rope_scaling=LLAMA_31_ROPE),
        read(rope_scaling=LLAMA_31_ROPE, original_max_position_embeddings=2048),
    ]
    originals = [config.rope_scaling.original_max_position_embeddings for config in found]
    assert originals == [4096, 8192, 2048]


@pytest.mark.parametrize("key", ["low_freq_factor", "high_freq_factor", "factor"])
def test_scaling_without_its_factors_is_refused(key: str) -> None:
    rope = {name: value for name, value in LLAMA_31_ROPE.items() if name != key}
    with pytest.raises(FormatError, match=rf"llama3 lacks {key}"):
        read(rope_scaling=rope)
    with pytest.raises(FormatError, match="linear lacks factor"):
        read(rope_scaling={"type": "linear"})


def test_mistral() -> None:
    mistral: dict[str, Any] = {"model_type": "mistral"}
    assert read(**mistral, sliding_window=None).model_type == "mistral"
    assert read(**mistral, sliding_window=4096).model_type == "mistral"
    assert read(**mistral).max_position_embeddings == 4096  # the window that is not said: 4,096
    assert read(**mistral, sliding_window=4096).window(0) is None  # as good as all
    assert read(**mistral).window(0) is None
    assert read(**mistral, max_position_embeddings=4097).window(31) == 4096
    assert without("max_position_embeddings", **mistral).window(0) == 4096
    assert read(**mistral, sliding_window=13).window(7) == 13
    assert without("num_key_value_heads", **mistral).n_kv_heads == 8
    assert read(**mistral, num_key_value_heads=None).n_kv_heads == 32


QWEN3_MOE: dict[str, Any] = {
    "model_type": "qwen3_moe",
    "num_experts": 16,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 24,
}


def test_yarn_between_whole_channels() -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    whole, exact = (read(rope_scaling=yarn | {"truncate": cut}) for cut in (True, False))
    assert read(rope_scaling=yarn) == whole != exact
    assert "truncate" not in whole.rope_scaling.to_dict()
    assert ModelConfig.from_dict(exact.to_dict()) == exact
    with pytest.raises(FormatError, match="truncate must be true or false"):
        read(rope_scaling=yarn | {"truncate": 1})


def test_gpt_oss() -> None:
    config = read(model_type="gpt_oss", num_hidden_layers=3)
    assert [config.window(i) for i in range(3)] == [128, None, 128]
    assert (config.n_experts, config.experts_per_token, config.gate_limit) == (128, 4, 7.0)
    assert (config.rope_scaling.factor, config.rope_scaling.truncate) == (32.0, False)
    quantized = {"quant_method": "mxfp4", "modules_to_not_convert": []}
    assert read(model_type="gpt_oss", quantization_config=quantized).n_layers == 32
    with pytest.raises(UnsupportedModelError, match="quantized in another way than MXFP4"):
        read(model_type="gpt_oss", quantization_config={"quant_method": "gptq"})


def test_experts() -> None:
    config = read(**QWEN3_MOE, norm_topk_prob=True, mlp_only_layers=[1], decoder_sparse_step=2)
    assert (config.n_experts, config.experts_per_token, config.expert_size) == (16, 3, 24)
    assert config.normalized_shares and [i for i in range(7) if config.has_experts(i)] == [3, 5]
    shapes, stacks = program_of(config).matrices(), program_of(config).stacks()
    assert shapes["layers.0.mlp_down"] == (4096, 11008)
    assert shapes["layers.3.experts_gate_up"] == (48, 4096)
    assert shapes["layers.3.router"] == (16, 4096)
    assert stacks["layers.3.experts_down"] == 16 and "layers.2.experts_down" not in stacks
    renamed = {"num_local_experts": 16, **QWEN3_MOE, "num_experts": 16}
    assert read(**renamed) == read(**QWEN3_MOE)


def test_defaults_of_experts() -> None:
    for name, count, chosen in (("mixtral", 8, 2), ("qwen3_moe", 128, 8), ("olmoe", 64, 8)):
        config = read_config(LLAMA_2_7B | {"model_type": name})[0].config
        assert (config.n_experts, config.experts_per_token) == (count, chosen)
        assert config.normalized_shares == (name == "mixtral")
        assert config.dense_layers == ()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_experts": 0.5}, "n_experts = 0.5"),
        ({"num_experts": 4097}, "n_experts = 4097, expected 1 to 4096"),
        ({"num_experts_per_tok": 17}, "experts_per_token = 17, expected 1 to 16"),
        ({"num_experts_per_tok": 0}, "experts_per_token = 0"),
        ({"moe_intermediate_size": 0}, "expert_size = 0"),
        ({"num_local_experts": 8}, "num_local_experts = 8, but num_experts = 16"),
        ({"decoder_sparse_step": 0}, "decoder_sparse_step = 0"),
        ({"mlp_only_layers": ["1"]}, "mlp_only_layers"),
        ({"norm_topk_prob": 1}, "normalized_shares"),
        ({"n_shared_experts": 1}, "every token goes to.*n_shared_experts = 1"),
        ({"n_group": 4}, "groups.*n_group = 4"),
        ({"scoring_func": "sigmoid"}, "softmax.*scoring_func"),
        ({"routed_scaling_factor": 2.5}, "scaled shares.*routed_scaling_factor"),
    ],
)
def test_experts_of_another_kind_are_refused_by_name(changes: dict, named: str) -> None:
    with pytest.raises(EdgeDBError, match=named):
        read(**QWEN3_MOE | changes)


@pytest.mark.parametrize("window", [0, 4096.5, True, "none"])
@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2"])
def test_a_window_that_is_none_is_refused(model_type: str, window: object) -> None:
    with pytest.raises(UnsupportedModelError, match=f"sliding_window = {window!r}"):
        read(model_type=model_type, sliding_window=window)


@pytest.mark.parametrize("window", [1, 4095])
def test_llama_has_no_window(window: int) -> None:
    with pytest.raises(UnsupportedModelError, match=f"sliding_window = {window}"):
        read(sliding_window=window)


def test_the_windows_of_qwen() -> None:
    qwen: dict[str, Any] = {"model_type": "qwen2", "sliding_window": 512, "max_window_layers": 30}
    assert read(**qwen).sliding_window is None
    used = read(**qwen, use_sliding_window=True)
    assert [used.window(i) for i in (0, 29, 30, 31)] == [None, None, 512, 512]
    kinds = ["sliding_attention", *["full_attention"] * 31]
    used = read(**qwen, use_sliding_window=True, layer_types=kinds)
    assert used.windowed_layers == (0,)


def test_layers_of_smollm3_that_do_not_turn() -> None:
    smol: dict[str, Any] = {"model_type": "smollm3"}
    assert read(**smol).unrotated_layers == (3, 7, 11, 15, 19, 23, 27, 31)
    assert read(**smol, no_rope_layer_interval=16).unrotated_layers == (15, 31)
    assert read(**smol, no_rope_layers=[1, 0] * 16).unrotated_layers == tuple(range(1, 32, 2))
    assert without("rope_theta", **smol).rope_theta == 2e6
    used = read(**smol, use_sliding_window=True, sliding_window=64)
    assert used.windowed_layers == used.unrotated_layers and used.window(3) == 64
    for wrong in ([1], [1] * 31 + [2], "1"):
        with pytest.raises(FormatError, match="no_rope_layers"):
            read(**smol, no_rope_layers=wrong)


GEMMA: dict[str, Any] = {"model_type": "gemma3_text", "sliding_window": 512}


def test_windows_and_thetas_of_gemma3() -> None:
    config = read(**GEMMA)
    assert [config.window(i) for i in range(4, 8)] == [512, None, 512, 512]
    local, plain = Rope(1e4), Rope(1e4, RopeScaling())
    assert without("rope_theta", **GEMMA).rope(5) == Rope(1e6)
    assert config.rope(0) == local == plain
    scaled = read(**GEMMA, rope_theta=1e6, rope_local_base_freq=2e4, rope_scaling=LINEAR)
    assert scaled.rope(0) == Rope(2e4) and scaled.rope(5) == Rope(1e6, RopeScaling("linear", 2.0))
    by_kind = {
        "full_attention": LINEAR | {"rope_theta": 3e6},
        "sliding_attention": {"rope_theta": 7},
    }
    nested = read(**GEMMA, rope_parameters=by_kind)
    assert nested.rope(0) == Rope(7) and nested.rope(5) == Rope(3e6, RopeScaling("linear", 2.0))
    wide = read(**GEMMA | {"sliding_window": 4096}, rope_theta=1e6)  # no window, and its own theta
    assert wide.window(0) is None and wide.rope(0) == Rope(1e4) and wide.rope(5) == Rope(1e6)
    assert read(**GEMMA, sliding_window_pattern=2).windowed_layers == tuple(range(0, 32, 2))
    with pytest.raises(FormatError, match="sliding_window_pattern"):
        read(**GEMMA, sliding_window_pattern=0)
    with pytest.raises(UnsupportedModelError, match="each kind of layer"):
        read(**GEMMA, rope_parameters=by_kind | {"chunked_attention": {"rope_theta": 1e4}})


def test_factors_of_gemma2_go_into_its_weights() -> None:
    gemma = LLAMA_2_7B | {"model_type": "gemma2", "query_pre_attn_scalar": 512, "head_dim": 128}
    fold, _ = read_config(gemma)
    assert fold.config.norm_eps == LLAMA_2_7B["rms_norm_eps"] / 4096
    assert fold.factors["attn_post_norm"] == fold.factors["mlp_down"] == 1 / 64
    rows = np.asarray(fold.factors["attn_qkv"])
    assert (rows[:4096] == 0.5).all() and (rows[4096:] == 1).all()
    assert (fold.config.score_cap, fold.config.logit_cap) == (50, 30)
    assert read(**gemma | {"final_logit_softcapping": None}).logit_cap is None
    for value in (0, "1", None, True):
        with pytest.raises(FormatError, match="query_pre_attn_scalar"):
            read_config(gemma | {"query_pre_attn_scalar": value or 0})
    with pytest.raises(FormatError, match="score_cap"):
        read(**gemma | {"attn_logit_softcapping": -1.0})


def test_longrope_of_phi3() -> None:
    rope: dict[str, Any] = {"type": "su", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48}
    phi: dict[str, Any] = {"model_type": "phi3", "original_max_position_embeddings": 1024}
    config = read(**phi, partial_rotary_factor=0.75, rope_scaling=rope)
    assert config.rotary_dim == 96 and config.plain_context == 1024
    assert config.rope_scaling.attention_factor == pytest.approx((1 + 0.2) ** 0.5)  # 4x: 2 of 10
    short, long = (table.of_context(n) for table in [turns_of(config, 0)[1]] for n in (1024, 1025))
    assert short[:48] == tuple(2 * f for f in long[:48]) and short[48:] == long[48:] == (0,) * 16
    with pytest.raises(FormatError, match="lacks long_factors"):
        read(**phi, rope_scaling={"type": "longrope", "short_factor": [1.0] * 64})
    with pytest.raises(FormatError, match="47 factors for 64"):
        read(**phi, rope_scaling=rope | {"short_factor": [1.0] * 47})


def test_a_share_of_a_head_turns_by_halves() -> None:
    """Rows are put so that channel i turns with ``i + head_dim / 2``, in q and in k."""
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    phi = LLAMA_2_7B | sizes | {"model_type": "phi3", "partial_rotary_factor": 0.5}
    fold, _ = read_config(phi)
    order = fold.orders["attn_qkv"]
    head = [0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7, 12, 13, 14, 15]
    assert order[:16].tolist() == head and order[16:32].tolist() == [16 + i for i in head]
    assert order[64:80].tolist() == [64 + i for i in head]
    assert order[96:].tolist() == list(range(96, 128))
    table, _ = turns_of(fold.config, 0)
    assert table is not None and [f > 0 for f in table.frequencies] == [True] * 4 + [False] * 4


def test_olmo_2() -> None:
    olmo: dict[str, Any] = {"model_type": "olmo2", "rope_theta": 5e5}
    assert without("rms_norm_eps", **olmo).norm_eps == 1e-5
    lengths = program_of(read(**olmo, num_key_value_heads=8)).vectors()
    of_a_layer = {n[9:]: size for n, size in lengths.items() if n.startswith("layers.0.")}
    assert of_a_layer == {
        "q_norm": 4096, "k_norm": 1024, "attn_post_norm": 4096, "mlp_post_norm": 4096
    }  # fmt: skip
    with pytest.raises(UnsupportedModelError, match="clip_qkv"):
        read(**olmo, clip_qkv=8.0)


def test_olmo_3_scales_full_layers_alone() -> None:
    config = read(model_type="olmo3", rope_theta=5e5, sliding_window=64, rope_scaling=LINEAR)
    assert [config.window(i) for i in range(4)] == [64, 64, 64, None]
    assert config.rope(0) == Rope(5e5) and config.rope(3) == Rope(5e5, RopeScaling("linear", 2.0))
    assert read(model_type="olmo3", sliding_window=None, rope_scaling=LINEAR).rope(0) == Rope(5e5)


def test_multipliers_of_granite_go_into_its_weights() -> None:
    multipliers = {"embedding_multiplier": 12.0, "residual_multiplier": 0.22}
    multipliers |= {"attention_multiplier": 0.015625, "logits_scaling": 8.0}
    fold, unknown = read_config(LLAMA_2_7B | {"model_type": "granite"} | multipliers)
    assert unknown == []
    assert fold.config.norm_eps == LLAMA_2_7B["rms_norm_eps"] / 144
    assert fold.factors["attn_out"] == fold.factors["mlp_down"] == 0.22 / 12
    assert fold.factors["final_norm"] == 1 / 8
    rows = np.asarray(fold.factors["attn_qkv"])
    assert (rows[:4096] == 0.015625 * 128**0.5).all() and (rows[4096:] == 1).all()
    for value in (0.0, -1.0, float("nan"), "2"):
        with pytest.raises(FormatError, match="embedding_multiplier"):
            read(model_type="granite", **multipliers | {"embedding_multiplier": value})


def test_yarn_as_transformers_reads_it() -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0}
    scaling = read(rope_scaling=yarn).rope_scaling
    assert scaling.original_max_position_embeddings == 4096
    assert scaling.attention_factor == pytest.approx(0.1 * math.log(4) + 1)
    assert read(rope_scaling=yarn | {"attention_factor": 1.5}).rope_scaling.attention_factor == 1.5
    both = read(rope_scaling=yarn | {"mscale": 1.0, "mscale_all_dim": 1.0}).rope_scaling
    assert both.attention_factor == 1
    with pytest.raises(FormatError, match="beta_fast"):
        read(rope_scaling=yarn | {"beta_fast": 1, "beta_slow": 32})


def test_null_means_that_a_key_is_not_there() -> None:
    keys = ("num_key_value_heads", "head_dim", "rms_norm_eps", "tie_word_embeddings")
    absent = without(*keys, "max_position_embeddings")
    nulls = dict.fromkeys(
        (*keys, "max_position_embeddings", "partial_rotary_factor", "hidden_act", "attention_bias")
    )
    assert read(**nulls) == absent
    assert absent.max_position_embeddings == 2048 and absent.norm_eps == 1e-6
    linear = {"rope_type": None, "type": "linear", "factor": 2.0, "partial_rotary_factor": None}
    assert read(rope_scaling=linear).rope_scaling == RopeScaling("linear", 2.0)
    assert read(some_key_of_the_future=None) == read()


def test_what_changes_nothing_is_accepted() -> None:
    changes = {
        "attention_bias": True,  # of biases, the tensors decide
        "mlp_bias": True,
        "sliding_window": 4096,
        "layer_types": ["full_attention"] * 32,
        "partial_rotary_factor": 1,
        "is_causal": True,
        "num_local_experts": 0,
        "quantization_config": {},
        "hidden_act": "swish",
        "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 1.0},
    }
    assert read(**changes) == read()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "mamba"}, "mamba"),
        ({"model_type": ["llama"]}, "llama"),
        ({"architectures": [["x"]], "is_causal": False}, "is_causal"),
        ({"is_causal": False}, "not causal.*is_causal = False"),
        ({"is_causal": None}, "is_causal = None"),  # transformers reads it as false
        ({"hidden_act": "gelu"}, "activation.*gelu"),
        ({"num_local_experts": 8}, "mixture of experts.*num_local_experts"),
        ({"partial_rotary_factor": 0.5}, "partial rotary.*partial_rotary_factor"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "rope_parameters.partial_rotary"),
        ({"rope_scaling": LINEAR | {"partial_rotary_factor": 0.5}}, "rope_scaling.partial_rotary"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}, "full_attention"),
        ({"layer_types": ["linear_attention"] * 32}, "layer_types"),
        ({"per_layer_config": {"3": {"intermediate_size": 64}}}, "per_layer_config"),
        ({"quantization_config": {"bits": 4}}, "already quantized: export the checkpoint it was"),
        ({"quantization": {"bits": 4}}, "already quantized"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}, "dynamic"),
        ({"rope_scaling": {"rope_type": ["yarn"]}}, "yarn"),
        ({"rope_interleaved": True}, "rope_interleaved"),
        ({"logits_scaling": 8.0}, "logits_scaling"),
    ],
)
def test_unsupported_features_are_named(change: dict[str, object], named: str) -> None:
    with pytest.raises(UnsupportedModelError, match=named):
        read_config(LLAMA_2_7B | change)


def test_names_on_no_list_are_returned() -> None:
    _, unknown = read_config(
        LLAMA_2_7B
        | {
            "warp_factor": 9,
            "architectures": ["LlamaForCausalLM", "BentLlama"],
            "rope_parameters": {"rope_type": "linear", "factor": 2.0, "attention_factor": 1.5},
        }
    )
    assert unknown == [
        "warp_factor",
        "architectures: BentLlama",
        "rope_parameters.attention_factor",
    ]
    # A factor counts only beside a type.
    fold, unknown = read_config(LLAMA_2_7B | {"rope_scaling": {"factor": 2.0}})
    config = fold.config
    assert (config.rope_scaling, unknown) == (RopeScaling(), ["rope_scaling.factor"])


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
        ({"num_key_value_heads": 0}, "n_kv_heads"),
        ({"head_dim": 33}, "odd"),
        ({"head_dim": 0}, "head_dim"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings"),
        ({"rms_norm_eps": float("nan")}, "norm_eps"),
        ({"rope_theta": -1.0}, "rope_theta"),
        ({"rope_scaling": [8.0]}, "rope_scaling"),
        ({"rope_scaling": LLAMA_31_ROPE | {"factor": 0.0}}, "factor"),
        ({"rope_scaling": LLAMA_31_ROPE | {"high_freq_factor": 1.0}}, "high_freq_factor"),
    ],
)
def test_impossible_values_are_named(change: dict[str, object], named: str) -> None:
    with pytest.raises(FormatError, match=named):
        read_config(LLAMA_2_7B | change)


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "num_attention_heads"])
@pytest.mark.parametrize("there", [False, True])
def test_missing_values_are_named(key: str, there: bool) -> None:
    with pytest.raises(FormatError, match=f"{key} is missing"):
        without(key, **({key: None} if there else {}))


KEYS = sorted(
    {
        key
        for family in FAMILIES.values()
        for key in (*family.config.fields, *family.config.honoured)
    }
)
YARN = ["beta_fast", "beta_slow", "mscale", "mscale_all_dim", "attention_factor"]
ROPE = st.dictionaries(
    st.sampled_from(["rope_type", "type", "rope_theta", *LLAMA_31_ROPE, *YARN]),
    st.sampled_from(["linear", "llama3", "yarn"]) | VALUES,
)
WINDOWED = {"use_sliding_window": True, "sliding_window": 7}


@given(
    st.sampled_from(sorted(FAMILIES)),
    st.dictionaries(st.sampled_from(KEYS), ROPE | VALUES, max_size=3),
)
@example("mistral", {"max_position_embeddings": "4096", "sliding_window": 7})
@example("qwen2", WINDOWED | {"max_window_layers": "3"})
@example("qwen2", WINDOWED | {"num_hidden_layers": []})
@example("llama", {"rope_scaling": {"type": "yarn", "factor": 2, "mscale": 10**400}})
@example("llama", {"rope_scaling": {"type": "yarn", "factor": 1e4, "mscale_all_dim": -1.0857}})
def test_whatever_a_value_is_the_error_is_ours(family: str, changes: dict[str, Any]) -> None:
    try:
        config = read_config(LLAMA_2_7B | {"model_type": family} | changes)[0].config
    except EdgeDBError:
        return
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    last = inverse_frequencies(config).astype(np.float64) * config.max_position_embeddings
    assert np.isfinite(sincos(last)).all()
