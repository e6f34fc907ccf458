"""Small language models: jobs of ``tools.research.jobs`` done on a device."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgedb.convert.plan import read_plan

from ..block_run import BlockRun, RunOptions
from ..block_training import BlockOptions, fill_planes
from ..dad import LossOptions
from ..decoder import Decoder, mean_square_inputs
from ..layerwise import load_whole, save_whole
from ..options import TrainOptions
from ..quality import read_windows
from ..scales import ScaleOptions
from ..stacks import MAX_PLANES, latents_within
from ..student import empty_student, make_student
from ..text import TextMix
from ..trainer import Trainer
from .entropy import Measured, frequencies
from .grids import LEVELS, in_grid, make_matrix
from .jobs import BLOCKS, FEEDBACK, NEAREST, PAPER, PLANS, Job, Size, trials
from .teachers import Trained, pretrain, save_teacher

# Steps from which torch.compile pays: it takes as long as some dozens of them.
COMPILED_FROM = 150


class Laboratory:
    """Does jobs on a device. ``corpus`` is a folder of ``corpus.write_corpus``; weights that other
    jobs need go to ``work``."""

    def __init__(self, corpus: Path, work: Path, size: Size, device: torch.device) -> None:
        self.corpus, self.work, self.size, self.device = corpus, work, size, device
        work.mkdir(parents=True, exist_ok=True)
        self.teacher = lru_cache(maxsize=3)(self._teacher)

    def do(self, job: Job) -> dict[str, Any]:
        """The record of a job."""
        begun = time.monotonic()
        torch.compiler.reset()  # graphs of other jobs would count as recompilations of one function
        torch.manual_seed(job.seed)
        found = getattr(self, f"_do_{job.kind}")(job)
        record = {"key": job.key, "kind": job.kind, **asdict(job), **found}
        tokens = self.size.batch * self.size.length * job.steps
        if tokens:
            record["tokens"] = tokens
        return record | {"seconds": round(time.monotonic() - begun, 1), "device": self._on()}

    def _on(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"

    def _options(self, steps: int, seed: int, **others: Any) -> TrainOptions:
        size = self.size
        return TrainOptions(
            steps=steps, batch=size.batch, micro_batch=size.batch, length=size.length, seed=seed,
            lr_scale=3e-4, lr_embedding=3e-4, warmup=max(1, min(40, steps // 10)),
            final_share=0.02, real_share=1.0, validate_every=10**9, save_every=10**9,
            log_every=max(1, steps // 20),
            compile=self.device.type == "cuda" and steps >= COMPILED_FROM, **others,
        )  # fmt: skip

    def _text(self, seed: int) -> TextMix:
        mix = TextMix(self.corpus, self.size.length, real_share=1.0, seed=seed)
        mix.check(self.size.shape.vocab_size)
        return mix

    def _teacher(self, family: str) -> tuple[Decoder, Measured]:
        """A trained teacher, and what students of it are held against."""
        teacher = Trained(self.work / Job(family).file).load(self.device)
        return teacher, self._measured(teacher)

    def _measured(self, teacher: Decoder) -> Measured:
        vocab = self.size.shape.vocab_size
        paths = sorted((self.corpus / "held-out").glob("*.npy"))
        texts = {
            name: ids[:, : self.size.length] for name, ids in read_windows(paths, vocab).items()
        }
        return Measured(teacher, texts, frequencies(self.corpus, vocab))

    def _calibration(self) -> Tensor:
        """Ids ``[sequences, length]`` that starts see, of no training's seed."""
        ids = self._text(2**20).batch(0, self.size.calibration)
        return torch.from_numpy(ids).to(self.device)

    def _do_teacher(self, job: Job) -> dict[str, Any]:
        config = self.size.shape.config(job.family)
        options = self._options(self.size.teacher_steps, job.seed, weight_decay=0.1)
        batch = self.size.teacher_batch
        options = replace(
            options,
            batch=batch,
            micro_batch=batch,
            lr_latent=1e-3,
            lr_scale=1e-3,
            lr_embedding=1e-3,
        )
        text = self._text(2**21)
        with tempfile.TemporaryDirectory(dir=self.work) as scratch:
            teacher = pretrain(config, text, options, Path(scratch), self.device)
        save_teacher(self.work / job.file, teacher, {"distinct_tokens": text.n_real})
        quality = self._measured(teacher).of(teacher)
        tokens = self.size.teacher_steps * batch * self.size.length
        return {"quality": quality, "tokens": tokens, "distinct_tokens": text.n_real}

    def _do_start(self, job: Job) -> dict[str, Any]:
        teacher, measured = self.teacher(job.family)
        student = self._fitted(job, teacher)
        save_whole(self.work / job.file, student.state_dict())
        return {"quality": measured.of(student, entropies=True)}

    def _do_training(self, job: Job) -> dict[str, Any]:
        return self._trained(job, self._rate())

    def _do_trial(self, job: Job) -> dict[str, Any]:
        found = self._trained(job, job.rate)
        kl = sum(of["kl"] for of in found["quality"].values())
        (self.work / job.file).write_text(json.dumps({"rate": job.rate, "kl": kl}))
        return found

    def _rate(self) -> float:
        """The one whose student is nearest to the teacher."""
        tried = [json.loads((self.work / job.file).read_text()) for job in trials(self.size)]
        best: float = min(tried, key=lambda trial: trial["kl"])["rate"]
        return best

    def _trained(self, job: Job, rate: float) -> dict[str, Any]:
        teacher, measured = self.teacher(job.family)
        student = self._empty(job, teacher)
        student.load_state_dict(load_whole(self.work / job.begin.file))
        loss = LossOptions(gamma=job.gamma, chunk=8192)
        options = self._options(job.steps, job.seed, lr_latent=rate, loss=loss)
        with tempfile.TemporaryDirectory(dir=self.work) as scratch:
            text = self._text(job.seed)
            Trainer(student, teacher, options, text, Path(scratch)).train(save=False)
        return {"rate": rate, "quality": measured.of(student, entropies=True)}

    def _plan(self, job: Job, teacher: Decoder) -> Mapping[str, int]:
        text = PLANS[job.student].format(first=0, last=teacher.config.n_layers - 1)
        return read_plan(text, teacher.config, MAX_PLANES)

    def _empty(self, job: Job, teacher: Decoder) -> Decoder:
        """The student of a job, to be filled."""
        if job.student not in LEVELS:
            return empty_student(teacher.config, self.device, self._plan(job, teacher))
        grid = job.student
        return Decoder(teacher.config, lambda _, *shape: make_matrix(grid, *shape)).to(self.device)

    def _fitted(self, job: Job, teacher: Decoder) -> Decoder:
        """The student of a job before training. Raises ``ValueError`` for an unknown start."""
        if job.start in (FEEDBACK, BLOCKS):
            return self._by_layers(job, teacher)
        seen = mean_square_inputs(teacher, self._calibration())
        if job.student in LEVELS:
            return in_grid(make_student(teacher, "weighted", seen), teacher, job.student, seen)
        if job.start == NEAREST:
            return rounded_to_nearest(teacher)
        return make_student(teacher, job.start, seen, self._plan(job, teacher))

    def _by_layers(self, job: Job, teacher: Decoder) -> Decoder:
        """The exporter's error feedback, for the inputs that a layer has behind fitted ones; and
        for "blocks" every layer then learns what the teacher's does."""
        epochs = self.size.block_epochs if job.start == BLOCKS else 0
        tokens = self.size.block_tokens
        ids = self._text(2**20).batch(1, max(1, tokens // self.size.length))
        options = RunOptions(
            gradient_tokens=0 if job.start == FEEDBACK else min(16384, tokens),
            # The default, five times as much, undoes what feedback chose: all layers got worse.
            blocks=BlockOptions(epochs=epochs, batch=min(32, len(ids)), lr_latent=1e-3),
            scales=ScaleOptions(steps=0),
        )
        source = Trained(self.work / Job(job.family).file)
        with tempfile.TemporaryDirectory(dir=self.work) as scratch:
            run = BlockRun(
                source, Path(scratch) / "student", ids, dict(self._plan(job, teacher)), options,
                device=self.device,
            )  # fmt: skip
            return run.run().to(self.device)


@torch.no_grad()
def rounded_to_nearest(teacher: Decoder) -> Decoder:
    """One pair in the finest uniform grid, of either sign, that clips no weight of a group."""
    from edgedb.convert.fdb import fit

    student = make_student(teacher, PAPER)
    plain = dict(teacher.matrices())
    for name, module in student.matrices():
        weight = plain[name].weight.detach().float()
        assert isinstance(weight, Tensor)
        found = fit(weight.cpu().numpy(), 2, method="rtn").tensor
        fill_planes(module, *latents_within(weight, found))
    return student
