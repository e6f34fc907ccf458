"""A vocabulary and its merges as arrays."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgedb.errors import FormatError
from edgedb.text.piece_tables import PieceTables, model_of, tables_of

VOCAB = {"a": 0, "é": 1, "ab": 2, "b": 3, "日": 4, "\U0001f600": 5, "éa": 6, "<0x41>": 7, "aba": 8}
NONE = np.empty(0, np.int32)
MERGES = [["é", "a"], ["a", "b"], ["ab", "a"], ["a", "b"]]


def tables() -> PieceTables:
    made = tables_of({"vocab": VOCAB, "merges": MERGES})
    assert made is not None
    made.check()
    return made


def test_what_a_model_says_is_in_the_tables() -> None:
    made = tables()
    assert made.texts() == list(VOCAB) == [made.piece(i) for i in range(len(made))]
    assert [made.find(text) for text in VOCAB] == list(VOCAB.values())
    assert made.find("x") is made.find("") is made.find("日本") is None
    # The pair that is there twice has its last rank, as in the package.
    assert model_of(made, {"type": "BPE"}) == {
        "type": "BPE",
        "vocab": VOCAB,
        "merges": [["é", "a"], ["ab", "a"], ["a", "b"]],
    }
    assert made.made().nonzero()[0].tolist() == [0, 1, 2, 3, 4, 5, 6, 8]


def test_merges_of_older_files_are_lines() -> None:
    lines = ["#version: 0.2", *(" ".join(pair) for pair in MERGES)]
    assert tables_of({"vocab": VOCAB, "merges": lines}) == tables()


def test_single_characters_by_their_code_point() -> None:
    found = tables().of_characters()
    assert len(found) == 0x1F601
    assert {chr(i): int(found[i]) for i in np.flatnonzero(found >= 0)} == {
        text: i for text, i in VOCAB.items() if len(text) == 1
    }


def test_pieces_of_bytes_are_all_or_none() -> None:
    assert tables().of_bytes() is None
    vocab = {"<0xGG>": 0, "<0x4a>": 1, **{f"<0x{b:02X}>": b + 2 for b in range(256)}}
    made = tables_of({"vocab": vocab, "merges": []})
    assert made is not None
    found = made.of_bytes()
    assert found is not None
    assert found.tolist() == list(range(2, 258))


@pytest.mark.parametrize("vocab", [{"a": 1}, {"a": 0, "b": 0}, {"a": 0, "b": 2}, {"": 0}])
def test_ids_with_gaps_and_empty_pieces_have_no_tables(vocab: dict[str, int]) -> None:
    assert tables_of({"vocab": vocab, "merges": []}) is None


def damaged(name: str, at: int | tuple[int, int], value: int) -> PieceTables:
    made = tables()
    array = vars(made)[name].copy()
    array[at] = value
    return replace(made, **{name: array})


def twice(made: PieceTables) -> PieceTables:
    """Every merge."""
    merges = made.merges.repeat(2, axis=1)
    return replace(made, merges=merges, merge_ends=2 * made.merge_ends)


@pytest.mark.parametrize(
    "broken",
    [
        damaged("piece_ends", 1, 1),
        damaged("piece_ends", -1, 1000),
        damaged("piece_ends", 0, 2),  # inside of a character
        damaged("pieces", 0, 0xFF),
        damaged("merge_ends", 0, -1),
        damaged("merge_ends", -1, 99),
        damaged("merges", (0, 0), 9),
        damaged("merges", (0, 1), -1),
        damaged("merges", (1, 0), -1),
        damaged("merges", (2, 0), 9),
        replace(tables(), whole=np.array([9], np.int32)),
        replace(tables(), whole=np.array([-1], np.int32)),
        replace(tables(), merges=tables().merges[:2]),
        replace(tables(), merge_ends=tables().merge_ends[:-1]),
        twice(tables()),
        PieceTables(*(NONE,) * 3, NONE.reshape(3, 0), NONE),
    ],
)
def test_a_number_that_points_outside_is_refused(broken: PieceTables) -> None:
    with pytest.raises(FormatError, match=r"^tokenizer[.:]"):
        broken.check()
