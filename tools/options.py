"""Settings of a training run, and its learning rate at every step."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from .dad import LossOptions

MODES = ("scales+latents", "scales")
DECAYS = ("cosine", "linear")


@dataclass(frozen=True)
class TrainOptions:
    """Settings of one run; learning rates are the peaks of the ``schedule``."""

    steps: int
    first_step: int = 0  # above 0: a later part of the same schedule, from a saved student
    batch: int = 64
    micro_batch: int = 64  # sequences that go through the models at once
    length: int = 1024
    long_from: float = 1.0  # from this share of the schedule on, sequences are twice as long
    seconds: float = 0.0  # above 0: the schedule ends after this time, whatever ``steps`` says
    lr_latent: float = 1e-3
    lr_scale: float = 2e-4  # scales, norms and biases
    lr_embedding: float = 0.0  # 0 freezes embedding and head
    warmup: int = 50
    final_share: float = 0.05  # of the peak, at the last step
    decay: str = "cosine"  # how the rate falls: "cosine" or "linear"
    decay_from: float = 0.0  # from this share of the schedule on; constant before
    clip: float = 1.0
    weight_decay: float = 0.0  # of matrices and tables, not of scales, norms and biases
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
        if self.decay not in DECAYS:
            raise ValueError(f"decay {self.decay!r}: choose one of {', '.join(DECAYS)}")
        if not 0 <= self.decay_from < 1:
            raise ValueError(f"decay_from {self.decay_from}: expected 0 to less than 1")
        if self.batch % self.micro_batch:
            raise ValueError(f"batch {self.batch} is no multiple of micro_batch {self.micro_batch}")


def schedule(step: int, progress: float, options: TrainOptions) -> float:
    """Share of the peak learning rate: linear warm-up, constant, then down to ``final_share``.

    progress is 0 at the start and 1 at the end. A later part of a schedule warms up again, because
    the optimizer starts without its averages.
    """
    start = options.decay_from
    done = min(max((progress - start) / (1 - start), 0.0), 1.0)
    left = 1 - done if options.decay == "linear" else (1 + math.cos(math.pi * done)) / 2
    share = options.final_share + (1 - options.final_share) * left
    return share * min((step - options.first_step + 1) / max(options.warmup, 1), 1.0)
