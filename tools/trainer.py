"""The training loop: one run from a student, a teacher and text to a trained student."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from edgedb.errors import EdgeDBError

from . import parallel
from .checkpoint import save_student
from .curves import read_log, rewrite_log
from .dad import IGNORE, TokenLosses, distillation_loss, token_terms
from .decoder import Decoder, Dense
from .head import Head
from .options import TrainOptions, schedule
from .quality import evaluate
from .stacks import FDBStack, Stack, project_stack
from .student import FDBLinear, empty_student, plan_of, project
from .text import TextMix

if TYPE_CHECKING:
    from edgedb.text.spec import TokenizerSpec


def parameter_groups(student: Decoder, options: TrainOptions) -> list[dict[str, Any]]:
    """Optimizer groups with their peak rate and the share of the schedule until which they learn.

    What has no rate is frozen. A matrix of more planes has finer levels: every two after the first
    pair halve the rates inside the layers. A plain matrix learns at the rate of latents.
    """
    latent = options.lr_latent if options.mode == "scales+latents" else 0.0
    decay = options.weight_decay
    found: dict[tuple[float, float, float], list[nn.Parameter]] = {}

    def add(
        peak: float, parameters: Iterable[nn.Parameter], until: float = 1.0, decay: float = 0.0
    ) -> None:
        found.setdefault((peak, until, decay), []).extend(parameters)

    for _, module in student.matrices():
        if isinstance(module, FDBStack):
            finer = 0.5 ** (module.planes / 2 - 1)
            add(latent * finer, [module.latent], options.latents_until, decay)
            add(options.lr_scale * finer, [module.alphas])
        elif isinstance(module, Dense):
            add(latent, [module.weight], options.latents_until, decay)
        else:
            assert isinstance(module, FDBLinear)
            add(latent, [module.latent], options.latents_until, decay)
            add(options.lr_scale, [module.alpha1, module.alpha2])
    add(options.lr_scale, (vector for _, vector in student.vectors()))
    for table in student.tables().values():
        if isinstance(table, Stack):
            add(options.lr_embedding, [table.latent], decay=decay)
            add(options.lr_embedding / 2, [table.alphas])
        else:
            assert isinstance(table, nn.Parameter)
            add(options.lr_embedding, [table], decay=decay)
    groups = []
    for (peak, until, decay), parameters in found.items():
        for parameter in parameters:
            parameter.requires_grad_(peak > 0)
        if peak > 0:
            # Numbers alone: FSDP's state has no room for more in a group.
            group = {"params": parameters, "lr": peak, "peak": peak, "until": until}
            groups.append({**group, "weight_decay": decay})
    return groups


def autocast(device: torch.device) -> AbstractContextManager[Any]:
    """bfloat16 matrices on a GPU; plain float32 on a CPU, where it is the faster and exact one."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


