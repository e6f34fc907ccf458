"""``edgedb fits`` and ``edgedb convert --dry-run``, and the page that the same rows make."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkpoints import CONFIG, write_hf
from click.testing import CliRunner, Result
from fake_hub import FakeHub
from places import ROOT

from edgedb.cli.commands import main
from edgedb.cli.fits import speed_text
from edgedb.files import size_text
from edgedb.measure.estimates import PAIRS, known_models, of_machine, of_model
from edgedb.measure.known import MACHINES, Machine

NAME = "owner/tiny"
PAGE = ROOT / "docs" / "fits.md"
TABLE = re.compile(r"(?<=<!-- edgedb fits -->\n).*(?=<!-- end -->)", re.DOTALL)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def rows(*arguments: object) -> list[dict[str, object]]:
    done = run("fits", "--json", *arguments)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)["rows"]


def test_everything_known_on_another_machine() -> None:
    done = run("fits", "--memory", "8GB", "--bandwidth", "17GB/s")
    assert done.exit_code == 0 and "8.00 GB of memory read at 17.0 GB/s" in done.stdout
    for name, _ in known_models():
        assert name in done.stdout
    found = {row["model"]: row for row in rows("--memory", "8GB", "--bandwidth", "17GB/s")}
    assert found["Qwen/Qwen3-4B"]["tokens_per_second"] == pytest.approx(6.9, abs=0.1)
    assert found["Qwen/Qwen3-30B-A3B"]["fits"] is False


def test_of_a_known_model_nothing_is_asked(hub: FakeHub) -> None:
    found = rows("Qwen/Qwen3-8B", "--memory", "8GB", "--kv-dtype", "int8", "--context", 1000)
    assert [row["fits"] for row in found] == [True, True, True, False]
    assert not hub.requests


def test_a_model_on_the_hub_by_its_config_alone(
    hub: FakeHub, tiny_bpe: bytes, tmp_path: Path
) -> None:
    folder = write_hf(tmp_path / "checkpoint", tiny_bpe)
    hub.put(NAME, {path.name: path.read_bytes() for path in folder.iterdir()})
    found = rows(NAME)
    assert [row["stored"] for row in found] == ["1 pair", "1.5 pairs", "2 pairs", "3 pairs"]
    assert "One pair is useless without training" in run("fits", NAME).stdout
    dry = run("convert", NAME, "--dry-run", "--bits", "2.9")
    assert dry.exit_code == 0 and re.search(r"owner/tiny +2.9 bits +2.9 ", dry.stdout)
    assert set(hub.fetched()) == {"config.json"}
    hub.put("owner/other", {"model.gguf": b"GGUF"})
    done = run("fits", "owner/other")
    assert done.exit_code == 2 and "owner/other: it has no config.json; what a" in done.stderr


def test_a_folder_needs_no_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert len(rows(tmp_path)) == len(PAIRS)
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "model_type": "strange"}))
    done = run("fits", tmp_path)
    assert done.exit_code == 2 and "strange" in done.stderr


def test_a_model_file_comes_first_as_it_is(tiny_model: Path) -> None:
    found = rows(tiny_model, "--measure")
    assert found[0]["stored"] == tiny_model.name
    assert found[0]["file_bytes"] == tiny_model.stat().st_size
    assert all(row["tokens_per_second"] > 0 for row in found)


@pytest.mark.parametrize(
    ("options", "stored"),
    [
        (("--pairs", "1.5"), "1.5 pairs "),
        (("--size", "1MB"), "at most 1 MB "),
        (("--method", "int8"), "int8 "),
        (("--plan", "layers.0=3"), "2 pairs with a plan "),
    ],
)
def test_a_dry_run_says_what_the_options_give(
    tmp_path: Path, options: tuple[str, ...], stored: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    done = run("convert", tmp_path, "--dry-run", *options)
    assert done.exit_code == 0 and f"  {stored}" in done.stdout
    assert os.listdir(tmp_path) == ["config.json"]


def test_what_contradicts_itself_is_refused() -> None:
    for options, words in (
        (("fits", "--memory", "8GB", "--measure"), "--measure is about this machine"),
        (("fits", "--memory", "much"), "is no size, such as"),
        (("fits", "--bandwidth", "17GB/h"), "is no speed, such as 17GB/s"),
        (("convert", "a/b", "--dry-run", "--train", "blocks"), "not of --train"),
        (("convert", "a/b"), "a model on the hub: edgedb pull a/b"),
    ):
        done = run(*options)
        assert done.exit_code == 2 and words in done.stderr


def table() -> Iterator[str]:
    """The rows of the page: models by pairs, with tokens a second on each machine."""
    titles = ("model", "pairs", "bits", "file", "memory", *(m.name for m in MACHINES))
    yield f"| {' | '.join(titles)} |"
    yield "|---" * len(titles) + "|"
    for name, config in known_models():
        each = [of_model(name, config, machine, PAIRS[1:]) for machine in MACHINES]
        for found in zip(*each, strict=True):
            first = found[0]
            cells = (
                name if first.stored == "1.5 pairs" else "",
                first.stored.split()[0],
                f"{first.layer_bits:.1f}",
                size_text(first.file_bytes),
                size_text(first.memory_bytes),
                *(speed_text(row.tokens_per_second or 0) if row.fits else "no" for row in found),
            )
            yield f"| {' | '.join(cells)} |"


def table_of_the_pi() -> Iterator[str]:
    """At two pairs, or at one and a half."""
    titles = ("model", "pairs", "file", "memory", "tokens a second, at most", "two thirds of it")
    yield f"| {' | '.join(titles)} |"
    yield "|---" * len(titles) + "|"
    for row in of_machine(MACHINES[0]):
        if row.fits:
            speed = row.tokens_per_second or 0
            cells = (
                row.model,
                row.stored.split()[0],
                size_text(row.file_bytes),
                size_text(row.memory_bytes),
                speed_text(speed),
                speed_text(2 * speed / 3),
            )
            yield f"| {' | '.join(cells)} |"


PI = (ROOT / "docs" / "raspberry-pi.md", re.compile(r"(?<=<!-- pi -->\n).*(?=<!-- end -->)", re.S))


@pytest.mark.parametrize(("page", "part"), [(PAGE, TABLE), PI], ids=["fits", "raspberry-pi"])
def test_the_pages_are_what_the_command_says(page: Path, part: re.Pattern[str]) -> None:
    """``EDGEDB_WRITE_DOCS=1`` writes them anew."""
    text = page.read_text(encoding="utf-8")
    rows = table() if page is PAGE else table_of_the_pi()
    current = part.sub(lambda _: "\n" + "\n".join(rows) + "\n\n", text)
    if os.environ.get("EDGEDB_WRITE_DOCS"):
        page.write_text(current, encoding="utf-8")
    else:
        assert current == text


def test_the_page_names_the_machines() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for machine in MACHINES:
        memory = f"{machine.memory_bytes // 10**9}GB"
        assert f"--memory {memory} --bandwidth {machine.bandwidth / 1e9:g}GB/s" in text
    assert f"{Machine.OTHERS_BYTES // 10**9} GB" in text
