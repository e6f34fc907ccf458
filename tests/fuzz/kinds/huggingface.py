"""Hugging Face folders: every file of one changed, or left out."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

from safetensors.numpy import save

from ...tiny_tokenizers import sentencepiece_bpe, tekken
from .. import mutators
from . import exporting, models
from .kind import Files, Kind
from .tokenizer_json import TokenizerJsonKind

_WEIGHTS = "model.safetensors"
_CONFIGS: tuple[dict[str, Any], ...] = (
    {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                      "high_freq_factor": 4.0, "original_max_position_embeddings": 32}},
    {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0}},
    {"rope_scaling": {"type": "linear", "factor": 2}},
    {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32,
                      "attention_factor": None, "beta_fast": 32, "beta_slow": 1}},
    {"model_type": "mistral", "sliding_window": None},
    {"layer_types": ["sliding_attention"], "sliding_window": 7},
    {"tie_word_embeddings": True},
    {"attention_bias": False, "mlp_bias": False, "hidden_act": "silu", "torch_dtype": "float32"},
    {"text_config": {}},
    {"architectures": ["LlamaForCausalLM"], "quantization_config": None, "pretraining_tp": 1},
)  # fmt: skip


class HuggingFaceKind(Kind):
    name = "Hugging Face"
    share = 3

    def prepare(self, folder: Path) -> None:
        self.models = []
        for family in exporting.FAMILIES:
            config, tensors = exporting.checkpoint(family, 401)
            self.models.append((config, save(tensors)))
        self.tokenizers = TokenizerJsonKind()
        self.tokenizers.prepare(folder)
        self.fast = models.specs()[0].data
        self.pieces = sentencepiece_bpe()
        self.tekken = tekken()

    def make(self, rng: Random) -> Files:
        config, weights = rng.choice(self.models)
        config = {**config, **(rng.choice(_CONFIGS) if rng.random() < 0.5 else {})}
        settings: Any = {
            "bos_token": "<|im_start|>",
            "eos_token": {"content": "<|im_end|>"},
            "chat_template": models.TEMPLATE,
            "add_bos_token": rng.random() < 0.5,
        }
        files: Files = {
            _WEIGHTS: weights,
            "tokenizer.json": self.fast,
            "method": exporting.method_of(rng),
        }
        if rng.random() < 0.3:
            files["tokenizer.model"] = self.pieces
        generation: Any = {"eos_token_id": [2, 0], "do_sample": True}
        way = rng.randrange(9)
        if way < 2:
            config = mutators.document(rng, config)
        elif way == 2:
            settings = mutators.document(rng, settings)
        elif way == 3:
            generation = mutators.document(rng, generation)
        elif way == 4:
            files["tokenizer.json"] = self.tokenizers.make(rng)["tokenizer.json"]
        elif way == 5:
            files[_WEIGHTS] = _other_weights(rng, weights)
        elif way == 6 and "tokenizer.model" in files:
            files["tokenizer.model"] = mutators.data(rng, self.pieces)
        elif way == 7:
            if rng.random() < 0.7:
                del files["tokenizer.json"]
            files["tekken.json"] = _tekken(rng, self.tekken)
        else:
            _rearrange(rng, files)
        for name, content in (
            ("config.json", config),
            ("tokenizer_config.json", settings),
            ("generation_config.json", generation),
        ):
            files[name] = mutators.encoded(mutators.dumps(rng, content))
        if rng.random() < 0.03:
            del files[rng.choice([name for name in files if name != "method"])]
        return files

    def use(self, files: Files, folder: Path) -> None:
        source = folder / "model"
        source.mkdir()
        for name, content in files.items():
            (source / name).write_bytes(content)
        exporting.export_and_use(source, folder / "out.dbb", files["method"].decode())


def _tekken(rng: Random, document: dict[str, Any]) -> bytes:
    """A tekken.json in which one part is changed, or all of them."""
    key = rng.choice([*document, ""])
    if key:
        document = {**document, key: mutators.document(rng, document[key])}
    else:
        document = mutators.document(rng, document)
    written = mutators.encoded(mutators.dumps(rng, document))
    return mutators.data(rng, written) if rng.random() < 0.1 else written


def _other_weights(rng: Random, weights: bytes) -> bytes:
    """Another header, with its length right, or other numbers."""
    length = int.from_bytes(weights[:8], "little")
    header, data = json.loads(weights[8 : 8 + length]), weights[8 + length :]
    if rng.random() < 0.2:
        return mutators.data(rng, weights[:2000]) + weights[2000:]
    if rng.random() < 0.3:
        at = rng.randrange(len(data) - 8)
        return weights[: 8 + length] + data[:at] + mutators.data(rng, data[at:])
    written = mutators.encoded(mutators.dumps(rng, mutators.document(rng, header)))
    return len(written).to_bytes(8, "little") + written + data


def _rearrange(rng: Random, files: Files) -> None:
    """Shards, an index, and companions that a folder may have."""
    way = rng.randrange(5)
    length = int.from_bytes(files[_WEIGHTS][:8], "little")
    names = [name for name in json.loads(files[_WEIGHTS][8 : 8 + length]) if name[0] != "_"]
    index: Any = {"metadata": {}, "weight_map": dict.fromkeys(names, _WEIGHTS)}
    if way == 0:
        files["model-00001-of-00001.safetensors"] = files.pop(_WEIGHTS)
    elif way == 1:
        files["model-00001-of-00002.safetensors"] = files.pop(_WEIGHTS)
    elif way == 2:
        if rng.random() < 0.8:
            index = mutators.document(rng, index)
        written = mutators.dumps(rng, index)
        files["model.safetensors.index.json"] = mutators.encoded(written)
    elif way == 3:
        files["chat_template.jinja"] = mutators.encoded(mutators.text(rng, models.TEMPLATE))
    else:
        special = mutators.document(rng, {"bos_token": "<s>", "eos_token": {"content": "</s>"}})
        files["special_tokens_map.json"] = mutators.encoded(mutators.dumps(rng, special))
