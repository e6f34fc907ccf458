"""ModelConfig as a file carries it: round trips, bounds, shapes that ask for too much memory."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from edgedb import ops
from edgedb.errors import FormatError, UnsupportedModelError
from edgedb.format.tensors import DenseTensor
from edgedb.model.config import DEFAULT_CONTEXT, ModelConfig
from edgedb.model.families import program_of
from edgedb.model.network import Network
from edgedb.model.rope import inverse_frequencies, rope_tables
from edgedb.model.rotary import Rope, RopeScaling
from edgedb.ops.exactmath import sincos

CONFIG = ModelConfig(
    model_type="llama",
    vocab_size=32000,
    hidden_size=4096,
    intermediate_size=11008,
    n_layers=32,
    n_heads=32,
    n_kv_heads=32,
    head_dim=128,
    max_position_embeddings=4096,
)
LLAMA3 = RopeScaling("llama3", 8.0, 1.0, 4.0, 8192)
YARN = RopeScaling("yarn", 4.0, original_max_position_embeddings=8192, attention_factor=1.1)
SMALL = {"hidden_size": 64, "intermediate_size": 64, "n_layers": 2, "vocab_size": 64}
# 8 MB in float16, whatever else they say.
WIDE = {"hidden_size": 1, "n_layers": 1, "n_heads": 1024, "n_kv_heads": 1024, "head_dim": 1024}
DEEP = {"hidden_size": 64, "n_layers": 1024, "n_heads": 8, "n_kv_heads": 8}
GATED = {"hidden_size": 1, "intermediate_size": 1 << 19, "n_layers": 1, "head_dim": 2}


def changed(**changes: object) -> ModelConfig:
    return ModelConfig.from_dict(CONFIG.to_dict() | changes)


def test_dictionary_round_trip() -> None:
    config = dataclasses.replace(CONFIG, rope_scaling=LLAMA3)
    assert ModelConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize("raw", [None, [], "llama", {"model_type": "llama"}])
def test_a_file_without_a_config_is_refused(raw: object) -> None:
    with pytest.raises(FormatError, match="config"):
        ModelConfig.from_dict(raw)


def test_unknown_keys_in_a_file_are_refused() -> None:
    with pytest.raises(FormatError, match="unknown key 'sliding_window'"):
        changed(sliding_window=4096)  # a feature, which is not where version 1 looks
    with pytest.raises(FormatError, match="unknown feature 'states'"):
        changed(version=2, features={"states": 4})
    with pytest.raises(UnsupportedModelError, match="version 3"):
        changed(version=3)
    with pytest.raises(FormatError, match=r"rope_scaling\.beta_fast"):
        changed(rope_scaling={"type": "linear", "factor": 2.0, "beta_fast": 32})


def test_features_make_version_2() -> None:
    assert "version" not in CONFIG.to_dict()
    features = {"attention_bias": True, "sliding_window": 13, "windowed_layers": [1, 3]}
    config = changed(version=2, features=features)
    assert [config.window(i) for i in range(4)] == [None, 13, None, 13]
    document = json.loads(json.dumps(config.to_dict()))
    assert document["version"] == 2 and document["features"] == features
    assert ModelConfig.from_dict(document) == config


def test_features_of_the_rotary_embedding() -> None:
    linear = {"theta": 1e6, "scaling": RopeScaling("linear", 8.0).to_dict()}
    features = {
        "sliding_window": 13,
        "windowed_layers": [0, 2],
        "rotary_dim": 96,
        "unrotated_layers": [1, 2],
        "windowed_rope": linear,
        "query_growth": {"beta": 0.5, "every": 16},
    }
    config = changed(version=2, features=features)
    document = json.loads(json.dumps(config.to_dict()))
    assert document["features"] == features
    assert ModelConfig.from_dict(document) == config
    plain, windowed = Rope(config.rope_theta), Rope(1e6, RopeScaling("linear", 8.0))
    assert [config.rope(i) for i in range(4)] == [windowed, None, None, plain]
    assert len(inverse_frequencies(config)) == 48
    longrope = {
        "type": "longrope",
        "factor": 1.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
        "attention_factor": 1.25,
        "short_factors": [1.0] * 48,
        "long_factors": [2.0] * 48,
    }
    config = changed(version=2, features={"rotary_dim": 96}, rope_scaling=longrope)
    assert config.to_dict()["rope_scaling"] == longrope | {
        "short_factors": (1.0,) * 48,
        "long_factors": (2.0,) * 48,
    }
    assert config.plain_context == 64 and changed().plain_context == 4096
    with pytest.raises(FormatError, match="48 factors for 64 pairs"):
        changed(rope_scaling=longrope)
    with pytest.raises(FormatError, match="long_factors, expected numbers"):
        changed(rope_scaling=longrope | {"long_factors": [0.0] * 64})


@pytest.mark.parametrize(
    "features",
    [
        [],
        {"attention_bias": 1},
        {"mlp_bias": None},
        {"sliding_window": 0},
        {"sliding_window": True},
        {"sliding_window": 1.5},
        {"windowed_layers": 3},
        {"windowed_layers": [32]},
        {"windowed_layers": [-1]},
        {"windowed_layers": ["0"]},
        {"unrotated_layers": None},
        {"unrotated_layers": [32]},
        {"rotary_dim": 3},
        {"rotary_dim": 130},
        {"rotary_dim": 0},
        {"rotary_dim": "2"},
        {"windowed_rope": {"theta": 1e4}},
        {"windowed_rope": {"theta": 0.5, "scaling": {}}},
        {"windowed_rope": 3},
        {"query_growth": {"beta": 0.1}},
        {"query_growth": {"beta": -1.0, "every": 16}},
        {"query_growth": {"beta": 1.0, "every": 0}},
        {"query_growth": [1.0, 16]},
    ],
)
def test_impossible_features_are_refused(features: object) -> None:
    with pytest.raises(FormatError):
        changed(version=2, features=features)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rope_theta", 1e-9),
        ("rope_theta", 0.99),
        ("rope_theta", 1e300),
        ("rope_theta", 10**400),
        ("rope_theta", True),
        ("norm_eps", 1e-300),
        ("norm_eps", 2.0),
        ("rope_scaling", {"type": "linear", "factor": 1e-9}),
        ("rope_scaling", {"type": "linear", "factor": 1e39}),
        ("rope_scaling", {"type": "llama3", "low_freq_factor": 1e-300}),
        ("rope_scaling", {"type": "llama3", "low_freq_factor": 4.0}),
        ("rope_scaling", {"type": "llama3", "original_max_position_embeddings": 1 << 60}),
    ],
)
def test_values_that_no_model_has_are_refused(name: str, value: object) -> None:
    with pytest.raises(FormatError, match=name):
        changed(**{name: value})


@pytest.mark.parametrize("kind", ["dynamic", ["linear"], 3])
def test_another_rotary_scaling_is_refused(kind: object) -> None:
    with pytest.raises(UnsupportedModelError, match="rope scaling"):
        changed(rope_scaling={"type": kind})


@pytest.mark.parametrize("theta", [1, 1e15])
@pytest.mark.parametrize(
    "scaling",
    [
        RopeScaling(),
        RopeScaling("linear", 0.25),
        RopeScaling("linear", 1e6),
        RopeScaling("llama3", 0.25, 1e-3, 1.01e-3, 1),
        RopeScaling("llama3", 1e6, 1e-3, 1e6, 1 << 24),
    ],
)
@pytest.mark.parametrize("head_dim", [2, 1024])
def test_rotary_tables_are_finite_wherever_a_config_is_accepted(
    theta: float, scaling: RopeScaling, head_dim: int
) -> None:
    shape = {"head_dim": head_dim, "max_position_embeddings": 1 << 24}
    config = changed(**shape, rope_theta=theta, rope_scaling=scaling.to_dict())
    last = inverse_frequencies(config).astype(np.float64) * ((1 << 24) - 1)
    for values in (*rope_tables(config, 2), *sincos(last)):  # the first positions, and the last
        assert np.isfinite(values).all() and np.abs(values).max() <= 1


@pytest.mark.parametrize("shape", [WIDE, DEEP, GATED], ids=["wide", "deep", "gated"])
def test_a_shape_that_asks_for_far_more_memory_than_its_weights_is_refused(shape: dict) -> None:
    with pytest.raises(FormatError, match=r"would need \d+\.\d GB beside them"):
        program_of(changed(**SMALL | shape | {"max_position_embeddings": 1 << 24}))


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"n_layers": 80, "hidden_size": 8192, "n_heads": 64, "n_kv_heads": 64},  # Llama 65B
        {"hidden_size": 576, "n_layers": 30, "n_heads": 9, "n_kv_heads": 3, "head_dim": 64},
        SMALL | {"n_layers": 8, "n_heads": 8, "n_kv_heads": 8, "head_dim": 8},
        {"hidden_size": 640, "vocab_size": 262144, "n_layers": 18, "n_heads": 4, "n_kv_heads": 1},
    ],
)
def test_shapes_of_models_are_accepted(shape: dict) -> None:
    program_of(changed(**shape, max_position_embeddings=131072))


def test_session_bytes_are_about_those_that_are_allocated() -> None:
    config = changed(**SMALL, n_heads=4, n_kv_heads=2, head_dim=16)
    backend = ops.create()
    if backend.name != "native":
        pytest.skip("other backends make their arrays as they go")
    rng = np.random.default_rng(0)
    program = program_of(config)
    linears = {n: DenseTensor(rng.random(s, np.float32)) for n, s in program.matrices().items()}
    vectors = {n: rng.random(size, np.float32) for n, size in program.vectors().items()}
    context = min(config.max_position_embeddings, DEFAULT_CONTEXT)
    network = Network(config, linears, vectors, backend, context)
    state, cache = network.state(), network.cache(context)
    network.forward([1, 2, 3], cache, state, "all")
    tables = 2 * 4 * context * config.head_dim // 2
    allocated = state.size_bytes + cache.size_bytes + tables
    assert 0.9 * allocated <= program.session_bytes(context) <= 1.6 * allocated
