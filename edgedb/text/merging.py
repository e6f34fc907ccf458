"""A ``tokenizer.json`` whose vocabulary and merges are tables (``piece_tables.py``).

The package tokenizers still finds the added tokens in a text, brings the rest into a normal form
and splits it into words: all that costs no time to open. It gets a model that knows no piece, which
leaves every word as it is; words become pieces here, by merges in C.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from ..ops.merges import Ends, Ids, Merges
from .piece_tables import PieceTables
from .tokenizer_json import (
    add_tokens,
    added_ids,
    added_tokens,
    model_without_tables,
    open_shell,
    parsed,
)

if TYPE_CHECKING:
    import tokenizers

_WORD = 0  # the splitter's id of everything that is no added token


class Reading:
    """A text as ids, and from where to where in it each is."""

    def __init__(self, parts: list[list[int]], split: tokenizers.Encoding) -> None:
        """``parts``: the ids of each word and added token of ``split``."""
        self.ids = [token for part in parts for token in part]
        self._parts, self._split = parts, split

    @property
    def offsets(self) -> list[tuple[int, int]]:
        """Of an added token its own, of a piece those of its word."""
        spans = self._split.offsets
        return [span for span, part in zip(spans, self._parts, strict=True) for _ in part]


class MergingTokenizer:
    """The part of ``tokenizers.Tokenizer`` that this package uses; the same ids.

    For one thread at a time.
    """

    def __init__(self, data: bytes, tables: PieceTables) -> None:
        """``data``: a ``tokenizer.json`` whose model has neither ``vocab`` nor ``merges``.

        Raises ``FormatError`` and ``UnsupportedModelError`` as ``open_tokenizer_json``.
        """
        document = parsed(data)
        byte_fallback = model_without_tables(document).byte_fallback
        self._tables = tables
        merges = tables.merges
        self._merges = Merges(tables.merge_ends, merges[0], merges[1], merges[2])
        self._whole = {tables.piece(i): [i] for i in tables.whole.tolist()}
        self._of_characters = tables.of_characters()
        self._of_bytes = tables.of_bytes() if byte_fallback else None
        # A word is one unknown piece, whatever it holds but the name of the only known one.
        nothing = {"type": "Unigram", "unk_id": _WORD, "vocab": [[secrets.token_hex(16), 0.0]]}
        self._splitter = open_shell({**document, "post_processor": None}, nothing)
        self._ids = [_WORD]  # by the splitter's
        self._id_of: dict[str, int] = {}
        self._added: dict[int, tokenizers.AddedToken] = {}
        self.encode_special_tokens = False
        self._add(added_tokens(document), added_ids(document))

    @property
    def decoder(self) -> Any:
        return self._splitter.decoder

    def get_vocab_size(self) -> int:
        return max(len(self._tables), *(i + 1 for i in self._added), 0)

    def get_added_tokens_decoder(self) -> dict[int, tokenizers.AddedToken]:
        return dict(self._added)

    def id_to_token(self, token: int) -> str | None:
        if token in self._added:
            return self._added[token].content
        return self._tables.piece(token) if token < len(self._tables) else None

    def token_to_id(self, text: str) -> int | None:
        found = self._id_of.get(text)
        return self._tables.find(text) if found is None else found

    def add_tokens(self, tokens: Sequence[tokenizers.AddedToken]) -> None:
        new = self.get_vocab_size()
        ids = []
        for token in tokens:
            known = self.token_to_id(token.content)
            ids.append(new if known is None else known)
            new += known is None
        self._add(tokens, ids)

    add_special_tokens = add_tokens

    def _add(self, tokens: Sequence[tokenizers.AddedToken], ids: Iterable[int]) -> None:
        add_tokens(self._splitter, tokens)
        for token, number in zip(tokens, ids, strict=True):
            at = self._splitter.token_to_id(token.content)
            if at is None:  # an empty one, which is none
                continue
            self._id_of[token.content] = number
            self._added[number] = token
            self._ids += [_WORD] * (at + 1 - len(self._ids))
            self._ids[at] = number

    def encode(self, text: str, *, add_special_tokens: bool = False) -> Reading:
        """``text`` as ids, without any that it does not spell."""
        assert not add_special_tokens
        self._splitter.encode_special_tokens = self.encode_special_tokens
        found = self._splitter.encode(text, add_special_tokens=False)
        kinds, words = found.ids, found.tokens
        pieces = self.pieces({w: None for kind, w in zip(kinds, words, strict=True) if not kind})
        parts = [
            [self._ids[kind]] if kind else pieces[word]
            for kind, word in zip(kinds, words, strict=True)
        ]
        return Reading(parts, found)

    def pieces(self, words: Mapping[str, None]) -> dict[str, list[int]]:
        """The pieces of each word, in their order."""
        if not words:
            return {}
        ids, ends = self._merges.join(*self._symbols(words))
        numbers, bounds = ids.tolist(), [0, *ends.tolist()]
        of_words = (numbers[a:b] for a, b in pairwise(bounds))
        return dict(zip(words, of_words, strict=True)) | {
            word: self._whole[word] for word in self._whole.keys() & words.keys()
        }

    def _symbols(self, words: Iterable[str]) -> tuple[Ids, Ends]:
        """The pieces of single characters, and where each word ends. A character that has none
        becomes its bytes; without pieces for these it is left out, as the package does."""
        texts = list(words)
        points = np.frombuffer("".join(texts).encode("utf-32-le"), np.uint32)
        ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
        known = len(self._of_characters) - 1
        ids = np.where(points <= known, self._of_characters[np.minimum(points, known)], -1)
        missing = ids < 0
        if not missing.any():
            return ids, ends
        data = "".join(map(chr, points[missing])).encode("utf-8")
        sizes = np.ones(len(ids), np.int64)
        sizes[missing] = 0
        if self._of_bytes is not None:
            sizes[missing] = 1 + (points[missing, None] >= (0x80, 0x800, 0x10000)).sum(axis=1)
        ends = np.concatenate(([0], np.cumsum(sizes)))[ends]
        ids = np.repeat(ids, sizes)
        if self._of_bytes is not None:
            ids[ids < 0] = self._of_bytes[np.frombuffer(data, np.uint8)]
        return ids, ends
