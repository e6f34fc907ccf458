"""What a run found, as Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from .cases import AVX2_PAIR, ONE_PAIR, PAGES, READ, TWO_PAIRS, peer
from .results import Key, Results, Spread
from .targets import EXTRAS, Target, targets
from .variants import COPIED, INT8_CACHE

TESTS = ("decode", "prompt")
RATIO_NAMES = (ONE_PAIR, AVX2_PAIR, TWO_PAIRS)
CHOICES = (INT8_CACHE, COPIED)  # other ways to run one pair
LIMITS = {"file": "of the limit", "huge": "of huge pages"}  # columns, by pages


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
        "an empty context, or behind as many positions as its column says; a prompt is read at",
        "once, or as rows that are read over and over, and gives the logits of its last token.",
        "Prompts of several lengths in one table are beginnings of the longest, timed on the way.",
        "Ratios are taken inside a round. The read limit is a plain read of the file of one pair,",
        "and of a copy of it in huge pages, just before and after each decoding; a measurement",
        "during which other processes were busy is repeated. llama.cpp: -march=native, OpenMP,",
        "flash attention on (faster here than off), weights repacked where it can, float16 cache",
        "if it is not said. In the models of random weights, all its layers' matrices are of the",
        "named format (Q4_0 where 256 do not divide a row); its head is Q6_K (there Q8_0), ours",
        "int8.",
    ]
    lines += ["", f"Still disturbed when measured last: {header['disturbed']} measurements."]
    lines += ["", "## Targets", "", *_targets(targets(results))]
    for found in results.values():
        if found.model == EXTRAS:
            lines += ["", "## Others, SmolLM2-135M", "", *_others(found)]
        elif found.names:
            lines += ["", f"## {found.model}, {found.rounds} rounds", ""]
            lines += _speeds(found) if found.is_race else _by_test(found)
            lines += ["", *_ratios(found)]
            lines += ["", *_memory(found)] if COPIED in found.names else []
    return "\n".join(lines) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rows]]


def _targets(found: Sequence[Target]) -> list[str]:
    asked = [target for target in found if target.met is not None]
    rows = []
    for target in asked:
        sign = "<=" if target.at_most else ">="
        bound = f"{sign} {_quantity(target.bound, target.unit)}"
        measured, ceiling = _cell(target.found, target.unit), _median(target.ceiling, "x")
        verdict = "met" if target.met else "**missed**"
        rows.append((target.what, bound, measured, verdict, ceiling))
    table = _table(("", "target", "measured", "", "if ours read at the limit"), rows)
    left = len(found) - len(asked)
    return [*table, "", f"Targets of what this run did not measure: {left}."] if left else table


def _speeds(found: Results) -> list[str]:
    head = ["", "MB a token"]
    for threads in found.threads:
        head += [f"decode, {threads} thr.", "GB/s", *LIMITS.values()]
    prompts = [key for key in _columns(found) if key.test == "prompt"]
    head += [f"prompt, {key.threads} thr." for key in prompts]
    rows = []
    for name in found.names:
        row = [name, f"{found.described[name]['bytes_per_token'] / 1e6:.0f}"]
        for threads in found.threads:
            key = Key(name, "decode", threads)
            row += [_cell(found.value(key), "/s"), _median(found.gigabytes(key), "/s")]
            row += [_median(found.share_of_limit(key, pages), "%") for pages in LIMITS]
        row += [_cell(found.value(Key(name, key.test, key.threads)), "/s") for key in prompts]
        rows.append(row)
    limits = [f"{READ}, GB/s", ""]
    for threads in found.threads:
        limits += ["", "", *(_cell(found.limit(threads, pages), "/s") for pages in LIMITS)]
    return _table(head, [*rows, [*limits, *[""] * len(prompts)]])


def _columns(found: Results) -> list[Key]:
    """Every test at every number of threads, without a name, in the order of the rounds."""
    return list(dict.fromkeys(Key("", key.test, key.threads) for key in found.keys))


def _heads(found: Results) -> list[str]:
    return [f"{key.test}, {key.threads} thr." for key in _columns(found)]


def _by_test(found: Results) -> list[str]:
    rows = [
        [name]
        + [_cell(found.value(Key(name, key.test, key.threads)), "/s") for key in _columns(found)]
        for name in found.names
    ]
    return _table(["", *_heads(found)], rows)


def _memory(found: Results) -> list[str]:
    """Where weights lay, as the workers saw it."""
    said = {name: about.get("memory", "") for name, about in found.described.items()}
    read = found.described.get(READ, {})
    said |= {f"{READ} of {pages}": read.get(pages, "") for pages in PAGES}
    return [f"Weights: {'; '.join(f'{name}: {how}' for name, how in said.items() if how)}."]


def _ratios(found: Results) -> list[str]:
    """Ours over llama.cpp's; over our first, what is in these reports for its sake."""
    ours = [name for name in found.names if name in RATIO_NAMES or name in CHOICES]
    theirs = [name for name in found.names if name.startswith(peer(""))]
    pairs = [(a, b) for a in ours for b in theirs]
    pairs += [(name, ONE_PAIR) for name in ours if name in CHOICES]
    rows = [
        [a, b]
        + [
            _cell(found.ratio(replace(key, name=a), replace(key, name=b)), "x")
            for key in _columns(found)
        ]
        for a, b in pairs
    ]
    return _table(["ratio", "over", *_heads(found)], rows)


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
    columns += ["bytes_per_token", "gb_per_second", "share_of_limit", "share_of_huge", *header]
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for found in results.values():
        for key in found.keys:
            value = found.value(key)
            assert value is not None
            decoding = key.test == "decode"
            gigabytes = found.gigabytes(key) if decoding else None
            share = found.share_of_limit(key) if decoding else None
            of_huge = found.share_of_limit(key, "huge") if decoding else None
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
                    "share_of_huge": of_huge.median if of_huge else "",
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
