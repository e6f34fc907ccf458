"""A training run that takes a second: text, settings, a trainer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from tiny import TinySource

from tools.dad import LossOptions
from tools.decoder import load_teacher
from tools.generate import SamplingPlan, generate
from tools.options import TrainOptions
from tools.scripts import Scripts
from tools.student import make_student
from tools.text import TextMix
from tools.trainer import Trainer

OPTIONS = TrainOptions(
    steps=12, batch=8, micro_batch=4, length=32, lr_latent=5e-3, lr_scale=2e-3, lr_embedding=1e-4,
    warmup=2, real_share=0.5, validate_every=6, save_every=5, log_every=1,
    loss=LossOptions(gamma=0.1, plain_share=0.5, chunk=64),
)  # fmt: skip
PLAN = SamplingPlan(sequences=16, length=24)
SCRIPTS = Scripts(chat_starts=((1, 5, 6), (1, 7)), next_turn=(8, 9), answer_turn=(10,), end_id=2)


def write_text(folder: Path) -> None:
    """Two shards of sampled text, and one real stream."""
    generate(load_teacher(TinySource()), SCRIPTS, PLAN, folder, shards=2)
    rng = np.random.default_rng(0)
    np.save(folder / "real-noise.npy", rng.integers(0, 96, 500).astype(np.uint16))


def trainer(text: Path, out: Path, options: TrainOptions = OPTIONS) -> Trainer:
    teacher = load_teacher(TinySource())
    mix = TextMix(text, options.length, real_share=options.real_share, seed=options.seed)
    held_out = torch.from_numpy(mix.batch(10**6, 4))
    student = make_student(teacher, "least-squares")
    return Trainer(student, teacher, options, mix, out, validation={"mix": held_out})


def log_of(out: Path) -> list[dict]:
    drop = ("seconds", "tokens_per_second")
    lines = (out / "log.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in drop} for line in lines]
