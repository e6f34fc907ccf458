"""SentencePiece's table of characters to replace: its own is taken, none that leads out."""

from __future__ import annotations

import base64
import json
import random

import pytest
from tiny_tokenizers import replaced_characters
from tokenizers import normalizers

from edgedb import FormatError
from edgedb.text.charsmap import MAX_TEXT_BYTES, check_charsmap


@pytest.fixture(scope="module")
def table() -> bytes:
    return replaced_characters()


def table_of(*units: int, texts: bytes = b"x\0") -> bytes:
    """A table whose trie is these units and as many unused ones as make it 256."""
    padded = [*units, *[0] * (-len(units) % 256)]
    trie = b"".join(unit.to_bytes(4, "little") for unit in padded)
    return len(trie).to_bytes(4, "little") + trie + texts


def test_the_table_of_sentencepiece(table: bytes) -> None:
    check_charsmap(table)


LEAF = 1 << 8
OUTSIDE = 255 << 10 | 1 << 9  # an offset of 65,280
# "a" (97) becomes the text at place 1, which unit 97 ^ 1 holds.
A_AT_1 = [*[0] * 96, 1 << 31 | 1, 1 << 10 | LEAF | 97]


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (b"", "longer than the table"),
        (b"\0\0\0\0x\0", "longer than the table"),
        (b"\xfc\xff\xff\xff" + bytes(8), "longer than the table"),
        (b"\x04\0\0\0", "longer than the table"),
        (b"\x04\0\0\0" + bytes(4), "outside of itself"),  # labels up to 255 lead behind the end
        (table_of(OUTSIDE), "outside of itself"),
        (table_of(0, OUTSIDE | ord("a")), "outside of itself"),
        (table_of(LEAF, texts=b""), "outside of the texts"),
        (table_of(*A_AT_1, texts=b"x"), "outside of the texts"),
        (table_of(0, texts=b"\xff\0"), "UTF-8"),
        (table_of(*A_AT_1, texts="é\0".encode()), "inside of a character"),
        (table_of(0, texts=b"x" * (MAX_TEXT_BYTES + 1) + b"\0"), "more than"),
    ],
)
def test_what_leads_outside(table: bytes, reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        check_charsmap(table)


def test_no_table_that_is_taken_makes_the_library_panic(table: bytes) -> None:
    rng = random.Random(0)
    taken = 0
    for _ in range(300):
        changed = bytearray(table)
        for _ in range(rng.choice((1, 3, 10))):
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        try:
            check_charsmap(bytes(changed))
        except FormatError:
            continue
        taken += 1
        state = {
            "type": "Precompiled",
            "precompiled_charsmap": base64.b64encode(bytes(changed)).decode(),
        }
        normalizer = normalizers.NFC()
        normalizer.__setstate__(json.dumps(state).encode())
        normalizer.normalize_str("".join(map(chr, range(1, 0x300))) + "ﷺ ﬁ ㍿ \uff21 ½")
    assert 20 < taken < 280
