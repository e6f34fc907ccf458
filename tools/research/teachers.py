"""Full-precision models of about 20M parameters, of three families, trained from nothing."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file
from torch import Tensor, nn

from edgedb.model.config import ModelConfig

from ..dad import LossOptions
from ..decoder import Decoder, dense, load_teacher
from ..options import TrainOptions
from ..text import TextMix
from ..trainer import Trainer

FAMILIES = ("llama", "opt", "bloom")


@dataclass(frozen=True)
class Shape:
    """Of a model: 20M parameters by default, of which 2.1M are the embedding."""

    vocab_size: int = 4096
    hidden_size: int = 512
    n_layers: int = 6
    n_heads: int = 8
    positions: int = 512

    def config(self, family: str) -> ModelConfig:
        """A gate takes a third matrix, and its feed-forward layer is narrower for it."""
        hidden = self.hidden_size
        inside = 4 * hidden if family != "llama" else (8 * hidden // 3 + 32) // 64 * 64
        return ModelConfig(
            model_type=family,
            vocab_size=self.vocab_size,
            hidden_size=hidden,
            intermediate_size=inside,
            n_layers=self.n_layers,
            n_heads=self.n_heads,
            n_kv_heads=self.n_heads,
            head_dim=hidden // self.n_heads,
            max_position_embeddings=self.positions,
            tie_word_embeddings=True,
        ).checked()


@torch.no_grad()
def untrained(config: ModelConfig, seed: int, device: torch.device) -> Decoder:
    """Weights of a mean square of 0.02^2, less in what is added to the residual stream (as GPT-2
    has it); norms are ones, biases zeros."""
    generator = torch.Generator().manual_seed(seed)
    model = Decoder(config, dense)

    def draw(weight: Tensor, scale: float) -> None:
        weight.copy_(torch.randn(weight.shape, generator=generator) * scale)

    for table in model.tables().values():
        assert isinstance(table, nn.Parameter)
        draw(table, 0.02)
    behind = ("attn_out", "mlp_down")
    for name, module in model.matrices():
        added = name.endswith(behind)
        assert isinstance(module.weight, Tensor)
        draw(module.weight, 0.02 / math.sqrt(2 * config.n_layers) if added else 0.02)
    for name, vector in model.vectors():
        vector.fill_(0.0 if name.endswith("bias") else 1.0)
    return model.to(device)


def pretrain(
    config: ModelConfig, text: TextMix, options: TrainOptions, work: Path, device: torch.device
) -> Decoder:
    """A model that learned from the text alone; frozen."""
    torch.manual_seed(options.seed)
    model = untrained(config, options.seed, device)
    learning = replace(options, loss=LossOptions(ce_share=1.0, chunk=options.loss.chunk))
    Trainer(model, model, learning, text, work).train(save=False)
    return model.requires_grad_(False).eval()


def save_teacher(path: Path, model: Decoder, record: dict[str, Any]) -> None:
    """Write a plain model: its weights by edgedb name, float16 where they are matrices."""
    weights = {name: vector.float() for name, vector in model.vectors()}
    weights |= {name: module.weight.half() for name, module in model.matrices()}
    weights |= {name: table.half() for name, table in model.tables().items()}
    weights = {name: weight.detach().cpu().contiguous() for name, weight in weights.items()}
    facts = {"config": model.config.to_dict(), "record": record}
    partial = path.with_suffix(".partial")
    save_file(weights, partial, {"facts": json.dumps(facts)})
    partial.replace(path)


class Trained:
    """A file of ``save_teacher`` as a source of weights."""

    def __init__(self, path: Path) -> None:
        from safetensors import safe_open

        with safe_open(path, "np") as file:
            facts = json.loads(file.metadata()["facts"])
        self.config = ModelConfig.from_dict(facts["config"])
        self.record: dict[str, Any] = facts["record"]
        self._weights = load_file(path)

    def tensor(self, name: str) -> np.ndarray:
        """float32."""
        return self._weights[name].astype(np.float32)

    def load(self, device: torch.device) -> Decoder:
        """The model, frozen."""
        return load_teacher(self, device)
