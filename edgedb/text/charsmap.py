"""SentencePiece's table of characters to replace, as a ``tokenizer.json`` carries it.

::

    size of the trie in bytes u32 | the trie: units u32 | texts, each with a zero behind it

The trie is a double array as darts-clone makes it. A unit's lowest byte is the label that leads to
it, bit 8 says that a text ends here, and an offset leads on: from unit ``i``, the exclusive or of
``i``, the offset and the next label. A unit with the highest bit holds a place among the texts. The
package ``tokenizers`` follows all of this without looking, and panics where it leads outside.
"""

from __future__ import annotations

import numpy as np

from ..errors import FormatError

MAX_TEXT_BYTES = 256  # the longest in SentencePiece's own tables has 33


def check_charsmap(table: bytes) -> None:
    """Raise ``FormatError`` unless every way through ``table`` stays inside of it."""
    size = int.from_bytes(table[:4], "little")
    if len(table) < 4 or size % 4 or not 0 < size <= len(table) - 4:
        raise FormatError("the trie is longer than the table")
    trie, texts = np.frombuffer(table, "<u4", size // 4, 4), table[4 + size :]
    inner = (trie >> 31 == 0) & (trie & 0xFF != 0)
    inner[0] = True  # the root has no label
    places = np.flatnonzero(inner)
    units = trie[places].astype(np.int64)
    below = places ^ ((units >> 10) << ((units & 0x200) >> 6))
    if ((below | 0xFF) >= len(trie)).any():
        raise FormatError("the trie leads outside of itself")
    values = trie[below[units & 0x100 != 0]] & 0x7FFFFFFF
    if (values >= len(texts)).any():
        raise FormatError("the trie leads outside of the texts")
    try:
        texts.decode("utf-8")
    except UnicodeDecodeError:
        raise FormatError("the texts are not UTF-8") from None
    if (np.frombuffer(texts, np.uint8)[values] & 0xC0 == 0x80).any():
        raise FormatError("a text begins inside of a character")
    if max(map(len, texts.split(b"\0"))) > MAX_TEXT_BYTES:
        raise FormatError(f"a text of more than {MAX_TEXT_BYTES} bytes")
