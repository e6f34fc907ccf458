"""A SentencePiece model as a vocabulary."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ..errors import FormatError
from .quotation import TEMPLATE, Quoted, any_of, own_matches, sources
from .vocabulary import SPACE_MARK, STRIP_ALL, Vocabulary, bytes_of_piece

if TYPE_CHECKING:
    from .spec import TokenizerSpec


class SentencePieceVocabulary(Vocabulary):
    def __init__(self, spec: TokenizerSpec) -> None:
        import sentencepiece

        super().__init__(spec)
        self._model = sentencepiece.SentencePieceProcessor()
        try:
            self._model.LoadFromSerializedProto(spec.data)
        except (RuntimeError, OSError, ValueError, TypeError):
            raise FormatError("tokenizer.file: not a SentencePiece model") from None
        model = self._model
        self.vocab_size = model.vocab_size()
        try:
            pieces = model.id_to_piece(list(range(self.vocab_size)))
        except UnicodeDecodeError:
            raise FormatError("tokenizer.file: a SentencePiece piece is not UTF-8") from None
        controls = model.is_control(list(range(self.vocab_size)))
        specials = {i: pieces[i] for i, found in enumerate(controls) if found}
        self._hidden |= set(specials)
        for i in (spec.bos_id, *spec.eos_ids):
            if i is not None and i < self.vocab_size:
                specials[i] = pieces[i]
        self._id_of_special = {piece: i for i, piece in specials.items() if piece}
        self._specials = any_of(self._id_of_special)
        self._markers = {
            i: piece
            for i, piece in enumerate(pieces)
            if i not in self._hidden and self._is_marker(piece) and i in model.encode(piece)
        }
        # The model reads these in any text.
        eager = [piece for piece, i in self._id_of_special.items() if i in model.encode(piece)]
        self._eager_specials = any_of(eager)
        self._eager = any_of([*eager, *self._markers.values()])
        self.leading = self._leading_rule()

    def _leading_rule(self) -> int:
        """What the model's own decoder does with leading spaces (flags inside its file)."""
        model = self._model
        # Pieces that are nothing but marks would lose all of themselves, or one mark of several.
        word = next((i for i in range(self.vocab_size) if self._begins_a_word(i)), None)
        if word is None or model.decode([word]).startswith(" "):
            return 0
        space = model.piece_to_id(SPACE_MARK)
        return 1 if model.decode([space, word]).startswith(" ") else STRIP_ALL

    def _begins_a_word(self, token: int) -> bool:
        piece = self._model.id_to_piece(token)
        return piece.startswith(SPACE_MARK) and piece.strip(SPACE_MARK) != ""

    def _encode(self, text: str, special: bool) -> list[int]:
        if special:
            return self._encode_quoting(Quoted(text, TEMPLATE))
        return self._encode_plain(Quoted(text), self._eager_specials)

    def _encode_quoting(self, text: Quoted) -> list[int]:
        ids: list[int] = []
        end = 0
        for match in own_matches(self._specials, text):
            ids += self._encode_plain(text[end : match.start()], self._eager, end > 0)
            ids.append(self._id_of_special[match[0]])
            end = match.end()
        return ids + self._encode_plain(text[end:], self._eager, end > 0)

    def _encode_plain(
        self, text: Quoted, refused: re.Pattern[str], behind: bool = False
    ) -> list[int]:
        """Ids of ``text``, which may be ``behind`` a special token; what it quotes of ``refused``
        is cut after the first character."""
        marks = sources(text)
        found = (match.span() for match in refused.finditer(text))
        cuts = [start + 1 for start, end in found if end - start > 1 and any(marks[start:end])]
        first, *rest = (
            str.__str__(text[a:b]) for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)
        )
        ids: list[int] = []
        if behind and self._spec.prefix == "first":
            rest.insert(0, first)
        elif first:
            ids += self._model.encode(first)
        for part in rest:
            ids += self.encode_inside(part)
        return ids

    def _piece_bytes(self, token: int) -> bytes:
        if self._model.is_unknown(token):
            return b" \xe2\x81\x87 "  # SentencePiece's own surface of an unknown piece
        return bytes_of_piece(self._model.id_to_piece(token))
