"""Everything that the commands print.

Text of others goes through ``display`` on its way: an answer through ``printable``, everything else
through ``say``, ``warn`` or ``table``, a line each.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any

import click

from ..display import NAME_CHARS, one_line, printable
from ..model.layer_map import layer_map

if TYPE_CHECKING:
    from ..jobs.batch import Status, Summary
    from ..measure.choices import ChoiceResult
    from ..measure.divergence import DivergenceResult
    from ..measure.evaluate import PerplexityResult
    from ..run.session import Chunk, Stats

_REPORT_SECONDS = 60  # between lines about a run whose standard error is no terminal
_ROWS = 100  # of a table: nobody reads more, and a file's metadata may hold a million


def say(text: str) -> None:
    """One line of the output proper."""
    click.echo(one_line(text))


def warn(text: str) -> None:
    """A remark or an error beside the output proper, one line."""
    click.echo(f"edgedb: {one_line(text)}", err=True)


def answer(chunks: Iterable[Chunk]) -> Chunk | None:
    """Print a streamed answer as it comes, end its line, and return the last chunk."""
    write, terminal = sys.stdout.write, sys.stdout.isatty()
    last: Chunk | None = None
    ended = True
    try:
        for last in chunks:
            text = printable(last.text) if terminal else last.text
            if text:
                write(text)
                sys.stdout.flush()
                ended = text.endswith("\n")
    finally:
        if not ended:
            write("\n")
        sys.stdout.flush()
    return last


def stats(stats: Stats) -> None:
    """Speed of an answer, one line on standard error."""
    warn(
        f"prompt {stats.read_tokens} tokens in {stats.prompt_seconds:.2f} s "
        f"({stats.prompt_per_second:.1f}/s), answer {stats.completion_tokens} tokens in "
        f"{stats.decode_seconds:.2f} s ({stats.decode_per_second:.1f}/s)"
    )
    if stats.drafted_tokens:
        guesses(stats.drafted_tokens, stats.accepted_tokens)


def guesses(drafted: int, accepted: int) -> None:
    """How many guesses were right, one line on standard error."""
    warn(f"{drafted:,} guesses, {accepted:,} right ({accepted / max(drafted, 1):.0%})")


@contextmanager
def progress(label: str) -> Iterator[Callable[[int, int, str], None]]:
    """A bar on standard error, if that is a terminal: call with done, total and a remark."""
    if not sys.stderr.isatty():
        yield lambda done, total, remark: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    name, more = (
        TextColumn(f"{{task.{what}}}", markup=False) for what in ("description", "fields[remark]")
    )
    columns = (name, BarColumn(), MofNCompleteColumn(), Remaining(), more)
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(one_line(label, NAME_CHARS), total=None, remark="")
        yield lambda done, total, remark: bars.update(
            task, completed=done, total=total, remark=remark
        )


@contextmanager
def batch_progress() -> Iterator[Callable[[Status], None]]:
    """How far a batch is: a bar on a terminal, a line a minute elsewhere."""
    first: Status | None = None
    last: Status | None = None
    said = 0.0

    def report(status: Status) -> None:
        nonlocal first, last, said
        if first is None and status.done:
            warn(f"{status.done:,} of {status.lines:,} lines are done already")
        first, last = first or status, status
        show(status.done, status.lines, _rate(status))
        if not sys.stderr.isatty() and status.seconds - said >= _REPORT_SECONDS:
            said = status.seconds
            each = status.seconds / (status.done - first.done)
            minutes = each * (status.lines - status.done) / 60
            rate = _rate(status)
            warn(f"{status.done:,} of {status.lines:,} lines, {rate}, {minutes:,.0f} min left")

    try:
        with progress("lines") as show:
            yield report
    except KeyboardInterrupt:
        if last is not None:
            warn(f"{last.done:,} of {last.lines:,} lines are kept; run again to go on")
        raise


def _rate(status: Status) -> str:
    return f"{status.tokens / status.seconds:.1f} tokens/s" if status.seconds else ""


def batch_summary(out: str, summary: Summary) -> None:
    """What a batch did, a line."""
    warn(
        f"{out}: {summary.lines:,} lines, {summary.failed:,} failed; {summary.answered:,} answered "
        f"now, {summary.tokens:,} tokens in {summary.seconds:.1f} s"
    )


def perplexity(result: PerplexityResult) -> None:
    """The figure and everything needed to repeat it."""
    table(
        [
            ("perplexity", f"{result.perplexity:.4f}"),
            ("nats a token", f"{result.nll:.5f}"),
            ("tokens scored", f"{result.n_scored:,} of {result.n_text_tokens:,}"),
            ("windows", f"{result.n_windows} of {result.window} tokens"),
            ("protocol", result.protocol),
        ]
    )


def divergence(result: DivergenceResult) -> None:
    """The figures and everything needed to repeat them."""
    table(
        [
            ("mean KL", f"{result.kl:.6f} +- {result.kl_error:.6f} nats a token"),
            (
                "median, 99%, 99.9%",
                f"{result.kl_median:.6f}, {result.kl_99:.4f}, {result.kl_999:.4f}",
            ),
            ("same top token", f"{result.same_top:.3%}"),
            (
                "perplexity",
                f"{result.perplexity:.4f}, {result.ratio:.4f} of the teacher's "
                f"{result.base_perplexity:.4f}",
            ),
            ("tokens scored", f"{result.n_scored:,}"),
            ("protocol", result.protocol),
        ]
    )


def choices(results: dict[str, ChoiceResult]) -> None:
    """Accuracies, a line for each file of questions."""
    table(
        [
            (
                path,
                f"accuracy {100 * result.accuracy:5.1f} % +- {100 * result.standard_error:.1f}, "
                f"normalized {100 * result.normalized:5.1f} %, {result.n_questions:,} questions",
            )
            for path, result in results.items()
        ]
    )


def _flat(values: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Rows of a nested record: keys joined by spaces, and shortened as they are joined."""
    if not isinstance(values, dict):
        yield name, str(values)
        return
    for key, value in values.items():
        yield from _flat(value, one_line(f"{name} {key}".strip(), NAME_CHARS))


