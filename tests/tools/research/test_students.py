"""Jobs of small language models: their order, and some of them done."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch: make test installs its CPU build")

from tools.decoder import mean_square_inputs  # noqa: E402
from tools.research.grids import Grid  # noqa: E402
from tools.research.jobs import QUESTIONS, SMALL, Job, Size, jobs, trials  # noqa: E402
from tools.research.pool import run  # noqa: E402
from tools.research.results import Results  # noqa: E402
from tools.research.students import Laboratory, rounded_to_nearest  # noqa: E402
from tools.research.teachers import FAMILIES, Shape, Trained, untrained  # noqa: E402
from tools.stacks import FDBStack  # noqa: E402
from tools.student import FDBLinear, make_student  # noqa: E402
from tools.weights import all_weights  # noqa: E402

SIZE = replace(SMALL, steps=(2, 3, 4))
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text in which a token says much of the next."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    steps = rng.integers(1, 4, 6000).cumsum() % 512
    np.save(folder / "real-walk.npy", steps[:5000].astype(np.uint16))
    (folder / "held-out").mkdir()
    held_out = steps[5000 : 5000 + 4 * 32].reshape(4, 32)
    np.save(folder / "held-out" / "walk.npy", held_out.astype(np.uint16))
    return folder


@pytest.fixture(scope="module")
def laboratory(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Laboratory:
    made = Laboratory(corpus, tmp_path_factory.mktemp("work"), SIZE, CPU)
    made.do(Job("llama"))
    return made


@pytest.mark.parametrize("size", [Size(), SMALL])
def test_each_job_comes_once_and_behind_what_it_needs(size: Size) -> None:
    found = jobs(size)
    keys = [job.key for job in found]
    assert len(set(keys)) == len(keys) and len({job.file for job in found}) == len(keys)
    for i, job in enumerate(found):
        assert {need.key for need in job.needs(size)} <= set(keys[:i])


def test_questions_ask_for_equal_compute() -> None:
    size = Size()
    for name, steps in (("architectures", {0, size.usual}), ("elsewhere", {size.usual})):
        assert {job.steps for job in QUESTIONS[name](size)} == steps
    losses = [(j.student, j.seed, j.gamma) for j in QUESTIONS["elsewhere"](size)]
    assert len(losses) == 3 * 3 * 2
    pairs = {(student, seed) for student, seed, _ in losses}
    assert all({g for s, d, g in losses if (s, d) == pair} == {None, 0.3} for pair in pairs)
    tokens = [steps * size.batch * size.length / 1e6 for steps in size.steps]
    assert tokens == pytest.approx([2, 6.5, 65], rel=0.01)


@pytest.mark.parametrize("family", FAMILIES)
def test_teachers_have_20m_parameters_alike(family: str) -> None:
    config = Shape().config(family)
    assert all_weights(config) == pytest.approx(21e6, rel=0.02)
    model = untrained(Shape(96, 64, 2, 2, 32).config(family), 0, CPU)
    logits = model.logits(torch.arange(20)[None])
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    assert (entropy > 0.98 * np.log(96)).all()  # knows nothing yet


def test_a_teacher_learns_from_text_alone(corpus: Path, tmp_path: Path) -> None:
    losses = {}
    for steps in (1, 60):
        laboratory = Laboratory(
            corpus, tmp_path / str(steps), replace(SIZE, teacher_steps=steps), CPU
        )
        found = laboratory.do(Job("opt"))
        losses[steps] = found["quality"]["walk"]["ppl"]
        assert found["quality"]["walk"]["kl"] == pytest.approx(0, abs=1e-6)
        assert found["tokens"] == steps * SIZE.teacher_batch * SIZE.length
    assert losses[1] > 450 and losses[60] < 350
    stored = Trained(tmp_path / "60" / Job("opt").file)
    assert stored.config == SIZE.shape.config("opt")
    assert stored.load(CPU).logits(torch.arange(9)[None]).isfinite().all()


def test_starts_are_what_they_are_called(laboratory: Laboratory) -> None:
    teacher, _ = laboratory.teacher("llama")
    kinds = {
        "fdb": {FDBLinear},
        "ternary": {Grid},
        "three planes": {FDBStack},
        "mixed": {FDBStack},  # both layers, which are the first and the last
    }
    for student, expected in kinds.items():
        job = Job("llama", student, "weighted")
        laboratory.do(job)
        empty = laboratory._empty(job, teacher)
        empty.load_state_dict(torch.load(laboratory.work / job.file, weights_only=True))
        assert {type(module) for _, module in empty.matrices()} == expected
    planes = {module.planes for _, module in empty.matrices()}
    assert planes == {4}
    ids = laboratory._calibration()
    plain = make_student(teacher, "weighted", mean_square_inputs(teacher, ids))
    stored = torch.load(laboratory.work / Job("llama", "fdb", "weighted").file, weights_only=True)
    assert all(torch.equal(stored[name], value) for name, value in plain.state_dict().items())


def test_nearest_rounds_to_a_grid_that_clips_nothing(laboratory: Laboratory) -> None:
    teacher, _ = laboratory.teacher("llama")
    theirs = dict(teacher.matrices())
    for name, module in rounded_to_nearest(teacher).matrices():
        off = (module.weight() - theirs[name].weight).abs().unflatten(1, (-1, 64)).amax(-1)
        step = module.alpha2.abs()[..., 0]
        assert (off <= 0.55 * step).all()  # half a step, and 8-bit codes


@pytest.mark.parametrize("start", ["feedback", "blocks"])
def test_starts_by_layers_come_nearer_to_the_teacher(laboratory: Laboratory, start: str) -> None:
    kl = {}
    for which in ("absmax", start):
        kl[which] = laboratory.do(Job("llama", "fdb", which))["quality"]["walk"]["kl"]
    assert kl[start] < kl["absmax"]


def test_jobs_are_done_once_over_several_runs(corpus: Path, tmp_path: Path) -> None:
    """A run that is given no time does nothing, the next what is left, the last nothing again."""
    results = Results(tmp_path / "r.jsonl")
    wanted = [Job("llama"), Job("llama", "fdb", "weighted"), *trials(SIZE)]
    wanted.append(Job("llama", "fdb", "weighted", 0.3, 2, 1))
    wanted.append(Job("llama", "fdb", "no such start"))
    folder = tmp_path / "work"

    def go(seconds: float) -> list[str]:
        return run(wanted, results, corpus, folder, SIZE, ["cpu"] * 2, seconds=seconds)

    assert go(0.0) == [job.key for job in wanted] and not results.read()
    assert go(300.0) == [wanted[-1].key]  # that one fails, and no other for it
    records = {record["key"]: record for record in results.read()}
    assert set(records) == {job.key for job in wanted[:-1]}
    last = records[wanted[-2].key]
    rates = {
        r["rate"]: r["quality"]["walk"]["kl"] for r in records.values() if r["kind"] == "trial"
    }
    assert last["rate"] == min(rates, key=rates.__getitem__)
    assert last["tokens"] == 2 * SIZE.batch * SIZE.length
    assert len(last["quality"]["walk"]["mass"]) == 10
    before = results.path.read_bytes()
    with results.path.open("a") as file:
        file.write(json.dumps({"key": "cut"})[:5])  # by a kill
    assert Results(results.path).read() == list(records.values())
    assert go(300.0) == [wanted[-1].key] and results.path.read_bytes() == before
    # On another machine, where the weights are not: what the last training needs is made anew.
    lines = before.splitlines(True)
    results.path.write_bytes(
        b"".join(line for line in lines if wanted[-2].key.encode() not in line)
    )
    shutil.rmtree(folder)
    assert go(300.0) == [wanted[-1].key]
    again = results.read()
    assert sorted(r["key"] for r in again) == sorted(records)
    assert again[-1]["quality"] == last["quality"]
