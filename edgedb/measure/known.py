"""Models that people have heard of, by their names on the hub, and machines to run them on.

Of a model its shape, and what quality is known of it; nothing of it is in this package.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class KnownModel:
    """``shape``: its key in ``SHAPES``. ``kl``: the mean KL from the full model, nats a token, that
    was measured at so many bits of the layers."""

    shape: str
    kl: Mapping[float, float] = field(default_factory=dict)

    def kl_at(self, bits: float) -> float | None:
        """What was measured at about as many bits."""
        near = [known for known in self.kl if abs(known - bits) < 0.15]
        return self.kl[min(near, key=lambda known: abs(known - bits))] if near else None


KNOWN = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": KnownModel(
        "smollm2-135m", {2.3: 0.84, 2.9: 0.45, 3.4: 0.245, 4.5: 0.07}
    ),
    "HuggingFaceTB/SmolLM2-360M-Instruct": KnownModel("smollm2-360m"),
    "Qwen/Qwen3-0.6B": KnownModel("qwen3-0.6b"),
    "google/gemma-3-1b-it": KnownModel("gemma-3-1b"),
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": KnownModel("llama-1.1b"),
    "meta-llama/Llama-3.2-1B-Instruct": KnownModel("llama-3.2-1b"),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": KnownModel("smollm2-1.7b"),
    "Qwen/Qwen3-1.7B": KnownModel("qwen3-1.7b"),
    "meta-llama/Llama-3.2-3B-Instruct": KnownModel("llama-3.2-3b"),
    "google/gemma-3-4b-it": KnownModel("gemma-3-4b"),
    "Qwen/Qwen3-4B": KnownModel("qwen3-4b"),
    "meta-llama/Llama-2-7b-chat-hf": KnownModel("llama-2-7b"),
    "mistralai/Mistral-7B-Instruct-v0.3": KnownModel("mistral-7b"),
    "meta-llama/Llama-3.1-8B-Instruct": KnownModel("llama-3.1-8b"),
    "Qwen/Qwen3-8B": KnownModel("qwen3-8b"),
    "Qwen/Qwen3-14B": KnownModel("qwen3-14b"),
    "openai/gpt-oss-20b": KnownModel("gpt-oss-20b"),
    "Qwen/Qwen3-30B-A3B": KnownModel("qwen3-30b-a3b"),
}


@dataclass(frozen=True)
class Machine:
    """``bandwidth``: bytes a second that its memory can give, None if nobody has asked."""

    name: str
    memory_bytes: int
    bandwidth: float | None = None

    # What the system, a desktop and other programs keep.
    OTHERS_BYTES = 10**9

    def holds(self, size_bytes: int) -> bool:
        """Whether a process of this size runs without the disk."""
        return size_bytes <= self.memory_bytes - self.OTHERS_BYTES


# Bandwidths are transfers a second times the width of the bus: 4,267 M x 32 bits, 2,400 M x 128
# bits (two channels), 6,400 M x 128 bits.
MACHINES = (
    Machine("Raspberry Pi 5, 8 GB", 8 * 10**9, 17.1e9),
    Machine("laptop of 8 GB, DDR4-2400", 8 * 10**9, 38.4e9),
    Machine("laptop of 16 GB, LPDDR5-6400", 16 * 10**9, 102.4e9),
)
