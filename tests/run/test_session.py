"""Session: conversations that read only what is new, forks, cancels, threads, memory."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest

import edgedb
from edgedb import BusyError
from edgedb.run.completion import collect
from edgedb.run.session import Session

PROMPT = [5, 9, 2, 40, 17, 23, 8]


@pytest.fixture(scope="module")
def model(long_model: Path) -> edgedb.Model:
    return edgedb.load(long_model)


def test_two_thousand_tokens_of_chat_are_read_once(model: edgedb.Model) -> None:
    session = model.session()
    messages = [{"role": "system", "content": "Be brief."}]
    for turn in range(8):
        messages.append({"role": "user", "content": f"Question {turn}: why?"})
        held = session.tokens
        answer = session.chat(messages, max_tokens=250, temperature=1.5, seed=turn)
        # New are the user's turn and the marks around it, and the answer's last token, which was
        # chosen but not read yet.
        added = [{"role": "user", "content": messages[-1]["content"]}]
        expected = len(model.chat_tokens(messages if turn == 0 else added))
        end_mark = len(model.tokenize("\n")) + 2 if turn else 0  # <|im_end|>, and one not read
        assert answer.stats.read_tokens <= expected + end_mark
        assert session.tokens[: len(held)] == held
        messages.append({"role": "assistant", "content": answer.text})
    assert session.position > 2000


def test_a_changed_turn_reads_from_the_change_on(model: edgedb.Model) -> None:
    session = model.session()
    messages = [{"role": "user", "content": "One"}]
    said = session.chat(messages, max_tokens=20, temperature=1.5, seed=1)
    longer = [*messages, {"role": "assistant", "content": said.text}]
    session.chat([*longer, {"role": "user", "content": "Two"}], max_tokens=5, seed=1)
    other = session.chat([*longer, {"role": "user", "content": "Three"}], max_tokens=5, seed=1)
    changed = len(model.tokenize("user\nThree\nassistant\n")) + 3  # and the marks around them
    assert other.stats.read_tokens <= changed < other.stats.prompt_tokens / 2


def test_a_fork_continues_as_the_original_and_shares_nothing(model: edgedb.Model) -> None:
    session = model.session()
    session.prefill(PROMPT)
    session.extra["title"] = ["a"]
    fork = session.fork()
    assert fork.tokens == PROMPT
    expected = session.logits()
    assert fork.logits().tobytes() == expected.tobytes()
    fork.extra["title"].append("b")
    fork.prefill([1, 2, 3])
    changed = fork.logits()
    assert session.extra == {"title": ["a"]}
    assert session.logits().tobytes() == expected.tobytes()
    session.rewind(0)
    session.prefill([7] * 20)
    assert fork.logits().tobytes() == changed.tobytes()
    whole = model.session()
    whole.prefill([*PROMPT, 1, 2, 3])
    assert whole.logits().tobytes() == changed.tobytes()


def test_a_fork_of_an_empty_session(model: edgedb.Model) -> None:
    assert model.session().fork().tokens == []


def test_a_prompt_that_may_be_cancelled_gives_the_same_bits(model: edgedb.Model) -> None:
    ids = [3 + i % 300 for i in range(300)]
    plain, careful = model.session(), model.session()
    plain.prefill(ids)
    careful.prefill(ids, cancelled=lambda: False)
    if model.ops.name == "native":
        assert plain.logits().tobytes() == careful.logits().tobytes()


def test_a_cancel_on_a_slow_cpu_takes_effect_within_100_ms(
    model: edgedb.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CPU that needs 5 ms a token, as for a 7B model on a small machine."""
    read = type(model.network).read
    read_so_far = 0

    def slowly(self, readings, state):  # type: ignore[no-untyped-def]
        nonlocal read_so_far
        tokens = sum(len(reading.tokens) for reading in readings)
        time.sleep(0.005 * tokens)
        read_so_far += tokens
        return read(self, readings, state)

    monkeypatch.setattr(type(model.network), "read", slowly)
    session = model.session()
    answer = session.generate([5] * 2000, cancelled=lambda: read_so_far >= 100, max_tokens=1)
    assert answer.finish_reason == "cancelled"
    assert 100 <= session.position == read_so_far < 120


def test_a_second_thread_gets_busy_error(model: edgedb.Model) -> None:
    session = model.session()
    inside, leave = threading.Event(), threading.Event()

    def cancelled() -> bool:
        inside.set()
        return leave.wait(10)

    first = threading.Thread(target=lambda: session.generate(PROMPT, cancelled=cancelled))
    first.start()
    assert inside.wait(10)
    for call in (
        lambda: session.prefill([1]),
        lambda: session.generate(PROMPT),
        session.decode,
        session.logits,
        session.fork,
        lambda: session.rewind(0),
        lambda: session.save("never"),
    ):
        with pytest.raises(BusyError, match="second session"):
            call()
    leave.set()
    first.join()
    session.prefill([1])


def test_two_sessions_answer_at_once(model: edgedb.Model) -> None:
    def answers(session: Session, start: int) -> list[int]:
        ids = [start + i % 50 for i in range(150)]
        return collect(session.stream(ids, max_tokens=40, temperature=1.5, seed=start)).tokens

    expected = [answers(model.session(), start) for start in (3, 60)]
    barrier = threading.Barrier(2)
    found: dict[int, list[int]] = {}

    def run(start: int) -> None:
        session = model.session()
        barrier.wait()
        for _ in range(3):
            session.rewind(0)
            found[start] = answers(session, start)

    threads = [threading.Thread(target=run, args=(start,)) for start in (3, 60)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[3], found[60]] == expected


@pytest.mark.parametrize(("kv_dtype", "itemsize"), [("float16", 2), ("float32", 4)])
def test_memory_at_8192_tokens_is_that_of_the_formula(
    long_model: Path, kv_dtype: str, itemsize: int
) -> None:
    model = edgedb.load(long_model, context=8192, kv_dtype=kv_dtype)
    c = model.config
    cache = 2 * c.n_layers * c.n_kv_heads * c.head_dim * itemsize * 8192
    if model.ops.name != "native":
        pytest.skip("other backends make their arrays as they go")
    widths = c.hidden_size + c.qkv_size + c.q_size + 2 * c.intermediate_size + 1
    assert model.session().size_bytes == cache + 4 * c.vocab_size + 4 * 8192
    assert model.scratch_bytes == 4 * (128 * widths + c.vocab_size)


def test_a_new_session_takes_next_to_no_memory(long_model: Path) -> None:
    """The cache is committed page by page as it is filled."""

    def resident() -> int:
        try:
            return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
        except OSError:
            pytest.skip("needs /proc")

    model = edgedb.load(long_model, context=8192, kv_dtype="float32")
    model.session().prefill([1])
    before = resident()
    sessions = [model.session() for _ in range(20)]
    for session in sessions:
        session.prefill([1])
    assert resident() - before < 0.2 * sum(session.size_bytes for session in sessions)


def test_info_reads_the_file_once(model: edgedb.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    first = model.info
    monkeypatch.setattr("edgedb.model.summary.summarize", None)
    first["path"] = "changed by the caller"
    assert model.info["path"] == str(model.file.path)
    assert model.info["threads"] == model.ops.threads
    assert np.isfinite(model.info["bits_per_weight"]["linear"])
