"""Encoding text in which a message may spell control tokens, with the package tokenizers or what
stands in for it.

The package reads all control tokens in a text, or those that are not flagged as special, but not
only those at some places. Where a message spells one, the text is therefore spelled another way:
where the template wrote a control token there stands an alias, a token of its own that nobody can
guess, and the flagged ones are read as text. What a message still gets through, a control token
without the flag or one that the model's own pieces spell, is cut after its first character by a
token that stands for nothing. One call encodes the whole text: what a tokenizer does at a text's
beginning or around its tokens stays as it is.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

from tokenizers import AddedToken, Encoding, Tokenizer

from ..errors import EdgeDBError
from .quotation import Quoted, any_of, joined, own_matches, sources
from .tokenizer_json import encode

if TYPE_CHECKING:
    from .merging import MergingTokenizer, Reading

_SEPARATE = "\x02"
_OUTSIDE = "\U0010ffff"  # is in no vocabulary
# A cut may make another token appear, but in real vocabularies not many times over.
_MAX_ROUNDS = 8


class GuardedEncoder:
    """Encodes quoted text. Used by one thread at a time."""

    def __init__(
        self,
        library: Tokenizer | MergingTokenizer,
        special: Collection[int],
        markers: Collection[int],
    ) -> None:
        """``special`` and ``markers`` are the added tokens of ``library`` that are control tokens,
        with and without the flag."""
        added = library.get_added_tokens_decoder()
        self._library = library
        self._special = {i: added[i] for i in special}
        self._spelling = {i: added[i].content for i in (*special, *markers)}
        self._pattern = any_of(token.content for token in self._special.values())
        unknown = encode(library, _OUTSIDE).ids
        self._unknown = {i for i in unknown if i in self._spelling}
        self._alias: dict[str, str] = {}

    def encode(self, text: Quoted) -> list[int]:
        """Ids of ``text``: control tokens where the template wrote them and nowhere else."""
        self._library.encode_special_tokens = False
        encoding = encode(self._library, text)
        if not self._forged(encoding, text, self._spelling):
            return list(encoding.ids)
        return self._respell(text, self._spelling)

    def encode_plain(self, text: str) -> list[int]:
        """Ids of ``text`` without special tokens; markers in it are read."""
        self._library.encode_special_tokens = True
        ids = list(encode(self._library, text).ids)
        # Some models spell a control token with a piece of their own.
        known = self._special.keys() - self._unknown
        return ids if known.isdisjoint(ids) else self._respell(Quoted(text), known)

    def _respell(self, text: Quoted, refused: Collection[int]) -> list[int]:
        if not self._alias:
            self._add_tokens()
        self._library.encode_special_tokens = True
        parts: list[str] = []
        end = 0
        for match in own_matches(self._pattern, text):
            parts += (text[end : match.start()], self._alias[match[0]])
            end = match.end()
        spelled = joined([*parts, text[end:]])
        for _ in range(_MAX_ROUNDS):
            encoding = encode(self._library, spelled)
            forged = self._forged(encoding, spelled, refused)
            if not forged:
                return list(self._read(encoding.ids))
            parts, end = [], 0
            for start, stop in forged:
                parts += (spelled[end : start + 1], self._cut, spelled[start + 1 : stop])
                end = stop
            spelled = joined([*parts, spelled[end:]])
        raise EdgeDBError("the tokenizer reads a control token in every spelling of this text")

    def _forged(
        self, encoding: Encoding | Reading, text: str, refused: Collection[int]
    ) -> list[tuple[int, int]]:
        """Where ``encoding`` of ``text`` has tokens of ``refused`` that the template did not write;
        only those of two characters or more, which can be cut."""
        marks = sources(text)
        found = []
        for i, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if i in refused and any(marks[start:end]):
                at = text.find(self._spelling[i], start, end)  # white space may be around it
                if at >= 0:
                    found.append((at, at + len(self._spelling[i])))
                elif i not in self._unknown:
                    found.append((start, end))
        return [(start, end) for start, end in found if end - start > 1]

    def _add_tokens(self) -> None:
        nonce = secrets.token_hex(16)
        special = self._special.values()
        self._alias = {token.content: f"{nonce}{n};" for n, token in enumerate(special)}
        self._cut = f"{nonce}-;"
        library = self._library
        aliases = [
            AddedToken(
                self._alias[token.content],
                lstrip=token.lstrip,
                rstrip=token.rstrip,
                normalized=False,
            )
            for token in special
        ]
        library.add_tokens([*aliases, AddedToken(self._cut, normalized=False)])
        meant = zip(aliases, self._special, strict=True)
        self._meant = {library.token_to_id(alias.content): i for alias, i in meant}
        self._nothing = library.token_to_id(self._cut)
        # Some put a space before a text and behind every token: behind a cut, it goes before a
        # character that can be told from what follows.
        lead = encode(library, self._cut + _SEPARATE).ids[1:]
        self._lead = lead if len(lead) > 1 else []
        self._cut += _SEPARATE if self._lead else ""

    def _read(self, ids: Sequence[int]) -> Iterator[int]:
        at, n = 0, len(self._lead)
        while at < len(ids):
            if ids[at] != self._nothing:
                yield self._meant.get(ids[at], ids[at])
            elif n and ids[at + 1 : at + 1 + n] == self._lead:
                at += n
            at += 1
