"""What a run found, as Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from .cases import AVX2_PAIR, ONE_PAIR, TWO_PAIRS, peer
from .results import Key, Results, Spread
from .targets import EXTRAS, Target, targets

TESTS = ("decode", "prompt")
RATIO_NAMES = (ONE_PAIR, AVX2_PAIR, TWO_PAIRS)


def markdown(header: Mapping[str, Any], results: Mapping[str, Results]) -> str:
    """The whole page; ``header`` has the machine, the command and how llama.cpp was built."""
    lines = [
        "# edgedb against llama.cpp",
        "",
        f"{header['cpu']}, {header['cores']} cores, {header['system']}; edgedb commit "
        f"{header['commit']}; {header['peers']}. `{header['command']}`, {header['date']}.",
        "",
        "Median (lowest to highest) of rounds that go from engine to engine. Each process is",
        "loaded once, its weights mapped from the page cache, its thread pinned to one processor",
        "or its two threads to two. Tokens are random and nothing is sampled; decoding starts at",
        "an empty context, a prompt is read at once and gives the logits of its last token.",
        "Ratios are taken inside a round. The read limit is a plain read of the file of one pair,",
        "just before and after each decoding; a measurement during which other processes were",
        "busy is repeated. llama.cpp: -march=native, OpenMP, flash attention on (faster here than",
        "off), weights repacked where it can, float16 cache. In the models of random weights, all",
        "its layers' matrices are of the named format (Q4_0 where 256 do not divide a row); its",
        "head is Q6_K (there Q8_0), ours int8.",
    ]
    lines += ["", f"Still disturbed when measured last: {header['disturbed']} measurements."]
    lines += ["", "## Targets", "", *_targets(targets(results))]
    for found in results.values():
        if found.model == EXTRAS:
            lines += ["", "## Others, SmolLM2-135M", "", *_others(found)]
        elif found.names:
            lines += ["", f"## {found.model}, {found.rounds} rounds", "", *_speeds(found)]
            lines += ["", *_ratios(found)]
    return "\n".join(lines) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rows]]


def _targets(found: Sequence[Target]) -> list[str]:
    verdicts = {True: "met", False: "**missed**", None: "not measured"}
    rows = []
    for target in found:
        sign = "<=" if target.at_most else ">="
        bound = f"{sign} {_quantity(target.bound, target.unit)}"
        measured, ceiling = _cell(target.found, target.unit), _median(target.ceiling, "x")
        rows.append((target.what, bound, measured, verdicts[target.met], ceiling))
    return _table(("", "target", "measured", "", "if ours read at the limit"), rows)


def _speeds(found: Results) -> list[str]:
    head = ["", "MB a token"]
    for threads in found.threads:
        head += [f"decode, {threads} thr.", "GB/s", "of the limit"]
    prompts = [Key("", "prompt", threads) for threads in found.threads]
    head += [f"prompt, {key.threads} thr." for key in prompts]
    rows = []
    for name in found.names:
        row = [name, f"{found.described[name]['bytes_per_token'] / 1e6:.0f}"]
        for threads in found.threads:
            key = Key(name, "decode", threads)
            share = found.share_of_limit(key)
            row += [_cell(found.value(key), "/s"), _median(found.gigabytes(key), "/s")]
            row.append(_median(share, "%"))
        row += [_cell(found.value(Key(name, key.test, key.threads)), "/s") for key in prompts]
        rows.append(row)
    limits = ["plain read", ""]
    for threads in found.threads:
        limits += ["", _cell(found.limit(threads), "/s"), ""]
    return _table(head, [*rows, [*limits, *[""] * len(prompts)]])


def _ratios(found: Results) -> list[str]:
    theirs = [name for name in found.names if name.startswith(peer(""))]
    columns = [(test, threads) for test in TESTS for threads in found.threads]
    head = ["ratio", "over", *[f"{test}, {threads} thr." for test, threads in columns]]
    rows = [
        [ours, name]
        + [_cell(found.ratio(Key(ours, *column), Key(name, *column)), "x") for column in columns]
        for ours in RATIO_NAMES
        if ours in found.names
        for name in theirs
    ]
    return _table(head, rows)


def _others(found: Results) -> list[str]:
    rows = []
    for key in found.keys:
        unit = {"idle": "%"}.get(key.test, "/s" if key.threads else "s")
        rows.append([key.name, key.test, str(key.threads or ""), _cell(found.value(key), unit)])
    return _table(("", "test", "threads", "tokens/s, seconds, share of a core"), rows)


def _quantity(value: float, unit: str) -> str:
    if unit == "%":
        return f"{100 * value:.3g}%"
    if unit == "/s":
        return f"{value:.0f}" if value >= 100 else f"{value:.1f}"
    return f"{value:.2f}" + (" s" if unit == "s" else "")


def _median(spread: Spread | None, unit: str) -> str:
    return _quantity(spread.median, unit) if spread else ""


def _cell(spread: Spread | None, unit: str) -> str:
    if spread is None:
        return ""
    if len(spread.values) == 1:
        return _median(spread, unit)
    low, high = _quantity(spread.low, unit), _quantity(spread.high, unit)
    return f"{_median(spread, unit)} ({low} to {high})"


def comma_separated(header: Mapping[str, Any], results: Mapping[str, Results]) -> str:
    """One line a series."""
    text = io.StringIO()
    columns = ["model", "name", "test", "threads", "rounds", "median", "low", "high"]
    columns += ["bytes_per_token", "gb_per_second", "share_of_limit", *header]
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for found in results.values():
        for key in found.keys:
            value = found.value(key)
            assert value is not None
            decoding = key.test == "decode"
            gigabytes = found.gigabytes(key) if decoding else None
            share = found.share_of_limit(key) if decoding else None
            writer.writerow(
                {
                    "model": found.model,
                    **asdict(key),
                    "rounds": len(value.values),
                    "median": value.median,
                    "low": value.low,
                    "high": value.high,
                    "bytes_per_token": found.described[key.name].get("bytes_per_token", ""),
                    "gb_per_second": gigabytes.median if gigabytes else "",
                    "share_of_limit": share.median if share else "",
                    **header,
                }
            )
    return text.getvalue()


def as_json(
    header: Mapping[str, Any], results: Mapping[str, Results], records: Sequence[Mapping[str, Any]]
) -> str:
    """Everything: the header, the targets with their verdicts, every record of every round."""
    found = [{**asdict(target), "met": target.met} for target in targets(results)]
    document = {"header": dict(header), "targets": found, "records": list(records)}
    return json.dumps(document, indent=1) + "\n"
