"""Convert a checkpoint to a ``.dbb``: what ``edgedb convert`` does.

Reads one tensor at a time, needs no torch, and goes on where an interrupted run stopped: finished
tensors are in ``OUT.dbb.partial``, the calibration's state in ``OUT.dbb.partial.npz``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, Task, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as Remaining
from rich.text import Text

from ..display import one_line
from ..errors import EdgeDBError, FormatError
from ..format.packing import dequantize
from ..format.tensors import GROUP, Kind, LinearTensor
from ..model.dbb_writer import DbbWriter
from ..model.families import program_of
from ..model.footprint import Footprint
from ..model.layer_map import layer_map
from ..text.spec import TokenizerSpec
from . import calibrate, sample
from .budget import Budget, choose
from .compaction import compacted
from .fdb import Method, fit
from .plan import is_router, plan_text, write_plan_file
from .resumption import SavedState
from .sensitivity import sensitivities
from .sources import Source
from .storage import Options
from .store import facts, source_matrix, stack_facts, store_plain
from .workers import Workers

# Part of the provenance: raised when the same source and options would give other weights.
VERSION = 4
# Seconds over which the time left is told: a large matrix takes minutes.
_SPEED_SECONDS = 1800
# Of the calibration's tokens, those on which errors are weighed for a budget.
_WEIGHED_TOKENS = 4096


def export(
    source: Source,
    out: Path,
    options: Options,
    *,
    threads: int | None = None,
    console: Console | None = None,
    plan_file: Path | None = None,
) -> dict[str, Any]:
    """Write ``source`` to ``out`` and return the provenance record that the file carries.

    ``out`` appears, complete, by one rename at the end; ``plan_file`` gets the plan that was chosen
    for a budget. Raises ``EdgeDBError`` for a full disk, an unreadable calibration text, or another
    process that writes the same file.
    """
    started = time.monotonic()
    console = console or Console(stderr=True, quiet=True)
    config = source.config
    if options.calibration == "sample" and options.calibrated and not sample.can_sample(config):
        console.print(
            "This model is too large to sample a calibration text from it: fitting weights alone. "
            "A text (--calibration FILE) gives far better quality."
        )
        options = Options(**{**asdict(options), "calibration": "none"})
    fingerprint = source.fingerprint()
    key = _key(fingerprint, options)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EdgeDBError(f"{out}: {error.strerror}") from None
    state = SavedState(out, key)
    tokenizer = compacted(source.tokenizer_spec)
    with contextlib.ExitStack() as stack:
        workers = stack.enter_context(Workers(threads))
        if options.budgeted:
            options = _planned(source, tokenizer, options, state, workers, console, plan_file)
        kinds = options.kinds(config)
        writer = stack.enter_context(DbbWriter(out, config, tokenizer, kinds, fingerprint=key))
        job = _Job(source, options, kinds, writer, state, workers, console)
        job.run()
        record = {
            "method": options.method,
            "pairs": float(options.pairs) if options.method in ("fdb", "rtn") else None,
            **({"plan": options.plan} if options.plan else {}),
            "group": GROUP,
            "source": fingerprint,
            "calibration": job.calibration,
            "exporter": VERSION,
            "tensors": {name: writer.record(name) for name in kinds},
        }
        writer.finish(record)
    job.state.remove()
    _summarize(out, source, kinds, record, time.monotonic() - started, console)
    return record


def _planned(
    source: Source,
    tokenizer: TokenizerSpec,
    options: Options,
    state: SavedState,
    workers: Workers,
    console: Console,
    plan_file: Path | None,
) -> Options:
    """``options`` with the plan that their budget gives, taken from ``state`` or chosen now."""
    if not options.calibrated:
        raise EdgeDBError(
            "bits are given to matrices by what their errors do to a text: --bits and --size need "
            "the method fdb and a calibration (--calibration FILE for a large model)"
        )
    progress = _progress(console)
    with progress, np.errstate(over="ignore", invalid="ignore"):
        saved = state.load()
        if saved is None:
            if plan_file and plan_file.exists():
                raise EdgeDBError(
                    f"{plan_file} exists: leave out --bits and --size to take it, or name another"
                )
            calibration = _new_text(source, options, progress)
            rows = min(len(calibration.ids), max(1, _WEIGHED_TOKENS // calibration.ids.shape[1]))
            some = np.linspace(0, len(calibration.ids) - 1, rows).astype(int)
            costs = sensitivities(
                source,
                calibration.ids[some],
                state.inputs,
                seed=options.seed,
                threads=workers.threads,
                each=workers.each,
                progress=_counted(progress, "Weighing errors"),
            )
            budget = Budget(options.bits, options.size_bytes)
            fixed = options.fixed(source.config)
            kinds = choose(costs, budget, source.config, tokenizer, fixed)
            state.plan = plan_text(kinds)
            state.save(calibration, 0, ())
    usual = float(state.plan.partition(",")[0])  # a chosen plan says first what most have
    planned = replace(options, pairs=usual, plan=state.plan, bits=None, size_bytes=None)
    lines = layer_map(planned.kinds(source.config))
    if plan_file:
        write_plan_file(plan_file, state.plan, lines)
    for line in lines:
        console.print(line, markup=False, highlight=False)
    return planned


class _Left(Remaining):
    """The time left, named so beside the time that has gone."""

    def render(self, task: Task) -> Text:
        return Text("") if task.finished else super().render(task).append(" left")


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[count]}", markup=False),
        TimeElapsedColumn(),
        _Left(),
        TextColumn("{task.fields[note]}", markup=False),
        console=console,
        speed_estimate_period=_SPEED_SECONDS,
    )


def _counted(progress: Progress, title: str) -> Callable[[int, int], None]:
    """A new bar: call with how much is done and how much there is."""
    task = progress.add_task(title, total=None, count="", note="")
    return lambda done, total: progress.update(
        task, completed=done, total=total, count=f"{done}/{total}"
    )


def _new_text(source: Source, options: Options, progress: Progress) -> calibrate.Calibration:
    length = min(options.length, source.config.max_position_embeddings)
    if options.calibration != "sample":
        file = Path(options.calibration)
        return calibrate.from_text(file, source.tokenizer_spec, options.sequences, length)
    show = _counted(progress, "Sampling text")
    return calibrate.from_teacher(
        source, options.sequences, length, options.seed, lambda done: show(done, length)
    )


class _Job:
    """One export: walks the model in the order of a forward pass."""

    def __init__(
        self,
        source: Source,
        options: Options,
        kinds: dict[str, Kind],
        writer: DbbWriter,
        state: SavedState,
        workers: Workers,
        console: Console,
    ) -> None:
        self.source, self.options, self.kinds, self.writer = source, options, kinds, writer
        self.state, self.workers, self.console = state, workers, console
        self.stacks = program_of(source.config).stacks()
        self._of_stack: list[dict[str, Any]] = []  # what is known of a stack's experts so far
        self.calibration: dict[str, Any] | None = None
        self.progress = _progress(console)

    def run(self) -> None:
        """Put every tensor that the writer does not have yet."""
        kinds = self.kinds
        # What overflows is refused by name.
        with self.progress, np.errstate(over="ignore", invalid="ignore"):
            text = self._calibration_text() if self.options.calibrated else None
            # Time goes by weights, what is counted are matrices.
            weights = program_of(self.source.config).sizes()
            done = set(kinds) & self.writer.done
            self._task = self.progress.add_task(
                "Fitting" if text else "Converting",
                total=sum(weights[name] for name in kinds),
                completed=sum(weights[name] for name in done),
                count=f"{len(done)}/{len(kinds)}",
                note="",
            )
            for name in self.writer.remaining:
                if name not in kinds:
                    self.writer.put(name, self.source.tensor(name))
                elif text is None or not isinstance(kinds[name], int):
                    for expert in self._experts(name):
                        self._fit(name, None, expert)
            if text is not None:
                self._fit_layers(*text)

    def _calibration_text(self) -> tuple[calibrate.Calibration, dict[str, Any] | None]:
        """The text, and the saved state of an interrupted run."""
        state = self.state.load()
        if state is not None:
            calibration = calibrate.Calibration(state["ids"], json.loads(str(state["record"])))
        else:
            calibration = _new_text(self.source, self.options, self.progress)
            self.state.save(calibration, 0, ())
        self.calibration = calibration.record
        return calibration, state

    def _fit_layers(self, calibration: calibrate.Calibration, state: dict[str, Any] | None) -> None:
        n_layers = self.source.config.n_layers
        layer = int(state["layer"]) if state else 0
        remaining = self.writer.remaining
        if any(name.startswith(f"layers.{i}.") for name in remaining for i in range(layer)):
            layer = 0  # a finished tensor was damaged: its successors saw the same numbers again
        inputs = calibrate.LayerInputs(self.source, calibration.ids, self.workers.each)
        if layer and state:
            inputs.layer = layer
            inputs.exact, inputs.hidden = state["streams"]
        while inputs.layer < n_layers:
            inputs.next_layer(self._fit)
            self.state.save(calibration, inputs.layer, (inputs.exact, inputs.hidden))
        for name in self.writer.remaining:  # tables as pairs
            is_head = name == "head" or self.source.config.tie_word_embeddings
            self._fit(name, inputs.head() if is_head else None)

    def _experts(self, name: str) -> Sequence[int | None]:
        """Of a stack the numbers of its experts; of a matrix itself."""
        return range(self.stacks[name]) if name in self.stacks else [None]

    def _fit(
        self, name: str, needs: calibrate.Needs | None, expert: int | None = None
    ) -> np.ndarray:
        """Fit and store matrix ``name``, or that of one ``expert``; returns the values it now has.
        Those that are not in planes are stored as they are."""
        o, planes = self.options, self.kinds[name]
        if not isinstance(planes, int):
            tensor, errors = store_plain(self.source, name, planes, expert)
            self._put(name, tensor, errors, expert)
            return dequantize(tensor)
        weight = source_matrix(self.source, name, expert)
        try:
            found = fit(
                weight,
                planes,
                hessians=None if needs is None else needs.hessians,
                missing=None if needs is None else needs.missing,
                method=cast(Method, o.method if o.method == "rtn" else "fdb"),
                threads=self.workers.threads,
            )
        except (FormatError, np.linalg.LinAlgError) as error:
            raise FormatError(f"{name}: {error}") from None
        errors = facts(name, error=found.error, output_error=found.output_error)
        if expert is not None and needs is not None:
            errors["tokens"] = needs.tokens
        self._put(name, found.tensor, errors, expert)
        return found.quantized

    def _put(
        self, name: str, tensor: LinearTensor, errors: dict[str, Any], expert: int | None
    ) -> None:
        again = name in self.writer.done
        if expert is None:
            self.writer.put(name, tensor, errors)
        else:
            self._of_stack = [] if expert == 0 else self._of_stack
            self._of_stack.append(errors)
            self.writer.put_expert(name, expert, tensor)
            if expert + 1 < self.stacks[name]:
                return
            errors = stack_facts(name, self._of_stack)
            self.writer.end_stack(name, errors)
        note = f"{name}  error {errors['error']:.3g}"
        self.progress.update(
            self._task,
            advance=0 if again else program_of(self.source.config).sizes()[name],
            count=f"{len(set(self.kinds) & self.writer.done)}/{len(self.kinds)}",
            note=note,
        )


def _key(fingerprint: dict[str, Any], options: Options) -> str:
    """Identifies what a partial file would become, the calibration text's content included."""
    text = Path(options.calibration)
    digest = hashlib.sha256(text.read_bytes()).hexdigest() if text.is_file() else ""
    plan = [VERSION, fingerprint, asdict(options), digest]
    return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()


def _summarize(
    out: Path,
    source: Source,
    kinds: dict[str, Kind],
    record: dict[str, Any],
    seconds: float,
    console: Console,
) -> None:
    size = out.stat().st_size
    n_weights = sum(program_of(source.config).sizes().values())
    layers = [
        facts
        for name, facts in record["tensors"].items()
        if name.startswith("layers.") and not is_router(name)
    ]
    console.print(
        f"{one_line(str(out))}: {size / 1e6:.1f} MB, "
        f"{Footprint.of(source.config, kinds).layer_bits:.2f} bits a weight in the layers, "
        f"{8 * size / n_weights:.2f} in the file, "
        f"mean error of a layer's matrices {np.mean([f['error'] for f in layers]):.3g}"
        + (
            f" (of their outputs {np.mean([f['output_error'] for f in layers]):.3g})"
            if all("output_error" in f for f in layers)
            else ""
        )
        + f", {seconds:.0f} s",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
