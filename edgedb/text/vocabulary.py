"""From ids to bytes and text, and the rules of encoding that both tokenizer libraries share.

Ids become text from the bytes that each token stands for, so that a whole sequence and the same
sequence streamed token by token give the same text.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, cast

from ..errors import EdgeDBError
from ..gate import gate
from .quotation import Quoted, source_of

if TYPE_CHECKING:
    from .spec import TokenizerSpec

SPACE_MARK = "\u2581"  # SentencePiece writes a space as this character
MARKER = re.compile(r"[^\w\s].*\w.*[^\w\s]")  # a word in brackets, of whatever kind
_CONTROL = re.compile("<[|\uff5c].*[|\uff5c]>")
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
# Characters of a token of their own, to stand before a text.
_SEPARATE = ("\x02", "~", "龍")


class Detokenizer:
    """Turns ids into text one at a time and never gives out part of a UTF-8 character.

    The texts of all ``push`` calls and of ``finish`` join to ``Tokenizer.decode`` of all ids.
    """

    def __init__(self, vocabulary: Vocabulary, leading: int, skip_special: bool = True) -> None:
        self._vocabulary = vocabulary
        self._leading = leading
        self._skip_special = skip_special
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """Text that ``token`` completes; empty while a character is still missing bytes."""
        data = self._vocabulary.token_bytes(token, self._skip_special)
        if self._leading and data:
            data = data.removeprefix(b" ")
            if data or self._leading == 1:
                self._leading = 0
        return self._utf8.decode(data)

    def finish(self) -> str:
        """Text still held back: U+FFFD for a character whose bytes never came."""
        return self._utf8.decode(b"", final=True)


STRIP_ALL = 2  # a value of Vocabulary.leading


class Vocabulary:
    """Ids to bytes, and the encoding rules that both libraries share.

    They are called inside the gate (``gate.py``): what a subclass defines runs there.
    """

    vocab_size: int
    # The space that encoding puts before a text: 0 none; 1 dropped from the first piece;
    # STRIP_ALL dropped from every piece until there is text.
    leading: int

    def __init__(self, spec: TokenizerSpec) -> None:
        self._spec = spec
        self._bytes: dict[int, bytes] = {}
        self._hidden = {i for i in (spec.bos_id, *spec.eos_ids) if i is not None}
        self._markers: dict[int, str] = {}

    @property
    def special_ids(self) -> frozenset[int]:
        return frozenset(self._hidden)

    @property
    def marker_ids(self) -> frozenset[int]:
        return frozenset(self._markers)

    def _is_marker(self, spelling: str) -> bool:
        """Whether a token that is no special one marks who speaks: see ``Tokenizer.marker_ids``."""
        if spelling[:1].isalnum() or spelling[-1:].isalnum():
            return False  # nearly all are words; to say so at once halves the time to open
        if _CONTROL.fullmatch(spelling):
            return True
        return bool(MARKER.fullmatch(spelling)) and spelling in (self._spec.chat_template or "")

    def encode(self, text: str, *, add_bos: bool | None = None, special: bool = False) -> list[int]:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise EdgeDBError(
                f"the text is not valid Unicode: lone surrogate at character {error.start}"
            ) from None
        with gate.lock:
            if special and source_of(text):
                ids = self._encode_quoting(cast(Quoted, text))
            else:
                ids = self._encode(str.__str__(text), special) if text else []
        if (self._spec.add_bos if add_bos is None else add_bos) and self._spec.bos_id is not None:
            ids.insert(0, self._spec.bos_id)
        return ids

    def encode_inside(self, text: str) -> list[int]:
        if not text:
            return []
        with gate.lock:
            for character in _SEPARATE:
                lead = self._encode(character, False)
                ids = self._encode(character + text, False)
                if ids[: len(lead)] == lead and self.token_bytes(lead[-1]) == character.encode():
                    return ids[len(lead) :]
            return self._encode(text, False)

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        stream = Detokenizer(self, self.leading, skip_special)
        return "".join([stream.push(i) for i in ids]) + stream.finish()

    def stream(self, after: Sequence[int] = ()) -> Detokenizer:
        begins = not any(self.token_bytes(i) for i in after)
        return Detokenizer(self, self.leading if begins else 0)

    def token_bytes(self, token: int, skip_special: bool = True) -> bytes:
        if skip_special and token in self._hidden:
            return b""
        data = self._bytes.get(token)
        if data is None:
            if not 0 <= token < self.vocab_size:  # of which there is no end: not to be remembered
                return b""
            with gate.lock:
                data = self._bytes[token] = self._piece_bytes(token)
        return data

    def _encode(self, text: str, special: bool) -> list[int]:
        raise NotImplementedError

    def _encode_quoting(self, text: Quoted) -> list[int]:
        """Ids of ``text`` with control tokens where nothing is quoted."""
        raise NotImplementedError

    def _piece_bytes(self, token: int) -> bytes:
        raise NotImplementedError


def bytes_of_piece(piece: str) -> bytes:
    """Bytes of a SentencePiece piece: ``<0xNN>`` is one byte, the mark is a space."""
    byte = _BYTE_PIECE.fullmatch(piece)
    if byte:
        return bytes([int(byte[1], 16)])
    return piece.replace(SPACE_MARK, " ").encode("utf-8")