class Trainer:
    """One run. ``text`` gives batches, ``validation`` maps a name to windows ``[n, tokens]``.

    A model that is its own teacher learns from the text alone, with ``ce_share`` 1.
    """

    def __init__(
        self,
        student: Decoder,
        teacher: Decoder,
        options: TrainOptions,
        text: TextMix,
        out: Path,
        *,
        validation: Mapping[str, Tensor] | None = None,
        provenance: Mapping[str, Any] | None = None,
        tokenizer: TokenizerSpec | None = None,
    ) -> None:
        self.student, self.teacher, self.options, self.text = student, teacher, options, text
        self.out, self.validation = out, dict(validation or {})
        self.provenance, self.tokenizer = dict(provenance or {}), tokenizer
        self.device = student.device
        self.step, self.seconds = options.first_step, 0.0
        out.mkdir(parents=True, exist_ok=True)
        self.rank, self.world = parallel.rank_and_world()
        if options.batch % (options.micro_batch * self.world):
            raise EdgeDBError(
                f"a batch of {options.batch} does not split into micro-batches of "
                f"{options.micro_batch} in {self.world} processes"
            )
        self._linears = [m for _, m in student.matrices() if isinstance(m, FDBLinear)]
        self._stacks = [m for m in student.modules() if isinstance(m, Stack)]
        for module in self._linears:
            module.round_scales = options.round_scales
            module.stuck = options.stuck_tails
        for _, matrix in student.matrices():
            matrix.quantize_input = options.quantize_inputs
        groups = parameter_groups(student, options)
        self.optimizer = torch.optim.AdamW(
            groups, betas=(0.9, 0.95), fused=self.device.type == "cuda"
        )
        self._trained = [p for group in groups for p in group["params"]]
        self._terms: Callable[..., Any] = token_terms
        if options.compile:
            student.compile()
            if teacher is not student:
                teacher.compile()
            self._terms = torch.compile(token_terms, dynamic=False)
        self._stop, self._clock = False, 0.0
        self._quality: dict[str, dict[str, float]] = {}  # of the last validation
        self._model = parallel.wrap(student, bfloat16_gradients=options.bfloat16_gradients)

    def resume(self) -> bool:
        """Take up ``state.pt`` of an earlier run with the same settings; False if there is none.

        Raises ``EdgeDBError`` if settings or weights' names differ or the file is damaged.
        """
        path = self.out / "state.pt"
        if not path.exists():
            return False
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # zip, pickle and key errors of a damaged file
            raise EdgeDBError(f"{path}: no readable training state: {error}") from None
        if state["options"] != asdict(self.options):
            raise EdgeDBError(f"{path}: was trained with other settings; choose another --out")
        if state["student"].keys() != self.student.state_dict().keys():
            raise EdgeDBError(
                f"{path}: is of another model or another edgedb; choose another --out, and go on "
                "from student.safetensors with --student"
            )
        parallel.restore(self.student, self.optimizer, state)
        self.step, self.seconds = state["step"], state["seconds"]
        self._clock = self.seconds
        log = self.out / "log.jsonl"
        if (
            log.exists() and not self.rank
        ):  # lines past the saved step are about to be written again
            rewrite_log(log, [record for record in read_log(log) if record["step"] <= self.step])
        return True

    def save(self) -> None:
        """Write ``state.pt`` and ``student.safetensors``, each atomically."""
        state = parallel.training_state(self.student, self.optimizer)
        if self.rank:
            return
        state |= {"step": self.step, "seconds": self.seconds, "options": asdict(self.options)}
        partial = self.out / "state.pt.partial"
        try:
            torch.save(state, partial)
            os.replace(partial, self.out / "state.pt")
            self._save_student(state["student"])
        except (OSError, RuntimeError, SafetensorError) as error:
            partial.unlink(missing_ok=True)
            raise EdgeDBError(
                f"{self.out}: the state could not be saved ({error}); is the disk full? "
                "What was saved before is whole: the same command goes on from there"
            ) from None

    def _save_student(self, weights: Mapping[str, Tensor]) -> None:
        student = self.student
        if self._sharded:
            student = empty_student(student.config, plan=plan_of(student))
            student.load_state_dict(weights)
        save_student(
            self.out / "student.safetensors",
            student,
            step=self.step,
            provenance={
                **self.provenance,
                "options": asdict(self.options),
                "trained_tokens": self.step * self.options.batch * self.options.length,
                "seconds": round(self.seconds),
                "quality": self._quality,
            },
            tokenizer=self.tokenizer,
        )

    @property
    def _sharded(self) -> bool:
        return self.world > 1 and self._model is self.student

    @property
    def progress(self) -> float:
        """Share of the schedule that is done. By time it moves on when a line is logged."""
        if self.options.seconds:
            return self._clock / self.options.seconds
        return self.step / self.options.steps

    def train(self, max_seconds: float = math.inf, *, save: bool = True) -> None:
        """Run to the end of the schedule, to SIGTERM or for ``max_seconds``; then save.

        Without ``save`` SIGTERM ends the process as ever: half a training would be of no use.

        Steps between two lines of the log are not looked at one by one, which would wait for the
        GPU: a loss that is no longer finite ends the run at the next line or save.

        Raises ``EdgeDBError`` when the loss is no longer finite; the last saved state stays.
        """
        previous = signal.getsignal(signal.SIGTERM)
        if save:
            signal.signal(signal.SIGTERM, lambda *_: setattr(self, "_stop", True))
        self._begun, before = time.monotonic(), self.seconds
        seen, marked = 0, self._begun
        try:
            while self.progress < 1 and not self._stop:
                metrics = self._train_step()
                self.step += 1
                seen += self.options.batch * self.options.length
                saves = self.step % self.options.save_every == 0
                logs = self.step % self.options.log_every == 0 or self.progress >= 1
                if logs or saves:
                    record = self._averaged(metrics)
                    self._check(record)  # what is saved is always sound
                if logs:
                    now = time.monotonic()
                    self.seconds = before + now - self._begun
                    self._agree(now - self._begun > max_seconds)
                    self._log({**record, "tokens_per_second": round(seen / (now - marked))})
                    seen, marked = 0, now
                if self.step % self.options.validate_every == 0:
                    self.validate()
                if saves:
                    self.save()
        finally:
            if save:
                signal.signal(signal.SIGTERM, previous)
        self.seconds = before + time.monotonic() - self._begun
        if self.step % self.options.validate_every:
            self.validate()
        if save:
            self.save()

    def _check(self, record: Mapping[str, float]) -> None:
        if not all(map(math.isfinite, record.values())):
            raise EdgeDBError(
                f"step {self.step}: the loss is not finite; lower the learning rates. "
                f"The last good state is {self.out / 'state.pt'}"
            )

    def _agree(self, out_of_time: bool) -> None:
        """Clock and stop signal, the same in every process: all must leave at the same step."""
        state = torch.tensor([self.seconds, float(self._stop or out_of_time)], device=self.device)
        if self.world > 1:
            torch.distributed.all_reduce(state, torch.distributed.ReduceOp.MAX)
        self._clock, self._stop = state[0].item(), bool(state[1])

    def validate(self) -> None:
        """Log the student's quality on every validation text."""
        if self.rank and not self._sharded:  # a model in pieces needs every process
            return
        for name, ids in self.validation.items():
            found = evaluate(self.student, self.teacher, ids, bfloat16=self.device.type == "cuda")
            self._quality[name] = {key: round(x, 5) for key, x in found.items()}
            self._log({"validation": name, **self._quality[name]})
        parallel.reshard(self.student)

    def _train_step(self) -> dict[str, Tensor]:
        """One step; sums over this process's tokens and sequences, for ``_averaged``."""
        options = self.options
        share = schedule(self.step, self.progress, options)
        times = 2 if self.progress >= options.long_from else 1
        size = options.batch // times
        rows = self.text.batch(self.step, size, options.length * times)
        real = np.arange(size) < self.text.n_real_rows(self.step, size)
        mine = slice(self.rank, None, self.world)
        for group in self.optimizer.param_groups:
            learns = self.progress < group["until"] or group["until"] == 1
            group["lr"] = group["peak"] * share if learns else 0.0
        pieces = [
            torch.from_numpy(part).split(options.micro_batch // times)
            for part in (rows[mine], real[mine])
        ]
        n_pieces = len(pieces[0])
        metrics: dict[str, Tensor] = {}
        for i, (ids, is_real) in enumerate(zip(*pieces, strict=True)):
            parallel.set_gradient_sync(self._model, i == n_pieces - 1)
            loss, found = self._loss(
                ids.to(self.device, non_blocking=True), is_real.to(self.device, non_blocking=True)
            )
            (loss / n_pieces).backward()
            for name, value in found.items():
                metrics[name] = metrics.get(name, 0) + value
        norm = nn.utils.clip_grad_norm_(self._trained, options.clip, foreach=True)
        metrics["grad_norm"] = parallel.whole(norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        project(self._linears)
        for stack in self._stacks:
            project_stack(stack)
        return metrics

    @staticmethod
    def targets(ids: Tensor) -> Tensor:
        """What each prediction for ``ids [batch, tokens]`` was to be: the token that follows."""
        targets = torch.full_like(ids, IGNORE)
        targets[:, :-1] = ids[:, 1:]
        return targets

    def _loss(self, ids: Tensor, real: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        with autocast(self.device):
            mine, head = self._model(ids)
            if self.teacher is self.student:
                theirs, teacher_head = mine.detach(), Head(head.weight.detach(), head.cap)
            else:
                with torch.no_grad():
                    theirs, teacher_head = self.teacher(ids)
            loss, tokens = distillation_loss(
                mine,
                head,
                theirs,
                teacher_head,
                self.targets(ids),
                self.options.loss,
                self._terms,
            )
        found = {name: value.mean() for name, value in tokens._asdict().items()}
        by_row = tokens.kl.mean(dim=1)
        return loss, {
            "loss": loss.detach(),
            **found,
            "pieces": torch.ones_like(by_row[0]),
            "kl_real": torch.where(real, by_row, 0.0).sum(),
            "kl_sampled": torch.where(real, 0.0, by_row).sum(),
            "rows_real": real.sum(),
            "rows_sampled": (~real).sum(),
        }

    def _averaged(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Averages of a step over all processes; no column for a kind of text it had none of."""
        values = parallel.mean(torch.stack([value.float() for value in sums.values()]))
        record = dict(zip(sums, values.tolist(), strict=True))
        pieces = record.pop("pieces")
        for name in ("loss", *TokenLosses._fields):
            record[name] /= pieces
        for kind in ("real", "sampled"):
            rows, total = record.pop(f"rows_{kind}"), record.pop(f"kl_{kind}")
            if rows:
                record[f"kl_{kind}"] = total / rows
        return record

    def _log(self, record: Mapping[str, Any]) -> None:
        if self.rank:
            return
        line = json.dumps({"step": self.step, "seconds": round(self.seconds, 1), **record})
        with (self.out / "log.jsonl").open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)
