"""Train a two-bit student against its full-precision teacher.

    python -m tools.distill SOURCE --text TEXT --out RUN --steps 1600

RUN gets ``log.jsonl``, ``state.pt`` (everything: the same command goes on exactly where the last
one was killed) and ``student.safetensors`` (compact, see ``tools.checkpoint``). Started by
``torchrun --nproc-per-node N -m tools.distill ...`` the batch is spread over N processes.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from edgedb.errors import EdgeDBError

from .checkpoint import load_student, save_student
from .command import one_line_errors
from .dad import IGNORE, LossOptions, distillation_loss, token_terms
from .decoder import Decoder, load_teacher, mean_square_inputs
from .options import MODES, TrainOptions, schedule
from .quality import evaluate
from .student import STARTS, FDBLinear, make_student, project
from .text import TextMix

if TYPE_CHECKING:
    from edgedb.tokenizer import TokenizerSpec


def parameter_groups(student: Decoder, options: TrainOptions) -> list[dict[str, Any]]:
    """Optimizer groups with their peak rate; what has no rate is frozen."""
    layers: dict[str, list[nn.Parameter]] = {"latent": [], "scale": [], "embedding": []}
    for _, module in student.matrices():
        assert isinstance(module, FDBLinear)
        layers["latent"].append(module.latent)
        layers["scale"] += [module.alpha1, module.alpha2]
    layers["scale"] += [norm for _, norm in student.norms()]
    layers["embedding"].append(student.embedding)
    if not student.config.tie_word_embeddings:
        layers["embedding"].append(student.untied_head)
    rates = {
        "latent": options.lr_latent if options.mode == "scales+latents" else 0.0,
        "scale": options.lr_scale,
        "embedding": options.lr_embedding,
    }
    groups = []
    for name, parameters in layers.items():
        for parameter in parameters:
            parameter.requires_grad_(rates[name] > 0)
        if rates[name] > 0:
            groups.append({"params": parameters, "lr": rates[name], "peak": rates[name]})
    return groups


def autocast(device: torch.device) -> AbstractContextManager[Any]:
    """bfloat16 matrices on a GPU; plain float32 on a CPU, where it is the faster and exact one."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


