"""Multiple choice against a plain computation from the model's own logits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import edgedb
from edgedb import EdgeDBError
from edgedb.measure.choices import Question, _Reader, multiple_choice, read_questions


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> edgedb.Model:
    return edgedb.load(tiny_model, context=128)


def plain_score(model: edgedb.Model, context: str, ending: str) -> float:
    ids, start = model.tokenize(context + ending), len(model.tokenize(context))
    logits = model.logits(ids).astype(np.float64)
    logits -= np.logaddexp.reduce(logits, axis=1, keepdims=True)
    return sum(logits[i - 1, ids[i]] for i in range(max(1, start), len(ids)))


CONTEXTS = ("Once upon a time there was a", "Once upon a time the", "")
ENDINGS = (" little girl named Lily.", " sea", " small house near the sea, and she liked it.")


def test_scores_do_not_depend_on_what_was_read_before(model: edgedb.Model) -> None:
    reader = _Reader(model)
    pairs = [(context, ending) for context in CONTEXTS for ending in ENDINGS]
    for context, ending in [*pairs, *pairs[::-1]]:
        found = reader.score(context, ending)
        assert found == pytest.approx(plain_score(model, context, ending), rel=1e-5)


def test_accuracies(model: edgedb.Model) -> None:
    questions, right, normalized = [], 0, 0
    for gold, context in enumerate(CONTEXTS[:2]):
        scores = [plain_score(model, context, ending) for ending in ENDINGS]
        lengths = [len(ending) - 1 for ending in ENDINGS]
        right += int(np.argmax(scores) == gold)
        normalized += int(np.argmax(np.divide(scores, lengths)) == gold)
        endings = tuple(ending[1:] for ending in ENDINGS)
        questions.append(Question((context,) * 3, endings, gold))
    seen: list[int] = []
    found = multiple_choice(model, questions, progress=lambda done, *_: seen.append(done))
    assert (found.accuracy, found.normalized) == (right / 2, normalized / 2)
    assert seen == [1, 2]


def test_contexts_may_differ_instead(model: edgedb.Model) -> None:
    scores = [plain_score(model, context, " girl") for context in CONTEXTS[:2]]
    question = Question(CONTEXTS[:2], ("girl", "girl"), int(np.argmax(scores)))
    assert multiple_choice(model, [question]).accuracy == 1


def test_a_long_text_loses_its_beginning(model: edgedb.Model) -> None:
    words = "the little girl lived near the sea and liked to play "
    ids = model.tokenize(words * 12 + "all day")
    assert len(ids) > model.context
    found = _Reader(model).score((words * 12).rstrip(), " all day")
    kept = model.tokenize(words * 12 + "all day")[-model.context :]
    logits = model.logits(kept).astype(np.float64)
    logits -= np.logaddexp.reduce(logits, axis=1, keepdims=True)
    n = len(ids) - len(model.tokenize((words * 12).rstrip()))
    plain = sum(logits[i - 1, kept[i]] for i in range(len(kept) - n, len(kept)))
    assert found == pytest.approx(plain, rel=1e-5)


def test_questions_are_read(tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    entries = [
        {"context": "Q", "choices": ["a", "b"], "gold": 1},
        {"contexts": ["x", "y"], "continuation": "z", "gold": 0},
    ]
    file.write_text("\n".join(map(json.dumps, entries)))
    assert read_questions(file) == [
        Question(("Q", "Q"), ("a", "b"), 1),
        Question(("x", "y"), ("z", "z"), 0),
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("not JSON", "not valid JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('{"context": "Q", "choices": ["a"], "gold": ' + "[" * 200 + "]" * 200 + "}", "64 deep"),
        ('{"context": "Q", "gold": 0}', "choices is missing"),
        ('{"context": "Q", "choices": ["a"]}', "gold is missing"),
        ('{"context": "Q", "choices": ["a"], "gold": 1}', "gold = 1: expected .* from 0 to 0"),
        ('{"context": "Q", "choices": ["a"], "gold": 0.9}', "gold = 0.9: expected"),
        ('{"context": "Q", "choices": ["a"], "gold": true}', "gold = True: expected"),
        ('{"context": "Q", "choices": ["a"], "gold": 1e400}', "not a number"),
        ('{"context": "Q", "choices": ["a", ""], "gold": 0}', r"choices\[1\] = '': expected"),
        ('{"context": "Q", "choices": ["a", 5], "gold": 0}', r"choices\[1\] = 5: expected"),
        ('{"context": "Q", "choices": "ab", "gold": 0}', "choices = 'ab': expected a list"),
        ('{"context": "Q", "choices": [], "gold": 0}', "0 choices"),
        ('{"context": 5, "choices": ["a"], "gold": 0}', "context = 5: expected a text"),
        ('{"contexts": "xy", "continuation": "z", "gold": 0}', "contexts = 'xy': expected a list"),
        ('{"contexts": ["x"], "continuation": "", "gold": 0}', "continuation = '': expected"),
        ("[]", "expected a JSON object"),
    ],
)
def test_what_is_no_question_is_named(tmp_path: Path, line: str, reason: str) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text('{"context": "Q", "choices": ["a", "b"], "gold": 1}\n' + line)
    with pytest.raises(EdgeDBError, match=f"q.jsonl, line 2: .*({reason})"):
        read_questions(file)


def test_questions_may_hold_any_character(tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    entry = {"context": "one\u2028two\x85", "choices": ["a", "b"], "gold": 1}
    file.write_text(json.dumps(entry, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_questions(file) == [Question(("one\u2028two\x85",) * 2, ("a", "b"), 1)]


def test_no_questions(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text("")
    with pytest.raises(EdgeDBError, match="no questions"):
        read_questions(tmp_path / "q.jsonl")
    with pytest.raises(EdgeDBError, match="No such file"):
        read_questions(tmp_path / "missing.jsonl")
    (tmp_path / "q.jsonl").write_bytes(b"\xff")
    with pytest.raises(EdgeDBError, match=r"not UTF-8 text \(byte 0\)"):
        read_questions(tmp_path / "q.jsonl")
