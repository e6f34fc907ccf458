"""Text that a model samples: scripts, temperatures, shards."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install '.[train]'")
torch.set_num_threads(1)  # more cost more than they give on matrices this small

from tiny import TinySource, family_source  # noqa: E402
from training import PLAN, SCRIPTS  # noqa: E402

from edgedb.errors import EdgeDBError  # noqa: E402
from edgedb.model.families import FAMILIES  # noqa: E402
from tools.decoder import load_teacher  # noqa: E402
from tools.generate import SAMPLED, Sampler, SamplingPlan, generate  # noqa: E402
from tools.generate import main as sample_text  # noqa: E402
from tools.scripts import Scripts  # noqa: E402

ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def test_sampled_text_follows_its_script() -> None:
    ids = Sampler(load_teacher(TinySource()), PLAN, torch.float32).sample(SCRIPTS, 0)
    assert ids.shape == (16, 24) and ids.min() >= 0 and ids.max() < 96
    chat = ids[:8]
    assert {tuple(row[:2]) for row in chat} <= {(1, 5), (1, 7)}
    for row in chat:
        turns = 0
        places = np.flatnonzero(row == SCRIPTS.end_id)
        for place in places[places > 3]:
            if place + 2 < len(row):
                follows = (SCRIPTS.answer_turn, SCRIPTS.next_turn)[turns % 2]
                assert tuple(row[place + 1 : place + 1 + len(follows)]) == follows
                turns += 1
    assert SAMPLED not in ids


def test_questions_have_their_own_temperature() -> None:
    """Near zero for questions: from one start always the same one, and then answers that differ."""
    one_start = replace(SCRIPTS, chat_starts=((1, 5, 6),), end_id=0)
    plan = replace(PLAN, temperatures=(3.0,), question_temperature=1e-6, chat_share=1.0, length=64)
    ids = Sampler(load_teacher(TinySource()), plan, torch.float32).sample(one_start, 0)
    ends = [int(np.argmax(row == 0)) or len(row) for row in ids]
    assert len({tuple(row[: ends[0]]) for row in ids}) == 1
    answers_too = replace(plan, question_temperature=None)
    ids = Sampler(load_teacher(TinySource()), answers_too, torch.float32).sample(one_start, 0)
    assert len({tuple(row[:8]) for row in ids}) > 1


def test_a_student_samples_text_of_its_own(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "text"
    options = ["--shards", "1", "--sequences", "4", "--length", "16", "--question-temperature", "1"]
    monkeypatch.setattr(sys, "argv", ["generate", str(tiny_model), str(out), *options])
    sample_text()
    assert np.load(out / "sampled-0000.npy").shape == (4, 16)
    assert json.loads((out / "sampled.json").read_text())["question_temperature"] == 1


def test_questions_begin_with_the_stems_of_a_file(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgedb.model.dbb import read_dbb
    from edgedb.text.tokenizer import load_tokenizer

    stems, out = tmp_path / "stems", tmp_path / "text"
    command = ["generate", str(tiny_model), str(out), "--stems", str(stems), "--chat-share", "1"]
    command += ["--shards", "1", "--sequences", "8", "--length", "48"]
    monkeypatch.setattr(sys, "argv", command)
    stems.write_text("the sea is\n\nWhat girl\n")
    sample_text()
    tokenizer = load_tokenizer(read_dbb(tiny_model).tokenizer)
    texts = [tokenizer.decode(row) for row in np.load(out / "sampled-0000.npy").tolist()]
    assert all("the sea is" in text or "What girl" in text for text in texts)
    stems.write_text("other\n")
    with pytest.raises(SystemExit):  # the folder holds text of other stems
        sample_text()
    stems.write_text("\n")
    with pytest.raises(SystemExit):
        sample_text()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=ON_GPU)])
@pytest.mark.parametrize("name", FAMILIES)
def test_sampler_follows_the_decoders_distribution(name: str, device: str) -> None:
    """Greedy (a temperature near zero) continuations are the decoder's own, past one bucket of the
    cache; on a GPU they come from captured graphs."""
    teacher = load_teacher(family_source(name), device)
    plan = SamplingPlan(sequences=4, length=140, temperatures=(1e-6,), chat_share=0)
    ids = torch.from_numpy(Sampler(teacher, plan, torch.float32).sample(Scripts(), 1))
    likeliest = teacher.logits(ids.to(device)).argmax(-1)[:, :-1].cpu()
    assert (likeliest == ids[:, 1:]).float().mean() > 0.99  # there may be a draw


def test_generate_resumes_and_refuses_another_plan(tmp_path: Path) -> None:
    teacher = load_teacher(TinySource())
    generate(teacher, SCRIPTS, PLAN, tmp_path, shards=2)
    first = (tmp_path / "sampled-0001.npy").read_bytes()
    (tmp_path / "sampled-0001.npy").unlink()
    generate(teacher, SCRIPTS, PLAN, tmp_path, shards=2)
    assert (tmp_path / "sampled-0001.npy").read_bytes() == first
    with pytest.raises(EdgeDBError, match="other settings"):
        generate(teacher, SCRIPTS, replace(PLAN, seed=1), tmp_path, shards=3)