class Trainer:
    """One run. ``text`` gives batches, ``validation`` maps a name to windows ``[n, tokens]``."""

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
        self.device = student.embedding.device
        self.step, self.seconds = options.first_step, 0.0
        out.mkdir(parents=True, exist_ok=True)
        self._linears = [m for _, m in student.matrices() if isinstance(m, FDBLinear)]
        for module in self._linears:
            module.round_scales = options.round_scales
            module.stuck = options.stuck_tails
            module.quantize_input = options.quantize_inputs
        groups = parameter_groups(student, options)
        self.optimizer = torch.optim.AdamW(
            groups, betas=(0.9, 0.95), weight_decay=0.0, fused=self.device.type == "cuda"
        )
        self._trained = [p for group in groups for p in group["params"]]
        self._terms: Callable[..., Any] = token_terms
        if options.compile:
            # Layer by layer: thirty equal layers are one graph, built in seconds.
            for layer in (*student.layers, *teacher.layers):
                layer.compile(dynamic=False)
            self._terms = torch.compile(token_terms, dynamic=False)
        self._stop, self._clock = False, 0.0
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        self.rank = torch.distributed.get_rank() if distributed else 0
        self.world = torch.distributed.get_world_size() if distributed else 1
        self._model: Any = student
        if self.world > 1:
            if options.batch % (options.micro_batch * self.world):
                raise ValueError(f"batch {options.batch} does not split {self.world} ways")
            # DAD's weight has mean 1 within each process; everything else is as with one.
            self._model = nn.parallel.DistributedDataParallel(
                student, broadcast_buffers=False, gradient_as_bucket_view=True
            )

    def resume(self) -> bool:
        """Take up ``state.pt`` of an earlier run with the same settings; False if there is none.

        Raises ``EdgeDBError`` if the settings differ or the file is damaged.
        """
        path = self.out / "state.pt"
        if not path.exists():
            return False
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
        except Exception as error:  # zip, pickle and key errors of a damaged file
            raise EdgeDBError(f"{path}: no readable training state: {error}") from None
        if state["options"] != asdict(self.options):
            raise EdgeDBError(f"{path}: was trained with other settings; choose another --out")
        self.student.load_state_dict(state["student"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]
        self._clock = self.seconds
        log = self.out / "log.jsonl"
        if log.exists():  # lines past the saved step are about to be written again
            lines = log.read_text().splitlines()
            kept = [line for line in lines if json.loads(line)["step"] <= self.step]
            log.write_text("".join(line + "\n" for line in kept))
        return True

    def save(self) -> None:
        """Write ``state.pt`` and ``student.safetensors``, each atomically."""
        if self.rank:
            return
        state = {
            "student": self.student.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "options": asdict(self.options),
        }
        partial = self.out / "state.pt.partial"
        try:
            torch.save(state, partial)
            os.replace(partial, self.out / "state.pt")
            self._save_student()
        except (OSError, RuntimeError, SafetensorError) as error:
            partial.unlink(missing_ok=True)
            raise EdgeDBError(
                f"{self.out}: the state could not be saved ({error}); is the disk full? "
                "What was saved before is whole: the same command goes on from there"
            ) from None

    def _save_student(self) -> None:
        tokens = self.step * self.options.batch * self.options.length
        save_student(
            self.out / "student.safetensors",
            self.student,
            step=self.step,
            provenance={
                **self.provenance,
                "options": asdict(self.options),
                "trained_tokens": tokens,
                "seconds": round(self.seconds),
            },
            tokenizer=self.tokenizer,
        )

    @property
    def progress(self) -> float:
        """Share of the schedule that is done. By time it moves on when a line is logged."""
        if self.options.seconds:
            return self._clock / self.options.seconds
        return self.step / self.options.steps

    def train(self, max_seconds: float = math.inf) -> None:
        """Run to the end of the schedule, to SIGTERM or for ``max_seconds``; then save.

        Raises ``EdgeDBError`` when the loss is no longer finite; the last saved state stays.
        """
        previous = signal.signal(signal.SIGTERM, lambda *_: setattr(self, "_stop", True))
        self._begun, before = time.monotonic(), self.seconds
        seen, marked = 0, self._begun
        try:
            while self.progress < 1 and not self._stop:
                metrics = self._train_step()
                self.step += 1
                seen += self.options.batch * self.options.length
                if self.step % self.options.log_every == 0 or self.progress >= 1:
                    record = {name: value.item() for name, value in metrics.items()}
                    self._check(record)
                    now = time.monotonic()
                    self.seconds = before + now - self._begun
                    self._agree(now - self._begun > max_seconds)
                    self._log({**record, "tokens_per_second": round(seen / (now - marked))})
                    seen, marked = 0, now
                if self.step % self.options.validate_every == 0:
                    self.validate()
                if self.step % self.options.save_every == 0:
                    self.save()
        finally:
            signal.signal(signal.SIGTERM, previous)
        self.seconds = before + time.monotonic() - self._begun
        if self.step % self.options.validate_every:
            self.validate()
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
        if self.rank:
            return
        for name, ids in self.validation.items():
            found = evaluate(self.student, self.teacher, ids, bfloat16=self.device.type == "cuda")
            self._log({"validation": name, **{key: round(x, 5) for key, x in found.items()}})

    def _train_step(self) -> dict[str, Tensor]:
        options = self.options
        share = schedule(self.step, self.progress, options)
        times = 2 if self.progress >= options.long_from else 1
        rows = self.text.batch(self.step, options.batch // times, options.length * times)
        ids = torch.from_numpy(rows[self.rank :: self.world])
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * share
        pieces = ids.split(options.micro_batch // times)
        metrics: dict[str, Tensor] = {}
        for i, piece in enumerate(pieces):
            last = i == len(pieces) - 1
            # Gradients are averaged over the processes once, with the last piece.
            with nullcontext() if last or self.world == 1 else self._model.no_sync():
                loss, means = self._loss(piece.to(self.device, non_blocking=True))
                (loss / len(pieces)).backward()
            for name, value in {"loss": loss.detach(), **means}.items():
                metrics[name] = metrics.get(name, 0) + value / len(pieces)
        metrics["grad_norm"] = nn.utils.clip_grad_norm_(self._trained, options.clip, foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        project(self._linears)
        return metrics

    def _loss(self, ids: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        targets = torch.full_like(ids, IGNORE)
        targets[:, :-1] = ids[:, 1:]
        with autocast(self.device):
            with torch.no_grad():
                theirs = self.teacher(ids)
            loss, means = distillation_loss(
                self._model(ids),
                self.student.head,
                theirs,
                self.teacher.head,
                targets,
                self.options.loss,
                self._terms,
            )
        return loss, means._asdict()

    def _log(self, record: Mapping[str, Any]) -> None:
        if self.rank:
            return
        line = json.dumps({"step": self.step, "seconds": round(self.seconds, 1), **record})
        with (self.out / "log.jsonl").open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)


def build_parser() -> argparse.ArgumentParser:
    """The command line; every field of ``TrainOptions`` and ``LossOptions`` is an option."""
    parser = argparse.ArgumentParser(description="Distill a two-bit student (FDB + DAD).")
    parser.add_argument("source", help="Hugging Face directory or GGUF file of the teacher")
    parser.add_argument("--text", type=Path, required=True, help="folder of tools.generate")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--student", type=Path, help="go on from this student.safetensors")
    parser.add_argument("--start", choices=STARTS, default="weighted")
    parser.add_argument(
        "--validation",
        type=Path,
        action="append",
        default=[],
        help=".npy of token ids, [windows, tokens]; may be given again",
    )
    parser.add_argument("--max-seconds", type=float, default=math.inf)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    defaults = TrainOptions(steps=0)
    for owner in (defaults, defaults.loss):
        for name, value in vars(owner).items():
            flag = "--" + name.replace("_", "-")
            if isinstance(value, bool):
                parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=value)
            elif name == "steps":
                parser.add_argument(flag, type=int, required=True)
            elif name != "loss":
                kind = float if value is None else type(value)
                choices = MODES if name == "mode" else None
                parser.add_argument(flag, type=kind, default=value, choices=choices)
    return parser


@one_line_errors
def main() -> None:
    """See the module's docstring."""
    args = build_parser().parse_args()
    from .sources import open_source

    names = vars(args)
    loss = LossOptions(**{key: names[key] for key in LossOptions.__dataclass_fields__})
    fields = set(TrainOptions.__dataclass_fields__) - {"loss"}
    options = TrainOptions(**{key: names[key] for key in fields}, loss=loss)
    torch.set_float32_matmul_precision("high")
    device = torch.device(args.device)
    if "WORLD_SIZE" in os.environ:  # set by torchrun
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    source = open_source(args.source)
    teacher = load_teacher(source, device)
    text = TextMix(args.text, options.length, real_share=options.real_share, seed=options.seed)
    text.check(source.config.vocab_size)
    if args.student:
        student, _ = load_student(args.student, device)
    else:
        ids = torch.from_numpy(text.batch(0, 8)).to(device)
        importance = mean_square_inputs(teacher, ids) if args.start == "weighted" else None
        student = make_student(teacher, args.start, importance)
    trainer = Trainer(
        student,
        teacher,
        options,
        text,
        args.out,
        validation={
            path.stem: torch.from_numpy(np.load(path).astype(np.int64)) for path in args.validation
        },
        provenance={
            "teacher": source.fingerprint(),
            "start": str(args.student.name) if args.student else args.start,
            "text": {"sampled_tokens": text.n_sampled, "real_tokens": text.n_real},
        },
        tokenizer=source.tokenizer_spec,
    )
    trainer.resume()
    trainer.train(args.max_seconds)
    if trainer.world > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
