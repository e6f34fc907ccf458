"""The order of lines: long ones first, alike ones together, each beginning read once."""

from __future__ import annotations

import json
import random
import threading

import pytest

from edgedb.jobs.lines import Line, parse_line
from edgedb.jobs.order import ALIKE, Beginnings, common, in_order


def lines(*prompts: str) -> list[Line]:
    return [parse_line(i, json.dumps({"prompt": p})) for i, p in enumerate(prompts, 1)]


def prompts(ordered: list[Line]) -> list[str]:
    return [line.request["prompt"] for line in ordered]


def test_longest_first() -> None:
    texts = ["b" * 3, "a", "c" * 9, "d" * 5]
    assert prompts(in_order(lines(*texts))) == sorted(texts, key=len, reverse=True)


def test_a_shared_beginning_keeps_lines_together() -> None:
    system = "You are helpful. " * 20
    alike = [system + "question " * n for n in (2, 30, 9)]
    others = ["x" * 400, "y" * 500, "z" * 10]
    found = prompts(in_order(lines(*alike, *others)))
    assert found == [alike[1], alike[2], alike[0], others[1], others[0], others[2]]


def test_documents_below_a_system_prompt_keep_their_questions_together() -> None:
    system = "s" * ALIKE
    documents = [system + letter * 600 for letter in "abc"]
    texts = [document + f"? {i}" * (i + 1) for i in range(4) for document in documents]
    random.Random(1).shuffle(texts)
    found = prompts(in_order(lines(*texts)))
    order = [text[ALIKE] for text in found]
    assert [order[0], order[4], order[8]] == sorted(set(order), key=order.index)
    assert all(len(set(order[i : i + 4])) == 1 for i in (0, 4, 8))


def test_nothing_is_lost() -> None:
    texts = ["same" * 200] * 3 + ["", "q" * 5000, "q" * 4000]
    given = lines(*texts)
    assert sorted(line.number for line in in_order(given)) == [1, 2, 3, 4, 5, 6]


def test_lines_that_ask_nothing_have_a_place_too() -> None:
    given = [parse_line(1, "{"), parse_line(2, '{"prompt": [1, 2]}'), parse_line(3, "{}")]
    assert len(in_order(given)) == 3


@pytest.mark.parametrize(("a", "b", "n"), [("", "x", 0), ("abc", "abd", 2), ("ab", "abc", 2)])
def test_common(a: str, b: str, n: int) -> None:
    assert common(a, b) == common(b, a) == n


def never() -> bool:
    return False


def test_a_prompt_waits_for_one_that_begins_alike() -> None:
    beginnings, start = Beginnings(), "x" * ALIKE
    began = threading.Event()

    def second() -> None:
        with beginnings.reading(start + "b", never):
            began.set()

    with beginnings.reading(start + "a", never) as is_read:
        thread = threading.Thread(target=second)
        thread.start()
        with beginnings.reading("y" * ALIKE, never):
            pass  # one of another beginning does not wait
        assert not began.wait(0.1)
        is_read()
        assert began.wait(10)
        thread.join()


def test_what_was_read_before_is_no_reason_to_wait() -> None:
    beginnings, start = Beginnings(), "x" * ALIKE
    with beginnings.reading(start + "a", never):
        pass
    with beginnings.reading(start + "b", never), beginnings.reading(start + "c", never):
        pass


def test_who_is_cancelled_waits_no_longer() -> None:
    beginnings, text = Beginnings(), "x" * ALIKE
    with beginnings.reading(text, never):
        with beginnings.reading(text, lambda: True):
            pass
        assert not beginnings._waiting
        assert not beginnings._begin(threading.Event(), text)  # the first one is still being read
