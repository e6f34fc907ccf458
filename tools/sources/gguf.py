"""A GGUF model (architecture ``llama``): weights of any type dequantized, rows of q and k put back.

llama.cpp's converter interleaves the rows of q and k within each head, because its rotary
embedding turns neighbours (2i, 2i+1) where Hugging Face's turns (i, i + head_dim/2).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from edgedb.config import ModelConfig
from edgedb.errors import FormatError, UnsupportedModelError

from .gguf_file import StoredTensor, open_parts
from .gguf_tokenizer import tokenizer_spec
from .source import Float32, Source


class GGUFSource(Source):
    """See ``Source``. The files are mapped; a tensor is dequantized when it is asked for."""

    layout: ClassVar = {
        "embedding": ("token_embd.weight",),
        "attn_norm": ("blk.{i}.attn_norm.weight",),
        "attn_qkv": ("blk.{i}.attn_q.weight", "blk.{i}.attn_k.weight", "blk.{i}.attn_v.weight"),
        "attn_out": ("blk.{i}.attn_output.weight",),
        "mlp_norm": ("blk.{i}.ffn_norm.weight",),
        "mlp_gate_up": ("blk.{i}.ffn_gate.weight", "blk.{i}.ffn_up.weight"),
        "mlp_down": ("blk.{i}.ffn_down.weight",),
        "final_norm": ("output_norm.weight",),
        "head": ("output.weight",),
    }

    def __init__(self, path: Path) -> None:
        parts = open_parts(path)
        self._files = [part.path for part in parts]
        self.path = self._files[0]
        metadata = parts[0].metadata
        self._tensors: dict[str, StoredTensor] = {}
        for part in parts:
            self._tensors |= part.tensors
        self._shapes = {name: tensor.shape for name, tensor in self._tensors.items()}
        self.config_dict = self._config_dict(metadata)
        self.config = ModelConfig.from_hf(self.config_dict)
        self.check()
        self.take_tokenizer(tokenizer_spec(self.path.name, metadata))

    def files(self) -> list[Path]:
        return self._files

    def stored_shapes(self) -> Mapping[str, tuple[int, ...]]:
        return self._shapes

    def read_stored(self, stored: str, start: int, stop: int) -> Float32:
        if not stored.endswith(("attn_q.weight", "attn_k.weight")):
            return self._dequantize(stored, start, stop)
        weight = self._dequantize(stored, 0, self._shapes[stored][0])
        return _unpermute(weight, self.config.head_dim)[start:stop]

    def ignorable(self, stored: str) -> bool:
        # rope_freqs has been read into config_dict by then.
        return super().ignorable(stored) or stored == "rope_freqs.weight"

    def _dequantize(self, stored: str, start: int, stop: int) -> Float32:
        try:
            return self._tensors[stored].read(start, stop)
        except UnsupportedModelError as error:
            raise UnsupportedModelError(f"{self.path.name}: tensor {stored} {error}") from None

    def _config_dict(self, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """Hyper-parameters under the names of a Hugging Face config.json."""
        architecture = metadata.get("general.architecture", "?")
        if architecture != "llama":
            return {"model_type": architecture}  # ModelConfig refuses it by name

        def value(key: str, default: Any = None) -> Any:
            return metadata.get(f"llama.{key}", default)

        n_heads = value("attention.head_count")
        hidden_size = value("embedding_length")
        config: dict[str, Any] = {
            "model_type": "llama",
            "vocab_size": self._shapes.get("token_embd.weight", (None,))[0],
            "hidden_size": hidden_size,
            "intermediate_size": value("feed_forward_length"),
            "num_hidden_layers": value("block_count"),
            "num_attention_heads": n_heads,
            "num_key_value_heads": value("attention.head_count_kv", n_heads),
            "max_position_embeddings": value("context_length"),
            "rms_norm_eps": value("attention.layer_norm_rms_epsilon"),
            "rope_theta": value("rope.freq_base", 10000.0),
            "tie_word_embeddings": "output.weight" not in self._shapes,
            "sliding_window": value("attention.sliding_window"),
            "num_local_experts": value("expert_count"),
        }
        missing = sorted(
            key
            for key, item in config.items()
            if item is None and key not in ("sliding_window", "num_local_experts")
        )
        if missing:
            raise FormatError(f"{self.path.name}: the GGUF metadata do not say {missing[0]}")
        try:
            head_dim = value("attention.key_length", hidden_size // max(n_heads, 1))
            rotary = value("rope.dimension_count", head_dim) / head_dim
        except (TypeError, ZeroDivisionError):  # a list of sizes, a text, or a 0
            raise FormatError(
                f"{self.path.name}: the GGUF metadata hold no plausible sizes of heads"
            ) from None
        config["head_dim"], config["partial_rotary_factor"] = head_dim, rotary
        config["rope_scaling"] = self._rope_scaling(value, head_dim, config["rope_theta"])
        return config

    def _rope_scaling(self, value: Any, head_dim: int, theta: float) -> dict[str, Any] | None:
        if "rope_freqs.weight" in self._shapes:
            divisors = self._dequantize("rope_freqs.weight", 0, head_dim // 2)
            return _llama3_scaling(divisors, theta)
        kind = value("rope.scaling.type", "none")
        if kind in ("none", ""):
            return None
        return {"rope_type": kind, "factor": value("rope.scaling.factor", 1.0)}


def _unpermute(weight: Float32, head_dim: int) -> Float32:
    """Rows from (0, half, 1, half + 1, ...) within each head back to 0, 1, 2, ..."""
    rows, cols = weight.shape
    heads = weight.reshape(rows // head_dim, head_dim // 2, 2, cols)
    return np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(rows, cols)


def _llama3_scaling(divisors: Float32, theta: float) -> dict[str, Any]:
    """Llama 3.1's scaling from the divisors of the frequencies, which is all that GGUF keeps.

    The largest divisor is ``factor``; the other three parameters are those of every published
    Llama 3. Raises ``UnsupportedModelError`` when they do not reproduce the divisors.
    """
    factor, low, high, original = float(divisors.max()), 1.0, 4.0, 8192
    n = divisors.size
    wavelength = 2 * math.pi * theta ** (np.arange(n, dtype=np.float64) / n)
    blend = np.clip((original / wavelength - low) / (high - low), 0.0, 1.0)
    expected = 1.0 / ((1 - blend) / factor + blend)
    if not np.allclose(divisors, expected, rtol=1e-4):
        raise UnsupportedModelError("rope_freqs.weight holds a rotary scaling other than llama3's")
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }
