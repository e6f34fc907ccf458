"""A model's pass in words."""

from __future__ import annotations

import dataclasses

import pytest
from tiny import FAMILY_CHANGES, family_source

from edgedb.errors import EdgeDBError
from edgedb.model.config import _FEATURES
from edgedb.model.description import describe, phrases, where
from edgedb.model.families import FAMILIES
from edgedb.model.rotary import RopeScaling

# How large an expert is and how its share is counted, which nobody would ask for first.
UNSAID = {"expert_size", "gate_alpha", "gate_limit", "normalized_shares"}


@pytest.mark.parametrize("name", FAMILY_CHANGES)
def test_every_feature_is_told(name: str) -> None:
    """A model without it is described otherwise."""
    config = family_source(name).config
    told = describe(config)
    assert told.startswith(f"{FAMILIES[name].models}: ")
    for feature in FAMILY_CHANGES[name].keys() & _FEATURES.keys() - UNSAID:
        try:
            other = dataclasses.replace(config, **{feature: _FEATURES[feature]}).checked()
            assert describe(other) != told, feature
        except EdgeDBError:
            continue  # no model is without it


def test_a_llama_has_nothing_to_tell() -> None:
    config = dataclasses.replace(
        family_source("llama").config, **_FEATURES, rope_scaling=RopeScaling()
    )
    assert phrases(config) == []
    assert describe(config) == "Llama 1, 2, 3, TinyLlama, SmolLM2: as a plain Llama"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "bloom",
            "scores that fall with the distance (ALiBi), norms that take the mean away, a norm",
        ),
        ("cohere2", "attention and feed-forward side by side"),
        ("gemma2", "scores softly capped at"),
        ("gemma2", "logits softly capped at"),
        ("gemma3_text", "in layers with a window, else"),
        ("gpt_oss", "a sink in the softmax of each head, clamped gates, 5 experts in"),
        ("phi", "attention and feed-forward side by side, biases in all products, a bias of the"),
        ("gpt2", "learned positions, norms that take the mean away, GELU without a gate"),
        ("llama", "angles scaled for long contexts (yarn), biases in all products"),
        ("ministral3", "queries that grow with their position, a window of 9 tokens in every"),
        ("mixtral", "5 experts in every layer, 2 of them for a token"),
        ("olmo2", "norms of whole queries and keys, norms behind attention and feed-forward, none"),
        ("opt", "norms of the stream, behind each addition, and none before the head"),
        ("opt", "ReLU without a gate, biases in all products"),
        ("phi3", "12 of 16 channels of a head turned, angles scaled for long contexts (longrope)"),
        ("qwen2", "a window of 5 tokens in 1 of 2 layers, biases of queries, keys and values"),
        ("qwen3", "norms of the heads of queries and keys"),
        ("qwen3_moe", "5 experts in 1 of 2 layers"),
        ("smollm3", "no rotary embedding in 1 of 2 layers, biases in attention"),
    ],
)
def test_what_is_said(name: str, said: str) -> None:
    assert said in describe(family_source(name).config)


def test_what_is_said_of_falcon_rw() -> None:
    config = dataclasses.replace(family_source("falcon").config, parallel=False, alibi=True)
    assert "scores that fall with the distance (ALiBi), norms that take" in describe(config)


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        (range(26), "every layer"),
        (range(0, 26, 2), "every other layer"),
        (range(1, 26, 2), "every other layer"),
        (range(3, 26, 4), "every fourth layer"),
        ([i for i in range(26) if i % 6 != 5], "all but every sixth layer"),
        (range(0, 26, 8), "every 8th layer"),
        ([0, 1, 2], "3 of 26 layers"),
        ([], "0 of 26 layers"),
    ],
)
def test_which_layers(layers: list[int], said: str) -> None:
    assert where(list(layers), 26) == f"in {said}"
