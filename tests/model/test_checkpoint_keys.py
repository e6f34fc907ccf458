"""The lists of every family: no key on two of them, and every real checkpoint's keys on one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgedb.model.checkpoint_config import read_config
from edgedb.model.checkpoint_keys import ROPE_KEYS
from edgedb.model.families import FAMILIES
from edgedb.model.keys import Keys

LISTS = [
    *(pytest.param(family.config, id=name) for name, family in FAMILIES.items()),
    *(pytest.param(family.metadata, id=f"gguf-{name}") for name, family in FAMILIES.items()),
    *(pytest.param(keys, id=f"rope-{name}") for name, keys in ROPE_KEYS.items()),
]


@pytest.mark.parametrize("keys", LISTS)
def test_a_key_is_on_one_list(keys: Keys) -> None:
    lists = [set(keys.fields), keys.honoured, set(keys.refused), keys.harmless]
    assert sum(map(len, lists)) == len(set().union(*lists))


@pytest.mark.parametrize("name", FAMILIES)
def test_defaults_are_of_keys_that_are_read(name: str) -> None:
    family = FAMILIES[name]
    for key in (*family.defaults, *family.nulls):
        assert family.config.lists(key) and key not in family.config.harmless


# As transformers 4 wrote them to the hub, with what other programs have added since.
SMOLLM2 = {
    "_name_or_path": "smollm2",
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 576,
    "initializer_range": 0.04,
    "intermediate_size": 1536,
    "is_llama_config": True,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "pad_token_id": 2,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_interleaved": False,
    "rope_scaling": None,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
    "transformers_version": "4.42.3",
    "unsloth_fixed": True,
    "use_cache": True,
    "vocab_size": 49152,
}
MISTRAL_03 = {
    "architectures": ["MistralForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.42.0.dev0",
    "use_cache": True,
    "vocab_size": 32768,
}


@pytest.mark.parametrize("raw", [SMOLLM2, MISTRAL_03], ids=["smollm2", "mistral"])
def test_keys_of_published_checkpoints_are_known(raw: dict) -> None:
    assert read_config(raw)[1] == []


def test_both_spellings_of_transformers_say_the_same(shared: Path) -> None:
    folder = shared / "families" / "llama"
    new, old = (
        json.loads((folder / file).read_text()) for file in ("config.json", "config_v4.json")
    )
    assert read_config(new) == read_config(old)
    assert read_config(new)[1] == []
