"""The fuzzer itself: it must see a crash, a hang and a traceback, or its zeros mean nothing."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from random import Random

import pytest
from checkpoints import write_hf
from places import ROOT
from tiny_tokenizers import byte_level_bpe

sys.path.insert(0, str(ROOT))


from edgedb import EdgeDBError
from edgedb.convert.sources import open_source
from edgedb.model.families import FAMILIES
from tests.fuzz import runner, worker
from tests.fuzz.kinds import KINDS, Files, Kind, exporting
from tests.fuzz.report import Count, Finding, table

_WAYS = (*[b"good", b"refused", b"silent", b"bug"] * 3, b"crash", b"hang", b"eat")


def test_it_has_a_good_checkpoint_of_every_family(tmp_path: Path) -> None:
    assert exporting.FAMILIES.keys() == FAMILIES.keys()
    for family in FAMILIES:
        config, tensors = exporting.checkpoint(family, 401)
        folder = write_hf(tmp_path / family, byte_level_bpe(), tensors=tensors, **config)
        assert open_source(folder).config.model_type == family


class _Behaving(Kind):
    """Does what its input says."""

    name = "behaving"
    share = 1

    def make(self, rng: Random) -> Files:
        return {"what": rng.choice(_WAYS)}

    def use(self, files: Files, folder: Path) -> None:
        what = files["what"]
        if what == b"refused":
            raise EdgeDBError("one line")
        if what == b"silent":
            raise EdgeDBError("")
        if what == b"bug":
            raise IndexError("a bug")
        if what == b"crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if what == b"eat":
            bytearray(2 * worker.MEMORY_BYTES)
        while what == b"hang":
            pass


def test_it_sees_every_way_to_fail(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(KINDS, "behaving", _Behaving())
    monkeypatch.setattr(runner, "HANG_SECONDS", 0.2)
    plan = runner.Plan(["behaving"], seed=1, workers=1)
    counts, found = runner.run(plan, seconds=60, keep=tmp_path, inputs=40)
    kinds = {finding.what.split(":")[0].split(" in ")[0] for finding in found}
    assert kinds == {
        "a refusal that is not one line", "IndexError", "MemoryError", "crash", "hang"
    }  # fmt: skip
    count = counts["behaving"]
    assert count.accepted and count.refused and count.findings == len(found)
    assert f"| behaving | {count.inputs} | {count.accepted} |" in table(counts, 1)


def test_a_finding_is_kept_and_tried_again(tmp_path: Path) -> None:
    finding = Finding("dbb", "3:17", "crash", "detail", {"model.dbb": b"\0\xff"})
    assert Finding.load(finding.save(tmp_path)) == finding


def test_the_jobs_of_all_workers_are_those_of_one() -> None:
    jobs = [runner.Plan(list(KINDS), 5, 3).jobs(i) for i in range(3)]
    together = [next(jobs[i % 3]) for i in range(60)]
    alone = runner.Plan(list(KINDS), 5, 1).jobs(0)
    assert together == [next(alone) for _ in range(60)]


@pytest.mark.parametrize("name", list(KINDS))
def test_inputs_follow_from_their_seed_and_are_of_both_kinds(name: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    kind.prepare(tmp_path)
    kind.open()
    counts = Count()
    for number in range(60):
        files = worker.input_of(name, f"0:{number}")
        assert files == worker.input_of(name, f"0:{number}")
        what, detail, _ = worker.attempt(name, files, tmp_path / "input")
        assert what in ("accepted", "refused"), detail
        counts.accepted += what == "accepted"
        counts.refused += what == "refused"
    assert counts.accepted > 2 and counts.refused > 2
