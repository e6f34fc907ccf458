"""A ``tokenizer.json`` as a vocabulary, over the package tokenizers."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..errors import EdgeDBError, UnsupportedModelError
from ..ops.merges import can_merge
from .quotation import Quoted
from .tokenizer_json import encode, open_tokenizer_json, with_tables
from .vocabulary import MARKER, Vocabulary, bytes_of_piece

if TYPE_CHECKING:
    import tokenizers

    from .guarded import GuardedEncoder
    from .merging import MergingTokenizer
    from .spec import TokenizerSpec


class TokenizersVocabulary(Vocabulary):
    def __init__(self, spec: TokenizerSpec) -> None:
        super().__init__(spec)
        self._model = _open(spec)
        added = self._model.get_added_tokens_decoder()
        self.vocab_size = max(self._model.get_vocab_size(), *(i + 1 for i in added), 0)
        self._flag_ends(added)
        added = self._model.get_added_tokens_decoder()
        self._hidden |= {i for i, token in added.items() if token.special}
        self._added = {i: token.content for i, token in added.items()}
        self._markers = {
            i: text
            for i, text in self._added.items()
            if i not in self._hidden and self._is_marker(text)
        }
        self._byte_level, self.leading = _decoding_rules(self._model.decoder)
        # The library keeps "parse special tokens" as a state of the tokenizer.
        self._lock = threading.Lock()

    def _flag_ends(self, added: Mapping[int, Any]) -> None:
        """Make BOS and the ends of a text special tokens, whatever the file says of them."""
        from tokenizers import AddedToken

        for i in sorted(self._hidden):
            token = added.get(i)
            text = self._model.id_to_token(i) if token is None else token.content
            if text and MARKER.fullmatch(text) and not (token and token.special):
                flagged = AddedToken(text, special=True, normalized=False)
                self._model.add_special_tokens([flagged])

    def _encode(self, text: str, special: bool) -> list[int]:
        with self._lock:
            if not special:
                return self._known(self._guarded.encode_plain(text))
            self._model.encode_special_tokens = False
            return self._known(encode(self._model, text).ids)

    def _encode_quoting(self, text: Quoted) -> list[int]:
        with self._lock:
            return self._known(self._guarded.encode(text))

    def _known(self, ids: list[int]) -> list[int]:
        if ids and max(ids) >= self.vocab_size:
            raise EdgeDBError(
                f"tokenizer.json: the id {max(ids)} is outside its vocabulary of {self.vocab_size}"
            )
        return ids

    @cached_property
    def _guarded(self) -> GuardedEncoder:
        from .guarded import GuardedEncoder

        special = self._hidden & self._added.keys()
        return GuardedEncoder(self._model, sorted(special), sorted(self._markers))

    def _piece_bytes(self, token: int) -> bytes:
        if token in self._added:
            text = self._added[token]
            # An added token may be a run of spaces: then it is spelled like any other piece.
            is_text = token not in self._hidden and token not in self._markers
            by_marks = is_text and not self._byte_level
            return bytes_of_piece(text) if by_marks else text.encode("utf-8")
        piece = self._model.id_to_token(token)
        if piece is None:
            return b""
        if not self._byte_level:
            return bytes_of_piece(piece)
        try:
            return bytes([BYTE_OF_CHARACTER[c] for c in piece])
        except KeyError:
            return piece.encode("utf-8")


def _open(spec: TokenizerSpec) -> tokenizers.Tokenizer | MergingTokenizer:
    if spec.tables is None:
        return open_tokenizer_json(spec.data)
    if can_merge():
        from .merging import MergingTokenizer

        return MergingTokenizer(spec.data, spec.tables)
    return open_tokenizer_json(with_tables(spec.data, spec.tables))


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable spelling of bytes: most stand for themselves, the rest follow 255."""
    themselves = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in themselves]
    alphabet = {chr(b): b for b in themselves}
    alphabet.update({chr(256 + n): b for n, b in enumerate(others)})
    return alphabet


BYTE_OF_CHARACTER = _byte_level_alphabet()


def _decoding_rules(decoder: Any) -> tuple[bool, int]:
    """``(byte_level, leading)`` of a ``tokenizer.json``'s decoder."""
    rules = json.loads(decoder.__getstate__()) if decoder is not None else {"type": "none"}
    steps = rules.get("decoders", [rules])
    by_type = {step.get("type"): step for step in steps}
    if "ByteLevel" in by_type:
        return True, 0
    if "Metaspace" in by_type:
        return False, int(by_type["Metaspace"].get("prepend_scheme", "always") != "never")
    if "ByteFallback" in by_type:
        strip = by_type.get("Strip", {})
        return False, int(strip.get("content") == " " and strip.get("start", 0) > 0)
    names = ", ".join(map(str, by_type))
    raise UnsupportedModelError(f"tokenizer.json: decoder {names} is not supported")
