"""The command ``pull``: what is taken of a repository, and how it becomes a model on this disk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..convert.storage import Options
from ..errors import EdgeDBError, UnsupportedModelError
from ..files import size_text
from ..hub.modelfiles import pull_folder, pulled_models
from ..hub.names import HubName, hub_name
from ..hub.origin import origin_of, write_origin
from .configs import about
from .console import new_console, shown_warnings
from .convert import bits_option, calibration_options, fit_threads_option, read_options, resumable

if TYPE_CHECKING:
    from ..convert.sources.listing import Choice
    from ..hub.repository import Repository
    from ..model.config import ModelConfig


@dataclass(frozen=True)
class Plan:
    """A pull that has been looked up and found possible. ``files``: all that are needed;
    ``download_bytes``: of those that are not here; ``file_bytes``: about what ``out`` will have.
    ``memory_bytes``: about what a conversation will take, where the configuration is known before
    the weights are here. ``done``: there is nothing to do."""

    repository: Repository
    choice: Choice
    files: tuple[str, ...]
    options: Options
    out: Path
    download_bytes: int = 0
    file_bytes: int = 0
    memory_bytes: int | None = None
    done: bool = False

    @property
    def name(self) -> HubName:
        return self.repository.name

    @property
    def origin(self) -> dict[str, Any]:
        """What ``origin.json`` says of the model."""
        from .. import __version__

        listed = {name: self.repository.files[name] for name in self.files}
        return {
            "repository": self.name.repository,
            "revision": self.repository.commit,
            "asked": self.name.revision or "main",
            "files": {n: {"bytes": f.size_bytes, "hash": f.hash} for n, f in listed.items()},
            "options": None if self.choice.kind == "dbb" else asdict(self.options),
            "versions": {"edgedb": __version__},
        }


@click.command()
@click.argument("name", metavar="OWNER/NAME[@REV]")
@bits_option
@click.option("--file", "wanted", help="Take this .dbb or GGUF file of several.")
@calibration_options
@fit_threads_option
@click.option("--offline", is_flag=True, help="Convert what the hub's cache has; ask no network.")
def pull(name: str, wanted: str | None, offline: bool, threads: int | None, **values: Any) -> None:
    """Download a model from the Hugging Face hub.

    A .dbb of the repository is taken as it is; otherwise its safetensors, or one GGUF file, are
    converted as "edgedb convert" does by default. Every other command takes OWNER/NAME then. An
    interrupted pull goes on where it stopped when the same command is given again.

    Models go to $XDG_DATA_HOME/edgedb/models, or to the first folder of $EDGEDB_MODELS; what they
    are made of stays in the hub's own cache. Needs the package huggingface_hub. For private and
    gated models set HF_TOKEN.
    """
    hub = hub_name(name)
    if hub is None:
        raise click.UsageError(f"{name!r} is no name of a model on the hub, such as OWNER/NAME")
    options, _ = read_options(**values)
    with resumable():
        found = _planned_or_here(hub, options, wanted, offline)
        if isinstance(found, Plan):
            if tight := _tight(found):
                new_console().print(f"{hub} {tight}", style="yellow")
            carry_out(found, threads)
            new_console().print(f"Talk to it: edgedb chat {hub}")


def offer(name: HubName) -> None:
    """Say what pulling a model would take, and pull it if the answer is yes."""
    options, _ = read_options(calibration=None, no_calibration=False)
    with resumable():
        found = plan(name, options)
        what = f"download {size_text(found.download_bytes)}"
        if found.choice.kind != "dbb":
            what += f" and convert them to about {size_text(found.file_bytes)}"
        if tight := _tight(found):
            what += f", although it {tight}"
        if click.confirm(f"{name} is not on this disk: {what}?", err=True):
            carry_out(found)


def _tight(found: Plan) -> str:
    """What to say of a model that this machine has not the memory for; nothing where it fits."""
    from ..measure.known import Machine
    from ..measure.memory import memory_bytes

    try:
        machine = Machine("this machine", memory_bytes())
    except EdgeDBError:  # the system does not say
        return ""
    wanted = found.memory_bytes
    if wanted is None or machine.holds(wanted):
        return ""
    return (
        f"needs about {size_text(wanted)} of memory with a full context, of "
        f"{size_text(machine.memory_bytes)} here, and may be slow "
        f"(edgedb fits {found.name.repository})"
    )


def _planned_or_here(
    name: HubName, options: Options, wanted: str | None, offline: bool
) -> Plan | None:
    """The plan, or None where the hub cannot be asked and the model is on this disk."""
    from ..hub.client import UnreachableError

    try:
        return plan(name, options, wanted, offline)
    except UnreachableError as error:
        here = [
            path
            for path in pulled_models(name)
            if (wanted is None or path.name == wanted)
            and (options.bits is None or path.name == _file_name(name, options))
        ]
        if not here:
            raise
        new_console().print(
            f"{name} is on this disk: {here[0]}; whether there is a newer one was not asked: "
            f"{error.reason}"
        )
        return None


def _file_name(name: HubName, options: Options) -> str:
    bits = 2 * options.pairs if options.bits is None else options.bits
    return f"{name.name}-{bits:g}.dbb"


def plan(name: HubName, options: Options, wanted: str | None = None, offline: bool = False) -> Plan:
    """What pulling a model takes: asks the hub, reads the configuration and compares the free disk.

    Raises ``UnsupportedModelError`` for a model that would not run, ``EdgeDBError`` for anything
    else that stands against it; nothing large has been downloaded then.
    """
    from ..convert.sources.listing import choose
    from ..hub.client import cache_folder
    from ..hub.repository import open_repository, require_room

    repository = open_repository(name, offline=offline)
    with about(name):
        choice = choose(repository.files, wanted, options.bits is not None)
        folder = pull_folder() / name.folder
        out = folder / (choice.main if choice.kind == "dbb" else _file_name(name, options))
        found = Plan(repository, choice, choice.files, options, out)
        if choice.kind == "folder":
            found = _with_weights(found)
        elif choice.kind == "gguf":
            found = _checked_gguf(found)
    told = origin_of(out)
    if out.is_file() and all(told.get(key) == found.origin[key] for key in ("files", "options")):
        return replace(found, done=True)
    if choice.kind == "dbb":
        size = repository.missing_bytes(found.files, folder)
        require_room(name, {folder: size})
        whole = repository.files[choice.main].size_bytes
        return replace(found, download_bytes=size, file_bytes=whole)
    size = repository.missing_bytes(found.files)
    require_room(name, {cache_folder(): size} | {folder: _still(found)})
    return replace(found, download_bytes=size)


def _still(found: Plan) -> int:
    """Bytes that a conversion has yet to take: what an earlier run wrote is on the disk."""
    partial = found.out.with_name(found.out.name + ".partial")
    begun = partial.stat().st_size if partial.is_file() else 0
    return max(0, found.file_bytes - begun)


def _with_weights(found: Plan) -> Plan:
    """The plan with the files of the weights, for a model that would run. Fetches what is small."""
    from ..convert.sources.folder import read_json
    from ..convert.sources.huggingface import folder_config
    from ..convert.sources.listing import CONFIG, INDEX, WHOLE, weight_files

    repository, options = found.repository, found.options
    config = folder_config(repository.fetch(CONFIG))
    sharded = INDEX in repository.files and WHOLE not in repository.files
    index = read_json(repository.fetch(INDEX)) if sharded else {}
    weights = weight_files(found.name.name, repository.files, index)
    _refuse_unsampled(options, config)
    footprint = options.footprint(config)
    small = (name for name in found.files if name != INDEX or sharded)
    return replace(
        found,
        files=(*small, *weights),
        file_bytes=footprint.file_bytes,
        memory_bytes=footprint.memory_bytes(footprint.context()),
    )


def _refuse_unsampled(options: Options, config: ModelConfig) -> None:
    from ..convert.sample import can_sample

    if options.budgeted and options.calibration == "sample" and not can_sample(config):
        raise EdgeDBError(
            "too large to sample a text from, by which --bits would be shared out: give one with "
            "--calibration FILE"
        )


def _checked_gguf(found: Plan) -> Plan:
    """The plan with the size of what a GGUF file becomes: hardly more than itself."""
    from importlib.util import find_spec

    from ..convert.sources.gguf_metadata import families_of

    if find_spec("gguf") is None:
        raise UnsupportedModelError("reading GGUF needs the package gguf: pip install gguf")
    if found.repository.architecture is not None:
        families_of(found.repository.architecture)
    whole = sum(found.repository.files[name].size_bytes for name in found.files)
    return replace(found, file_bytes=whole)


def carry_out(found: Plan, threads: int | None = None) -> None:
    """Download, convert and note where it came from; ``out`` appears complete or not at all."""
    from ..hub.repository import keep_revision

    console = new_console()
    if found.done:
        console.print(f"{found.name} is on this disk, as the hub has it: {found.out}")
        return
    commit = found.repository.commit[:12]
    console.print(f"{found.name} at {commit}: {size_text(found.download_bytes)} to download")
    with about(found.name):
        if found.choice.kind == "dbb":
            _fetch_model(found, console)
        else:
            _convert(found, _fetch_sources(found, console), threads, console)
    write_origin(found.out, found.origin)
    keep_revision(found.repository)


def _fetch_model(found: Plan, console: Any) -> None:
    from ..model.dbb import read_dbb

    with _bar(console, found.file_bytes) as report:
        found.repository.fetch_to(found.out, found.choice.main, report, read_dbb)


def _fetch_sources(found: Plan, console: Any) -> Path:
    """Where the checkpoint lies in the hub's cache once all of it is there."""
    repository, paths = found.repository, {}
    missing = [name for name in found.files if repository.cached(name) is None]
    with _bar(console, sum(repository.files[name].size_bytes for name in missing)) as report:
        for name in found.files:
            paths[name] = repository.fetch(name, report)
    main = paths[found.choice.main]
    return main.parent if found.choice.kind == "folder" else main


def _convert(found: Plan, source: Path, threads: int | None, console: Any) -> None:
    from ..convert.export import export
    from ..convert.sources import open_source

    with shown_warnings(lambda text: console.print(text, style="yellow")):
        checkpoint = open_source(source)
    checkpoint.name = found.name.repository
    export(checkpoint, found.out, found.options, threads=threads, console=console)


@contextmanager
def _bar(console: Any, total: int) -> Iterator[Any]:
    """A bar on a terminal: call with bytes that are new."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining
    from rich.progress import TransferSpeedColumn as Speed

    columns = (TextColumn("Downloading"), BarColumn(), DownloadColumn(), Speed(), Remaining())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        task = bars.add_task("", total=total)
        yield lambda size: bars.update(task, advance=size)
