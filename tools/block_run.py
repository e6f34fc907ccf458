"""A whole training block by block, which a killed run goes on with where it stopped.

Beside the student that is to be, a folder holds what is finished: the channels' weights, each
layer, and two streams of hidden states (``tools.streams``), of the teacher and of the student as
far as it has come.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import nn

from edgedb.convert.plan import Plan
from edgedb.display import one_line
from edgedb.errors import EdgeDBError
from edgedb.files import replacing

from .block_training import BlockOptions, Hessians, fit_start, train_layer
from .channels import mean_square_gradients
from .decoder import Decoder, Layer, WeightSource, compile_parts
from .layerwise import Teacher, load_whole, save_whole
from .scales import ScaleOptions, Walk, train_scales
from .stacks import Stack
from .streams import Stream, write
from .student import empty_student

TARGETS = ("layer", "path")
SAVE_SECONDS = 20.0  # between two times that states which are on the GPU go to the disk


@dataclass(frozen=True)
class RunOptions:
    """targets: what a layer is to give: what the teacher's makes of the student's own states
    ("layer"), or the teacher's own states ("path"), which takes back earlier errors too.
    gradient_tokens: that channels are weighted by; 0: all channels count the same.
    """

    targets: str = "path"
    gradient_tokens: int = 16384
    blocks: BlockOptions = field(default_factory=BlockOptions)
    scales: ScaleOptions = field(default_factory=ScaleOptions)
    compile: bool = False

    def __post_init__(self) -> None:
        if self.targets not in TARGETS:
            raise ValueError(f"targets {self.targets!r}: choose one of {', '.join(TARGETS)}")


class BlockRun:
    """One run. ``ids`` int64 ``[sequences, tokens]``; ``start``: a student to begin with, of the
    same plan, instead of the exporter's fit."""

    def __init__(
        self,
        source: WeightSource,
        out: Path,
        ids: NDArray[np.int64],
        plan: Plan,
        options: RunOptions,
        *,
        device: torch.device,
        start: Decoder | None = None,
        key: dict[str, Any] | None = None,
        console: Console | None = None,
    ) -> None:
        self.out, self.options, self.device, self.start = out, options, device, start
        self.ids = torch.from_numpy(ids)
        self.folder = out.with_name(out.name + ".blocks")
        self.console = console or Console(stderr=True, quiet=True)
        self.teacher = Teacher(source, device)
        self.turns = self.teacher.ends.turns(ids.shape[1])
        with torch.device("meta"):
            self.student = empty_student(source.config, "meta", plan)
        self._saved = time.monotonic()
        self.record: dict[str, Any] = {"layers": [], "scales": {}}
        self._open({"ids": hashlib.sha256(ids.tobytes()).hexdigest(), "plan": plan, **(key or {})})

    def _open(self, key: dict[str, Any]) -> None:
        """Make the folder, or take up the one of an earlier run with the same settings."""
        options = {k: v for k, v in asdict(self.options).items() if k != "compile"}
        settings = json.dumps({**key, "options": options, "shape": list(self.ids.shape)})
        file = self.folder / "run.json"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if file.exists() and file.read_text() != settings:
                raise EdgeDBError(
                    f"{self.folder}: holds a run with other settings; remove the folder to begin "
                    "anew, or choose another name to write"
                )
            with replacing(file) as whole:
                whole.write(settings.encode())
        except OSError as error:
            raise EdgeDBError(f"{self.folder}: {error.strerror}") from None

    def run(self) -> Decoder:
        """Train all of it; the student, which is on the CPU. The folder stays until ``close``."""
        n_layers = len(self.student.layers)
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=self.console,
        )
        with self.progress:
            weights = self._channel_weights()
            self._fill_ends()
            done = self._finished()
            self._task = self.progress.add_task("Layers", total=n_layers, completed=done, note="")
            states, path = self._streams(done)
            for i in range(done, n_layers):
                states, path = self._layer(i, states, path, weights[i])
            self._fit_tables(states)
            self._scales(path)
        return self.student

    def close(self) -> None:
        """Remove what a killed run would have gone on from."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _say(self, text: str) -> None:
        self.console.print(one_line(text), markup=False, highlight=False, soft_wrap=True)

    def _channel_weights(self) -> NDArray[np.float32]:
        config = self.student.config
        file = self.folder / "channels.npy"
        if not self.options.gradient_tokens:
            return np.ones((config.n_layers, config.hidden_size), np.float32)
        if not file.exists():
            task = self.progress.add_task("Gradients", total=2 * config.n_layers, note="")
            n = max(1, self.options.gradient_tokens // self.ids.shape[1])
            found = mean_square_gradients(
                self.teacher,
                self.ids[:: max(1, len(self.ids) // n)][:n],
                self.folder,
                batch=self.options.blocks.batch,
                seed=self.options.blocks.seed,
                progress=lambda: self.progress.advance(task),
            )
            write(file, found.shape, [torch.from_numpy(found)])
        return np.load(file)

    def _fill_ends(self) -> None:
        """Embedding, head and last norm: the start's or the teacher's."""
        ends = self.start or self.teacher.ends
        for name, weight in ends.weights().items():
            if isinstance(weight, nn.Parameter):
                copy = nn.Parameter(weight.detach().cpu().clone(), requires_grad=False)
                if isinstance(self.student.weights()[name], nn.Parameter):
                    self.student.put(name, copy)
            else:
                self.student.put(name, weight)

    def _finished(self) -> int:
        """Layers that an earlier run finished, up to the last whose states it saved: taken over."""
        saved = [i for i in range(len(self.student.layers) + 1) if self._has_saved(i)]
        done = max(saved, default=0)
        for i in range(done):
            state = load_whole(self._layer_file(i))
            self.record["layers"].append(state.pop("record"))
            self.student.layers[i].to_empty(device="cpu").load_state_dict(state)
        return done

    def _layer_file(self, i: int) -> Path:
        return self.folder / f"layer-{i}.pt"

    def _states_file(self, whose: str, i: int) -> Path:
        return self.folder / f"{whose}-{i}.npy"

    def _has_saved(self, i: int) -> bool:
        """Whether there is all that layer ``i`` and those after it need."""
        states = [self._states_file(whose, i) for whose in ("student", "teacher")]
        return all(file.exists() for file in (*states, *map(self._layer_file, range(i))))

    def _streams(self, i: int) -> tuple[Stream, Stream]:
        """The student's and the teacher's states before a layer, of a file or of the text."""
        batch, ends, found = self.options.blocks.batch, self.teacher.ends, []
        shape = (*self.ids.shape, self.student.config.hidden_size)
        for whose, first in (("student", self.start or ends), ("teacher", ends)):
            path = self._states_file(whose, i)
            if i:
                found.append(Stream.open(path, self.device, batch))
                continue
            where = first.around(self.turns)
            parts = (first.enter(part.to(first.device), where) for part in self.ids.split(batch))
            found.append(Stream.make(path, shape, parts, self.device, batch))
        return found[0], found[1]

    def _layer(
        self, i: int, inputs: Stream, path: Stream, weights: NDArray[np.float32]
    ) -> tuple[Stream, Stream]:
        """Train a layer; the states behind it."""
        began = time.monotonic()
        teacher, layer = self.teacher.layer(i), self._start_of(i)
        ahead = path.through(self._states_file("teacher", i + 1), teacher, self.turns)
        own = self.options.targets == "layer"
        targets = ahead
        if own:
            targets = inputs.through(self.folder / "targets.npy", teacher, self.turns)
        if not self.start:
            read = inputs if own else path
            fit_start(layer, teacher, inputs, read, self.turns, self.options.blocks)
        del teacher
        if self.options.compile:
            compile_parts([layer])
        before, after = train_layer(
            layer,
            inputs,
            targets,
            self.turns,
            weights,
            self.options.blocks,
            (self.options.blocks.seed, i),
            lambda step, of, error: self._note(f"layer {i}: step {step}/{of}, error {error:.4f}"),
        )
        if self.options.compile:
            del layer.forward
        states = inputs.through(self._states_file("student", i + 1), layer, self.turns)
        self._finish(i, layer, before, after, time.monotonic() - began)
        if own:
            targets.remove()
        self._save(i + 1, states, ahead)
        return states, ahead

    def _save(self, i: int, *streams: Stream) -> None:
        """Have the states before layer ``i`` on disk, if the last were saved long ago."""
        last = i == len(self.student.layers)
        if time.monotonic() - self._saved < SAVE_SECONDS and not last:
            return
        for stream in streams:
            stream.save()
        for whose in ("student", "teacher"):
            for file in self.folder.glob(f"{whose}-*.npy"):
                if file != self._states_file(whose, i):
                    file.unlink()
        self._saved = time.monotonic()

    def _start_of(self, i: int) -> Layer:
        """A layer of the student, on the device; undefined where there is no start."""
        layer = (self.start or self.student).layers[i]
        assert isinstance(layer, Layer)
        return layer.to(self.device) if self.start else layer.to_empty(device=self.device)

    def _finish(self, i: int, layer: Layer, before: float, after: float, seconds: float) -> None:
        """Keep a trained layer, on the disk and on the CPU."""
        layer.to("cpu")
        self.student.layers[i] = layer
        found = {"error_before": before, "error": after, "seconds": seconds}
        self.record["layers"].append({k: float(f"{v:.4g}") for k, v in found.items()})
        state = layer.state_dict() | {"record": self.record["layers"][-1]}
        save_whole(self._layer_file(i), state)
        self._say(f"layer {i}: error {before:.4f} -> {after:.4f}, {seconds:.1f} s")
        self.progress.advance(self._task)

    def _note(self, text: str) -> None:
        self.progress.update(self._task, note=text)

    @torch.no_grad()
    def _fit_tables(self, states: Stream) -> None:
        """Tables in planes, for what the head reads of the student."""
        tables = {n: t for n, t in self.student.tables().items() if isinstance(t, Stack)}
        if self.start or not tables:
            return
        from edgedb.convert.fdb import fit

        ends = self.teacher.ends  # its last norm is the student's so far
        where = ends.around(self.turns)
        seen = Hessians()
        for x in states.batches():
            seen.add(ends.last(x, where))
        plain = ends.tables()
        for name, table in tables.items():
            weight = plain[name].detach().float().cpu()
            table.to_empty(device="cpu")
            table.load(weight, fit(weight.numpy(), table.planes, hessians=seen.means()).tensor)

    def _scales(self, states: Stream) -> None:
        """The steps at the end, with the whole student."""
        if not self.options.scales.steps:
            return
        ends = self.teacher.ends
        where = ends.around(self.turns)
        file = self.folder / "goals.npy"
        with torch.no_grad():
            goals = states.to(file, lambda x: ends.last(x, where))
        began = time.monotonic()
        task = self.progress.add_task("Scales", total=self.options.scales.steps, note="")
        walk = Walk(self.student, self.ids, goals, ends.head_of(where))
        before, after = train_scales(
            walk,
            self.options.scales,
            self.folder / "scales.pt",
            lambda step, kl: self.progress.update(task, completed=step, note=f"KL {kl:.4f}"),
        )
        goals.remove()
        seconds = time.monotonic() - began
        found = {"kl_before": before, "kl": after, "seconds": seconds}
        self.record["scales"] = {k: float(f"{v:.4g}") for k, v in found.items()}
        self._say(f"scales: KL {before:.4f} -> {after:.4f}, {seconds:.1f} s")
