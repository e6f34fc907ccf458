"""Lines answered on a Ray cluster: the same file, whatever befalls its machines."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from edgedb.errors import EdgeDBError
from edgedb.jobs import cluster as on_ray
from edgedb.jobs.answering import Answering
from edgedb.jobs.batch import Opening
from edgedb.jobs.cluster import Worker, cluster
from edgedb.jobs.defaults import Defaults, identity
from edgedb.jobs.lines import parse_line

TRIAL = Path(__file__).with_name("ray_trial.py")
ENV = os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}
SLOW = int(os.environ.get("EDGEDB_SLOW", "0"))


@pytest.fixture(scope="module")
def alone() -> list[str]:
    """The command that runs another one without a network."""
    pytest.importorskip("ray.data", reason="needs Ray: pip install '.[ray]'")
    for command in (["unshare", "-n"], ["unshare", "-rn"]):
        if shutil.which("unshare") and subprocess.run([*command, "true"]).returncode == 0:
            return command
    pytest.skip("may not make a network namespace here (unshare -n)")


def write_input(path: Path, n: int, max_tokens: int) -> None:
    system = "You are a helpful assistant. " * 10
    lines = [
        {"id": i, "prompt": f"{system} {i}" if i % 2 else f"{i}", "max_tokens": max_tokens}
        for i in range(n)
    ]
    lines[3]["max_tokens"] = -1
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_nothing_is_lost_and_nothing_done_twice(
    alone: list[str], tiny_model: Path, tmp_path: Path
) -> None:
    """With ``EDGEDB_SLOW`` of 500 lines, and the driver is killed too."""
    n, more = (500, ["20", "driver"]) if SLOW else (60, ["2"])
    write_input(tmp_path / "in.jsonl", n, 200)
    here = [sys.executable, "-m", "edgedb", "batch", "in.jsonl", "here.jsonl"]
    subprocess.run([*here, "--model", str(tiny_model)], cwd=tmp_path, env=ENV)
    trial = [
        *alone,
        sys.executable,
        str(TRIAL),
        str(tmp_path),
        str(tiny_model),
        "20" if SLOW else "2",
    ]
    trial += more
    done = subprocess.run(trial, env=ENV, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["workers"] == [1, 1]
    assert seen["worker killed"] < seen["machine gone"] < seen.get("driver killed", n - 1) < n
    assert seen["code"] == 3, seen["said"]
    assert f"{n} lines, 1 failed" in seen["said"]
    assert (tmp_path / "ray.jsonl").read_bytes() == (tmp_path / "here.jsonl").read_bytes()


def test_a_worker_answers_lines_or_says_why_not(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_ray, "_threads", lambda: 1)
    opening, defaults = Opening(str(tiny_model)), Defaults(max_tokens=3)
    model = opening.model()
    expected = identity(model, defaults)
    text = '{"id": "a", "prompt": "Hi"}'
    batch = {"number": np.array([7, 9]), "text": np.array([text, text.replace("a", "b", 1)])}
    records = Worker(opening, defaults, expected)(batch)
    alone = Answering(model, defaults)(parse_line(7, text), lambda: False)
    assert {name: column[0] for name, column in records.items()} == asdict(alone)
    assert records["number"] == [7, 9]
    missing = Opening(str(tiny_model.with_name("none.dbb")))
    for opened, wanted, words in (
        (opening, expected | {"model": "another"}, "and 'another' here"),
        (missing, expected, "none.dbb: no such file"),
    ):
        refused = Worker(opened, defaults, wanted)(batch)
        assert refused["number"] == [on_ray._REFUSED] * 2 and words in refused["text"][0]


def test_no_cluster_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray.data", reason="needs Ray: pip install '.[ray]'")
    with pytest.raises(EdgeDBError, match=r"no Ray cluster at auto \(.*start one"), cluster("auto"):
        pass


def test_without_ray_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EdgeDBError, match=r"pip install .ray\[data\]"), cluster("auto"):
        pass
