"""Settings of a training run, and its learning rate at every step."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from .dad import LossOptions

MODES = ("scales+latents", "scales")


@dataclass(frozen=True)
class TrainOptions:
    """Settings of one run; learning rates are the peaks of a warm-up and cosine schedule."""

    steps: int
    first_step: int = 0  # above 0: a later part of the same schedule, from a saved student
    batch: int = 64
    micro_batch: int = 64  # sequences that go through the models at once
    length: int = 1024
    long_from: float = 1.0  # from this share of the schedule on, sequences are twice as long
    seconds: float = 0.0  # above 0: the schedule ends after this time, whatever ``steps`` says
    lr_latent: float = 1e-3
    lr_scale: float = 2e-4  # scales and norms
    lr_embedding: float = 0.0  # 0 freezes embedding and head
    warmup: int = 50
    final_share: float = 0.05  # of the peak, at the last step
    clip: float = 1.0
    mode: str = "scales+latents"
    latents_until: float = 1.0  # from this share of the schedule on, latent weights stay
    round_scales: bool = True
    stuck_tails: bool = False
    quantize_inputs: bool = False
    real_share: float = 0.25
    seed: int = 0
    validate_every: int = 200
    save_every: int = 500
    log_every: int = 10
    compile: bool = False
    bfloat16_gradients: bool = False  # sent between processes so; half the bytes of float32
    loss: LossOptions = field(default_factory=LossOptions)

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode {self.mode!r}: choose one of {', '.join(MODES)}")
        if self.batch % self.micro_batch:
            raise ValueError(f"batch {self.batch} is no multiple of micro_batch {self.micro_batch}")


def schedule(step: int, progress: float, options: TrainOptions) -> float:
    """Share of the peak learning rate: linear warm-up, times a cosine down to ``final_share``.

    progress is 0 at the start and 1 at the end. A later part of a schedule warms up again, because
    the optimizer starts without its averages.
    """
    cosine = (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0))) / 2
    share = options.final_share + (1 - options.final_share) * cosine
    return share * min((step - options.first_step + 1) / max(options.warmup, 1), 1.0)
