"""The README's picture: what was recorded, and nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from bench.quality import picture, speed


@pytest.fixture
def record() -> dict[str, Any]:
    """Both races: a wide one of both engines, and the real one without it."""
    rates = {"edgedb 2.3": 300, "llama.cpp Q4_0": 100}
    decode = [
        {
            "model": speed.WIDE,
            "name": name,
            "threads": n,
            "median": n * r,
            "low": r,
            "high": 2.5 * r,
        }
        for name, r in rates.items()
        for n in (1, 2)
    ]
    rows = [
        {"kind": "edgedb", "name": "edgedb 2.3", "layer_bits": 2.3, "kl": 0.96},
        {"kind": "edgedb", "name": "edgedb 4.5", "layer_bits": 4.5, "kl": 0.08},
        {"kind": "llama.cpp", "name": "Q4_0", "padded": False, "layer_bits": 4.5, "kl": 0.2},
    ]
    at = {"cpu": "A CPU", "commit": "abc"}
    return {"rows": rows, "decode": decode, "decode_at": at}


def test_points_are_of_the_faster_number_of_threads(record: dict[str, Any]) -> None:
    found = picture.points(record)
    assert [(p.name, p.speed, p.kl) for p in found] == [
        ("edgedb, 2.3 bits", (600, 300, 750.0), 0.96),
        ("Q4_0", (200, 100, 250.0), 0.2),
    ]


def test_without_a_race_in_one_shape_the_default_model_stands(record: dict[str, Any]) -> None:
    record["rows"].append(
        {"kind": "edgedb, model", "name": "default", "layer_bits": 3.45, "kl": 0.2}
    )
    for rate in record["decode"]:
        rate["model"] = speed.SMOLLM2
        rate["name"] = rate["name"].replace("edgedb 2.3", speed.DEFAULT)
    names = [point.name for point in picture.points(record)]
    assert names == ["edgedb, 3.5 bits, trained", "Q4_0"]


def test_labels_do_not_cover_each_other(record: dict[str, Any]) -> None:
    for name, median in (("Q5_0", 201), ("Q4_K_M", 202)):
        record["rows"].append({**record["rows"][2], "name": name, "padded": True, "kl": 0.2})
        rate = {"model": speed.WIDE, "name": f"llama.cpp {name}", "threads": 1}
        record["decode"].append({**rate, "median": median, "low": median, "high": median})
    drawn = picture.draw(record)
    at = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" text-anchor="start" fill="#8a8f98">', drawn)
    assert len(at) == len(set(at)) == 2  # Q5_0 is no format of that race


def test_the_picture_of_the_readme_is_drawn_of_the_record(tmp_path: Path) -> None:
    """``python -m bench.quality.picture`` draws it anew."""
    output = tmp_path / "p.svg"
    assert CliRunner().invoke(picture.main, ["--output", str(output)]).exit_code == 0
    assert output.read_text("utf-8") == picture.PICTURE.read_text("utf-8")
    record = json.loads(picture.RECORD.read_text("utf-8"))
    assert len(picture.points(record)) >= 5