def model_info(info: dict[str, Any]) -> None:
    """``summary.summarize`` for people."""
    config, bits = info["config"], info["bits_per_weight"]
    scaling = config["rope_scaling"]["type"]
    rope = f"theta {config['rope_theta']:g}" + (f", {scaling}" if scaling != "default" else "")
    say(info["path"])
    table(
        [
            ("model", f"{config['model_type']}, {info['parameters'] / 1e6:,.1f}M parameters"),
            ("family", info["description"]),
            ("layers", f"{config['n_layers']}"),
            ("hidden", f"{config['hidden_size']}, feed-forward {config['intermediate_size']}"),
            (
                "heads",
                f"{config['n_heads']} of {config['head_dim']}, {config['n_kv_heads']} key/value",
            ),
            ("vocabulary", f"{config['vocab_size']:,} ({info['tokenizer']['kind']})"),
            ("context", f"{config['max_position_embeddings']:,} tokens, {rope}"),
            ("chat template", "yes" if info["tokenizer"]["chat_template"] else "no"),
            (
                "bits a weight",
                f"{bits['linear']:.2f} in the layers, {bits['file']:.2f} in the file",
            ),
        ]
    )
    click.echo("\nbytes")
    rows = [(name, f"{size:>15,}") for name, size in info["bytes"].items() if size]
    table([*rows, ("file", f"{info['size_bytes']:>15,}")])
    click.echo("\nstored as")
    layers = ", ".join(f"{count} x {kind}" for kind, count in info["kinds"]["layers"].items())
    table([("layers", layers), *((name, info["kinds"][name]) for name in ("embedding", "head"))])
    if len(info["kinds"]["layers"]) > 1:
        click.echo("\nmap of the layers")
        for line in layer_map(info["plan"]):
            say(f"  {line}")
    if info["sparsity"]:
        click.echo("\nzero bits of each plane")
        table([(f"pair {row['pair']}", ", ".join(_zeros(row))) for row in info["sparsity"]])
    if info["quantization"].get("quality"):
        click.echo("\nmeasured quality")
        table(_flat(info["quantization"]["quality"]))
    provenance = {k: v for k, v in info["quantization"].items() if not isinstance(v, (dict, list))}
    if provenance:
        click.echo("\nprovenance")
        table(_flat(provenance))


def _zeros(row: dict[str, Any]) -> list[str]:
    return [f"{b} {row[b]:.1%}" for b in ("b1", "b2") if row[b] is not None]


def runtime_info(info: dict[str, Any]) -> None:
    """``runtime.describe_runtime`` for people."""
    click.echo("runtime")
    table(
        [
            ("version", info["version"]),
            ("cpu", f"{info['cpu']}, {info['cores']} cores"),
            ("backend", f"{info['backend']} ({info['reason']})"),
            ("isa", info["isa"]),
            *([("kernel", info["kernel"])] if info["kernel"] else []),
            ("threads", str(info["threads"])),
            ("memory", f"huge pages: {info['huge_pages']}"),
        ]
    )
    click.echo("\nbackends")
    table([(b["name"], _mark(b["available"]) + b["reason"]) for b in info["backends"]])
    if info["instruction_sets"]:
        click.echo("\ninstruction sets")
        table(
            [
                (i["name"], _mark(i["supported"]) + i["description"])
                for i in info["instruction_sets"]
            ]
        )


def _mark(available: bool) -> str:
    return "yes  " if available else "no   "


def columns(rows: Iterable[Sequence[str]], right: Collection[int] = ()) -> None:
    """Rows of as many texts, a line each, ``right`` those that end their column."""
    shown = [[one_line(text, NAME_CHARS) for text in row] for row in islice(rows, _ROWS)]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    for row in shown:
        texts = (
            text.rjust(width) if i in right else text.ljust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        click.echo(f"  {'  '.join(texts)}".rstrip())


def table(rows: Iterable[tuple[str, str]]) -> None:
    """Names and values, a line each."""
    rest = iter(rows)
    shown = [(one_line(k, NAME_CHARS), one_line(v)) for k, v in islice(rest, _ROWS)]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        click.echo(f"  {name:<{width}}  {value}".rstrip())
    if next(rest, None) is not None:
        click.echo(f"  only the first {_ROWS} are shown")
