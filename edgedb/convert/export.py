"""Convert a checkpoint to a ``.dbb``: what ``edgedb convert`` does.

Reads one tensor at a time, needs no torch, and goes on where an interrupted run stopped: finished
tensors are in ``OUT.dbb.partial``, the calibration's state in ``OUT.dbb.partial.npz``.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ..display import one_line
from ..errors import EdgeDBError, FormatError
from ..format.tensors import GROUP, Kind, LinearTensor
from ..model.dbb_writer import DbbWriter
from ..model.families import program_of
from . import calibrate, sample
from .fdb import Method, fit
from .resumption import SavedState
from .sources import Source
from .storage import Options
from .store import facts, store_plain

# Part of the provenance: raised when the same source and options would give other weights.
VERSION = 2


def export(
    source: Source,
    out: Path,
    options: Options,
    *,
    threads: int | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Write ``source`` to ``out`` and return the provenance record that the file carries.

    ``out`` appears, complete, by one rename at the end. Raises ``EdgeDBError`` for a full disk, an
    unreadable calibration text, or another process that writes the same file.
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
    kinds = options.kinds(config)
    fingerprint = source.fingerprint()
    key = _key(fingerprint, options)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EdgeDBError(f"{out}: {error.strerror}") from None
    with DbbWriter(out, config, source.tokenizer_spec, kinds, fingerprint=key) as writer:
        job = _Job(source, options, kinds, writer, SavedState(out, key), threads, console)
        job.run()
        record = {
            "method": options.method,
            "pairs": options.pairs if options.method in ("fdb", "rtn") else None,
            **({"plan": options.plan} if options.plan else {}),
            "group": GROUP,
            "source": fingerprint,
            "calibration": job.calibration,
            "exporter": VERSION,
            "tensors": {name: writer.record(name) for name in kinds},
        }
        writer.finish(record)
    job.state.remove()
    _summarize(out, source, record, time.monotonic() - started, console)
    return record


class _Job:
    """One export: walks the model in the order of a forward pass."""

    def __init__(
        self,
        source: Source,
        options: Options,
        kinds: dict[str, Kind],
        writer: DbbWriter,
        state: SavedState,
        threads: int | None,
        console: Console,
    ) -> None:
        self.source, self.options, self.kinds, self.writer = source, options, kinds, writer
        self.state, self.threads, self.console = state, threads, console
        self.calibration: dict[str, Any] | None = None
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=console,
        )

    def run(self) -> None:
        """Put every tensor that the writer does not have yet."""
        kinds = self.kinds
        # What overflows is refused by name.
        with self.progress, np.errstate(over="ignore", invalid="ignore"):
            text = self._calibration_text() if self.options.calibrated else None
            task = self.progress.add_task(
                "Fitting" if text else "Converting", total=len(kinds), note=""
            )
            self._task = task
            self.progress.update(task, completed=len(set(kinds) & self.writer.done))
            for name in self.writer.remaining:
                if name not in kinds:
                    self.writer.put(name, self.source.tensor(name))
                elif not isinstance(kinds[name], int):
                    self._put(name, *store_plain(self.source, name, kinds[name]))
                elif text is None:
                    self._fit(name, None)
            if text is not None:
                self._fit_layers(*text)

    def _calibration_text(self) -> tuple[calibrate.Calibration, dict[str, Any] | None]:
        """The text, and the saved state of an interrupted run."""
        state = self.state.load()
        if state is not None:
            calibration = calibrate.Calibration(state["ids"], json.loads(str(state["record"])))
        else:
            calibration = self._new_text()
            self.state.save(calibration, 0, ())
        self.calibration = calibration.record
        return calibration, state

    def _new_text(self) -> calibrate.Calibration:
        o = self.options
        length = min(o.length, self.source.config.max_position_embeddings)
        if o.calibration != "sample":
            file = Path(o.calibration)
            return calibrate.from_text(file, self.source.tokenizer_spec, o.sequences, length)
        task = self.progress.add_task("Sampling text", total=length, note="")
        return calibrate.from_teacher(
            self.source,
            o.sequences,
            length,
            o.seed,
            lambda done: self.progress.update(task, completed=done),
        )

    def _fit_layers(self, calibration: calibrate.Calibration, state: dict[str, Any] | None) -> None:
        n_layers = self.source.config.n_layers
        layer = int(state["layer"]) if state else 0
        remaining = self.writer.remaining
        if any(name.startswith(f"layers.{i}.") for name in remaining for i in range(layer)):
            layer = 0  # a finished tensor was damaged: its successors saw the same numbers again
        inputs = calibrate.LayerInputs(self.source, calibration.ids)
        if layer and state:
            inputs.layer = layer
            inputs.exact, inputs.hidden = state["streams"]
        while inputs.layer < n_layers:
            inputs.next_layer(self._fit)
            self.state.save(calibration, inputs.layer, (inputs.exact, inputs.hidden))
        for name in self.writer.remaining:  # tables as pairs
            is_head = name == "head" or self.source.config.tie_word_embeddings
            self._fit(name, inputs.head() if is_head else None)

    def _fit(self, name: str, needs: calibrate.Needs | None) -> np.ndarray:
        """Fit and store matrix ``name``; returns the values it now has."""
        o, planes = self.options, self.kinds[name]
        assert isinstance(planes, int)
        weight = self.source.tensor(name)
        try:
            found = fit(
                weight,
                planes,
                hessians=None if needs is None else needs.hessians,
                missing=None if needs is None else needs.missing,
                method=cast(Method, o.method if o.method == "rtn" else "fdb"),
                threads=self.threads,
            )
        except (FormatError, np.linalg.LinAlgError) as error:
            raise FormatError(f"{name}: {error}") from None
        self._put(
            name, found.tensor, facts(name, error=found.error, output_error=found.output_error)
        )
        return found.quantized

    def _put(self, name: str, tensor: LinearTensor, errors: dict[str, Any]) -> None:
        again = name in self.writer.done
        self.writer.put(name, tensor, errors)
        note = f"{name}  error {errors['error']:.3g}"
        self.progress.update(self._task, advance=0 if again else 1, note=note)


def _key(fingerprint: dict[str, Any], options: Options) -> str:
    """Identifies what a partial file would become, the calibration text's content included."""
    text = Path(options.calibration)
    digest = hashlib.sha256(text.read_bytes()).hexdigest() if text.is_file() else ""
    plan = [VERSION, fingerprint, asdict(options), digest]
    return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()


def _summarize(
    out: Path, source: Source, record: dict[str, Any], seconds: float, console: Console
) -> None:
    shapes = program_of(source.config).matrices()
    size = out.stat().st_size
    n_weights = sum(rows * cols for rows, cols in shapes.values())
    layers = [facts for name, facts in record["tensors"].items() if name.startswith("layers.")]
    console.print(
        f"{one_line(str(out))}: {size / 1e6:.1f} MB, "
        f"{8 * size / n_weights:.2f} bits a weight in all, "
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
