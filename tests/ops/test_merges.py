"""Merges in C against the package tokenizers."""

from __future__ import annotations

import random
from itertools import accumulate

import numpy as np
import pytest
import tokenizers

from edgedb.errors import NativeError
from edgedb.ops.merges import Merges, can_merge
from edgedb.text.piece_tables import PieceTables, tables_of

pytestmark = pytest.mark.skipif(not can_merge(), reason="needs the C library")


def random_model(rng: random.Random) -> dict[str, object]:
    """Pieces and merges as no training would make them: any pair of pieces, in any order."""
    pieces = ["a", "b", "c"]
    merges: list[tuple[str, str]] = []
    for _ in range(rng.randrange(40)):
        pair = (rng.choice(pieces), rng.choice(pieces))
        if len("".join(pair)) < 12:
            merges.append(pair)
            pieces += [] if "".join(pair) in pieces else ["".join(pair)]
    rng.shuffle(merges)
    return {"vocab": {piece: i for i, piece in enumerate(pieces)}, "merges": merges}


def merges_of(tables: PieceTables) -> Merges:
    rights, ranks, results = tables.merges
    return Merges(tables.merge_ends, rights, ranks, results)


@pytest.mark.parametrize("seed", range(60))
def test_words_are_joined_as_the_package_does(seed: int) -> None:
    rng = random.Random(seed)
    model = random_model(rng)
    tables = tables_of(model)
    assert tables is not None
    tables.check()
    library = tokenizers.models.BPE(**model)
    words = ["".join(rng.choices("abc", k=k)) for k in (1, 2, 3, 5, 8, 40, 300)]
    characters = np.array(["abc".index(c) for c in "".join(words)], np.int32)
    ends = np.cumsum([len(word) for word in words])
    ids, new_ends = merges_of(tables).join(characters, ends)
    expected = [[token.id for token in library.tokenize(word)] for word in words]
    assert new_ends.tolist() == list(accumulate(map(len, expected)))
    assert ids.tolist() == [token for word in expected for token in word]
    assert characters.tolist() == ["abc".index(c) for c in "".join(words)]  # as they were


def test_words_of_nothing_stay_so() -> None:
    tables = tables_of({"vocab": {"a": 0, "aa": 1}, "merges": [["a", "a"]]})
    assert tables is not None
    merges = merges_of(tables)
    ids, ends = merges.join(np.zeros(3, np.int32), np.array([0, 2, 2, 3, 3]))
    assert (ids.tolist(), ends.tolist()) == ([1, 0], [0, 1, 1, 2, 2])
    ids, ends = merges.join(np.empty(0, np.int32), np.zeros(2, np.int64))
    assert (len(ids), ends.tolist()) == (0, [0, 0])


@pytest.mark.parametrize(
    ("array", "value"),
    [("ends", -1), ("ends", 9), ("rights", None), ("ranks", -1), ("results", 2), ("results", -1)],
)
def test_a_table_that_is_none_is_an_error_and_no_crash(array: str, value: int | None) -> None:
    rows = {name: np.array([0], np.int32) for name in ("rights", "ranks", "results")}
    arrays = {"ends": np.array([1, 1], np.int32), **rows}
    good = np.zeros(4, np.int32)
    Merges(**arrays).join(good, np.array([4]))
    if value is None:  # a right piece that nothing is: no merge
        arrays["rights"][0] = 77
        assert Merges(**arrays).join(good, np.array([4]))[0].tolist() == [0, 0, 0, 0]
        return
    arrays[array][0] = value
    with pytest.raises(NativeError, match="merge: "):
        Merges(**arrays).join(good, np.array([4]))


def test_pieces_and_ends_that_are_none() -> None:
    arrays = {name: np.array([0], np.int32) for name in ("rights", "ranks", "results")}
    merges = Merges(np.array([1], np.int32), **arrays)
    for ids, ends in (([0, 1], [2]), ([-1], [1]), ([0, 0], [2, 1]), ([0], [-1]), ([0], [1 << 40])):
        with pytest.raises((NativeError, ValueError)):
            merges.join(np.array(ids, np.int32), np.array(ends))
