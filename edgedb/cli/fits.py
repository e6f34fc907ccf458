"""The command ``fits``: what a model takes, before it is downloaded or converted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..files import size_text
from .configs import config_at, config_on_hub
from .options import kv_option, together
from .sizes import SIZE, SPEED

if TYPE_CHECKING:
    from ..convert.storage import Options
    from ..measure.estimates import Row
    from ..measure.known import Machine
    from ..model.config import ModelConfig

machine_options = together(
    click.option(
        "--memory", "memory_bytes", type=SIZE, help="Memory of the machine: 8GB.  [this one's]"
    ),
    click.option(
        "--bandwidth", type=SPEED, help="What its memory can give: 17GB/s. Tells tokens a second."
    ),
    click.option(
        "--measure", is_flag=True, help="Measure it on this machine: takes a second and 0.5 GB."
    ),
    click.option(
        "--context", type=click.IntRange(1), help="Tokens a session holds.  [as chat: at most 8192]"
    ),
    kv_option,
)


@click.command()
@click.argument("model", required=False, metavar="[OWNER/NAME|PATH]")
@machine_options
@click.option("--offline", is_flag=True, help="Ask no network.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def fits(model: str | None, offline: bool, as_json: bool, **values: Any) -> None:
    """Show what fits this machine, or another one.

    Without a name: models that people know, each at two pairs of bit planes, as "edgedb pull" makes
    it, or at one and a half where only that fits. With the name of a model on the hub, of which
    only its configuration is fetched, a folder with a config.json, a GGUF or a .dbb file: that
    model by its pairs.

    Memory is that of a process with a full context, and a gigabyte is left to others. Tokens a
    second are what memory allows at most: its speed over the bytes that a token reads.
    """
    from ..measure.estimates import of_machine, of_model

    machine, session = read_machine(**values)
    if model is None:
        rows = of_machine(machine, **session)
    else:
        name, config, here = _looked_up(model, offline)
        rows = [*here(machine, session), *of_model(name, config, machine, **session)]
    show(rows, machine, as_json)


def read_machine(
    *,
    memory_bytes: int | None,
    bandwidth: float | None,
    measure: bool,
    context: int | None,
    kv_dtype: str,
) -> tuple[Machine, dict[str, Any]]:
    """The machine that ``machine_options`` mean, and what a session there has."""
    from ..measure import memory
    from ..measure.known import Machine

    if measure and (bandwidth is not None or memory_bytes is not None):
        raise click.UsageError("--measure is about this machine: leave out what says another one")
    here = memory_bytes is None
    size = memory.memory_bytes() if memory_bytes is None else memory_bytes
    speed = memory.read_speed() if measure else bandwidth
    machine = Machine("this machine" if here else "a machine", size, speed)
    return machine, {"context": context, "kv_dtype": kv_dtype}


def _looked_up(model: str, offline: bool) -> tuple[str, ModelConfig, Any]:
    """A model's name and configuration, and a function for rows of what there is already."""
    from ..hub.modelfiles import absent, find_model
    from ..hub.names import hub_name
    from ..measure.known import KNOWN
    from ..measure.shapes import SHAPES
    from ..model.dbb import read_dbb

    wanted = absent(model)
    if model in KNOWN and wanted is not None:
        return model, SHAPES[KNOWN[model].shape], lambda machine, session: []
    if wanted is not None:
        return wanted.repository, config_on_hub(wanted, offline), lambda machine, session: []
    hub = hub_name(model)
    path = Path(model) if Path(model).is_dir() else find_model(model)
    if path.suffix != ".dbb":
        return model, config_at(path), lambda machine, session: []
    file = read_dbb(path, verify=False)
    name = hub.repository if hub else path.stem

    def here(machine: Machine, session: dict[str, Any]) -> list[Row]:
        from ..measure.estimates import row
        from ..model.footprint import Footprint

        found = Footprint(file.config, {n: weight.nbytes for n, weight in file.linears.items()})
        told = row(name, path.name, found, machine, **session)
        return [replace(told, file_bytes=file.size_bytes, kl=None)]

    return name, file.config, here


def dry_run(source: str, options: Options) -> None:
    """What a conversion of ``source`` would make, on this machine."""
    from ..measure.estimates import pairs_text, row

    name, config, _ = _looked_up(source, offline=False)
    machine, session = read_machine(
        memory_bytes=None, bandwidth=None, measure=False, context=None, kv_dtype="float16"
    )
    if options.bits is not None:
        stored = f"{options.bits:g} bits"
    elif options.size_bytes is not None:
        stored = f"at most {size_text(options.size_bytes)}"
    elif options.method not in ("fdb", "rtn"):
        stored = options.method
    else:
        stored = pairs_text(options.pairs) + (" with a plan" if options.plan else "")
    show([row(name, stored, options.footprint(config), machine, **session)], machine, False)


def show(rows: Sequence[Row], machine: Machine, as_json: bool) -> None:
    """The rows in columns, and what to know about them."""
    from . import ui

    if as_json:
        document = {"machine": asdict(machine), "rows": [asdict(row) for row in rows]}
        click.echo(json.dumps(document, indent=2))
        return
    speed = "" if machine.bandwidth is None else f" read at {machine.bandwidth / 1e9:.1f} GB/s"
    ui.say(f"{machine.name}: {size_text(machine.memory_bytes)} of memory{speed}")
    ui.columns([TITLES, *map(cells, rows)], right=(2, 3, 4, 5))
    if any(row.kl is not None for row in rows):
        ui.say("KL: from the full model in nats a token, without training; docs/quality.md")
    if len({row.model for row in rows}) == 1 and any(row.stored == "1 pair" for row in rows):
        ui.say("One pair is useless without training.")
    if machine.bandwidth is None:
        ui.say("Tokens a second: --measure reads this machine's memory, --bandwidth says another's")


TITLES = ("model", "stored in", "bits", "file", "memory", "tokens/s", "fits", "KL")


def speed_text(tokens_per_second: float) -> str:
    """Tokens a second for people."""
    return f"{tokens_per_second:.{0 if tokens_per_second >= 10 else 1}f}"


def cells(row: Row) -> tuple[str, ...]:
    """A row as texts."""
    speed, kl = row.tokens_per_second, row.kl
    return (
        row.model,
        row.stored,
        f"{row.layer_bits:.1f}",
        size_text(row.file_bytes),
        size_text(row.memory_bytes),
        "" if speed is None else speed_text(speed),
        "yes" if row.fits else "no",
        "" if kl is None else f"{kl:.2f}",
    )
