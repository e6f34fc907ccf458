"""From a rendered conversation to ids that keep what a session has read already."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from .quotation import MODEL, TEMPLATE, sources
from .tokenizer import Tokenizer


def encode_keeping(tokenizer: Tokenizer, text: str, held: Sequence[int]) -> list[int]:
    """Ids of ``text``, with special tokens, that begin with as many of ``held`` as spell it.

    A model writes text in tokens of its own choice. Encoding the conversation anew would spell an
    answer in another way here and there, and everything after the first difference would be read
    again. The ids change over from ``held`` to a new encoding only in front of a special token,
    where every tokenizer begins afresh, or at the end. Bytes of ``held`` that are no UTF-8 count as
    the U+FFFD that they are in ``text``.

    In what ``text`` quotes, a held special token stands for nothing, and a held marker only where
    the model itself wrote it.
    """
    specials = {i: tokenizer.token_bytes(i, skip_special=False) for i in tokenizer.special_ids}
    spellings = tuple(data.decode("utf-8", "replace") for data in specials.values() if data)
    marks, markers = sources(text), tokenizer.marker_ids

    def begins_afresh(at: int) -> bool:
        """Whether the template wrote a special token at ``at``."""
        return text.startswith(spellings, at) and any(
            text.startswith(spelling, at) and not any(marks[at : at + len(spelling)])
            for spelling in spellings
        )

    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    n_kept = kept = at = 0  # ids, characters of text that they spell; characters looked at
    begins = True  # at a token in front of which encoding may have put a space
    for i, token in enumerate([*held, None]):
        if token is None or token in specials:
            tail = decoder.decode(b"", final=True)
            if not text.startswith(tail, at):
                break
            at += len(tail)
        half_a_character = decoder.getstate()[0]
        if not half_a_character and (at == len(text) or begins_afresh(at)):
            n_kept, kept = i, at
        if token is None or at == len(text):
            break
        data = tokenizer.token_bytes(token, skip_special=False)
        if begins and tokenizer.leading and text[at] != " ":
            data = data.removeprefix(b" ")
        piece = decoder.decode(data)
        if not text.startswith(piece, at):
            break
        if token in specials or token in markers:
            trusted = TEMPLATE if token in specials else MODEL
            if max(marks[at : at + len(piece)], default=TEMPLATE) > trusted:
                break
        at += len(piece)
        begins = token in specials
    return [*held[:n_kept], *tokenizer.encode(text[kept:], add_bos=False, special=True)]
