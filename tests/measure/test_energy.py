"""RAPL's counters in a tree of files such as /sys has."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgedb.cli.commands import main
from edgedb.errors import EdgeDBError
from edgedb.measure import benchmark, energy


def zone(sys: Path, path: str, name: str, microjoules: int, largest: int = 262143328850) -> Path:
    folder = sys / "class/powercap" / path
    folder.mkdir(parents=True)
    (folder / "name").write_text(name + "\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    (folder / "max_energy_range_uj").write_text(f"{largest}\n")
    return folder / "energy_uj"


def test_packages_are_added_and_their_parts_are_not(tmp_path: Path) -> None:
    first = zone(tmp_path, "intel-rapl:0", "package-0", 5_000_000)
    second = zone(tmp_path, "intel-rapl:1", "package-1", 7_000_000)
    core = zone(tmp_path, "intel-rapl:0:0", "core", 3_000_000)
    psys = zone(tmp_path, "intel-rapl:2", "psys", 9_000_000)
    meter = energy.find(tmp_path)
    assert [counter.name for counter in meter.counters] == ["package-0", "package-1"]
    assert meter.joules() == 0
    for file, microjoules in (
        (first, 6_500_000),
        (second, 7_250_000),
        (core, 10**9),
        (psys, 10**9),
    ):
        file.write_text(str(microjoules))
    assert meter.joules() == pytest.approx(1.75)
    assert meter.joules() == 0


def test_a_counter_goes_round(tmp_path: Path) -> None:
    file = zone(tmp_path, "intel-rapl:0", "package-0", 999_000, largest=1_000_000)
    meter = energy.find(tmp_path)
    file.write_text("500")
    assert meter.joules() == pytest.approx(0.0015)


def hwmon(sys: Path) -> Path:
    chip = sys / "class/hwmon/hwmon3"
    chip.mkdir(parents=True)
    (chip / "name").write_text("amd_energy\n")
    for i, (label, value) in enumerate((("Ecore000", 11), ("Esocket0", 4_000_000)), 1):
        (chip / f"energy{i}_label").write_text(label)
        (chip / f"energy{i}_input").write_text(str(value))
    return chip / "energy2_input"


def test_amd_energy_is_read_by_sockets(tmp_path: Path) -> None:
    file = hwmon(tmp_path)
    other = tmp_path / "class/hwmon/hwmon0"
    other.mkdir()
    (other / "name").write_text("k10temp\n")
    (other / "energy1_label").write_text("Esocket0")
    meter = energy.find(tmp_path)
    file.write_text("4500000")
    assert meter.joules() == 0.5
    file.write_text("1")  # which that driver never does
    with pytest.raises(EdgeDBError, match="went back"):
        meter.joules()


def test_powercap_is_asked_before_hwmon(tmp_path: Path) -> None:
    hwmon(tmp_path)
    zone(tmp_path, "intel-rapl:0", "package-0-die-1", 1)
    assert [c.name for c in energy.find(tmp_path).counters] == ["package-0-die-1"]


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(EdgeDBError, match="no energy counters"):
        energy.find(tmp_path)
    file = zone(tmp_path, "intel-rapl:0", "package-0", 1)
    for content in ("", "many", "-3", "1" * 21):
        file.write_text(content)
        with pytest.raises(EdgeDBError, match="expected a number of microjoules"):
            energy.find(tmp_path)
    file.unlink()
    with pytest.raises(EdgeDBError, match="energy_uj: No such file"):
        energy.find(tmp_path)


def test_what_root_alone_reads_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = zone(tmp_path, "intel-rapl:0", "package-0", 1)
    if os.geteuid() == 0:  # may read everything

        def refuse(self: Path, *args: object, **options: object) -> str:
            if self == file:
                raise PermissionError(13, "Permission denied")
            return original(self, *args, **options)

        original = Path.read_text
        monkeypatch.setattr(Path, "read_text", refuse)
    else:
        file.chmod(0)
    with pytest.raises(EdgeDBError, match="root alone"):
        energy.find(tmp_path)


class Rising(energy.Meter):
    """Three joules at every look."""

    def __init__(self) -> None:
        super().__init__([])
        self.looks = 0

    def joules(self) -> float:
        self.looks += 1
        return 3.0


def test_rows_have_the_energy_of_a_token(tiny_model: Path) -> None:
    meter = Rising()
    rows = benchmark.run(tiny_model, prompt=(4,), decode=(2,), repetitions=2, meter=meter)
    assert [(row.test, row.joules) for row in rows] == [("pp4", 3 / 4), ("tg2", 3 / 2)]
    assert meter.looks == 2 * (1 + 2 * 2)  # before each, and after those that count
    assert "mJ/token |" in benchmark.report(rows)
    assert "| 750.0 |" in benchmark.report(rows)
    assert json.loads(benchmark.report(rows, "json"))["rows"][0]["joules"] == 3 / 4
    assert "mJ" not in benchmark.report(benchmark.run(tiny_model, prompt=(4,), decode=()))


@pytest.mark.parametrize("there", [True, False])
def test_the_command_measures_energy_or_says_why_not(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    if there:
        zone(tmp_path, "intel-rapl:0", "package-0", 1)
    monkeypatch.setattr(energy, "SYS", tmp_path)
    arguments = ["bench", str(tiny_model), "--prompt", "4", "--decode", "2", "--repetitions", "1"]
    found = CliRunner().invoke(main, [*arguments, "--energy"])
    assert found.exit_code == 0 and "| pp4 |" in found.output
    assert ("mJ/token" in found.output) == there
    assert ("no energy counters" in found.stderr) != there


def test_a_draft_has_no_energy_of_its_own(tiny_model: Path) -> None:
    asked = ["bench", str(tiny_model), "--draft", str(tiny_model), "--energy"]
    found = CliRunner().invoke(main, asked)
    assert found.exit_code == 2 and "--energy is for speeds without a --draft" in found.output
