"""Text to token ids and back, over the two tokenizer libraries that Llama checkpoints use.

Both give ids; turning ids into text is done here, from the bytes that each token stands for, so
that a whole sequence and the same sequence streamed token by token give the same text.
"""

from __future__ import annotations

import codecs
import json
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from .errors import EdgeDBError, FormatError, UnsupportedModelError
from .quotation import TEMPLATE, Quoted, any_of, own_matches, source_of, sources
from .tokenizer_json import encode, open_tokenizer_json

if TYPE_CHECKING:
    from .guarded import GuardedEncoder

Kind = Literal["sentencepiece", "tokenizers"]
KINDS = ("sentencepiece", "tokenizers")
MAX_TEMPLATE_CHARS = 1 << 20

_METADATA_KEYS = ("kind", "bos_id", "eos_ids", "add_bos", "chat_template", "special_tokens")
_MAX_SPECIAL_TOKENS = 1 << 16
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE_MARK = "\u2581"  # SentencePiece writes a space as this character
_MARKER = re.compile(r"[^\w\s].*\w.*[^\w\s]")
_CONTROL_MARKER = re.compile("<[|\uff5c].*[|\uff5c]>")
# Characters of a token of their own, to stand before a text.
_SEPARATE = ("\x02", "~", "龍")


@dataclass(frozen=True)
class TokenizerSpec:
    """Everything a model file says about its tokenizer.

    ``data`` is the tokenizer's own file: a SentencePiece model or a ``tokenizer.json``.
    ``special_tokens`` are the names a chat template may use (``bos_token``, ``eos_token``, ...).
    """

    kind: Kind
    data: bytes
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    add_bos: bool = False
    chat_template: str | None = None
    special_tokens: Mapping[str, str] = field(default_factory=dict)

    def to_metadata(self) -> dict[str, Any]:
        """The file's ``tokenizer`` entry: plain JSON values, without ``data``."""
        return {
            "kind": self.kind,
            "bos_id": self.bos_id,
            "eos_ids": list(self.eos_ids),
            "add_bos": self.add_bos,
            "chat_template": self.chat_template,
            "special_tokens": dict(self.special_tokens),
        }

    @classmethod
    def from_metadata(cls, raw: object, data: bytes) -> TokenizerSpec:
        """Read ``to_metadata``'s form from a file, trusting nothing (``FormatError``)."""
        if not isinstance(raw, Mapping):
            raise FormatError("tokenizer: expected a JSON object")
        unknown = sorted(set(map(str, raw)) - set(_METADATA_KEYS))
        if unknown:
            raise FormatError(f"tokenizer: unknown key {unknown[0]!r}; a newer edgedb may read it")
        kind, template = raw.get("kind"), raw.get("chat_template")
        eos_ids, special = raw.get("eos_ids", []), raw.get("special_tokens", {})
        if kind not in KINDS:
            raise FormatError(f"tokenizer: kind {kind!r}, expected {' or '.join(KINDS)}")
        if raw.get("bos_id") is not None and not _is_id(raw["bos_id"]):
            raise FormatError(f"tokenizer: bos_id {raw['bos_id']!r} is not a token id")
        if not isinstance(eos_ids, (list, tuple)) or not all(map(_is_id, eos_ids)):
            raise FormatError("tokenizer: eos_ids must be a list of token ids")
        if type(raw.get("add_bos", False)) is not bool:
            raise FormatError("tokenizer: add_bos must be true or false")
        if raw.get("add_bos") and raw.get("bos_id") is None:
            raise FormatError("tokenizer: add_bos is set but there is no bos_id")
        if template is not None and not isinstance(template, str):
            raise FormatError("tokenizer: chat_template must be a string")
        if template is not None and len(template) > MAX_TEMPLATE_CHARS:
            raise FormatError(f"tokenizer: chat_template of {len(template)} characters is too long")
        if (
            not isinstance(special, Mapping)
            or len(special) > _MAX_SPECIAL_TOKENS
            or not all(isinstance(v, str) for item in special.items() for v in item)
        ):
            raise FormatError("tokenizer: special_tokens must map names to strings")
        return cls(
            kind=cast(Kind, kind),
            data=data,
            bos_id=raw.get("bos_id"),
            eos_ids=tuple(eos_ids),
            add_bos=raw.get("add_bos", False),
            chat_template=template,
            special_tokens=dict(special),
        )


def _is_id(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 31


class Tokenizer(Protocol):
    """What the engine needs of a tokenizer. Safe to share between threads."""

    vocab_size: int
    leading: int  # not 0: encoding puts a space before a text, decoding drops it

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids of special tokens, which are no part of a text."""
        ...

    @property
    def marker_ids(self) -> frozenset[int]:
        """Ids of tokens that are text by their flag, but by which the chat template or their
        spelling marks who speaks: ``<think>``, ``<｜User｜>``."""
        ...

    def encode(self, text: str, *, add_bos: bool | None = None, special: bool = False) -> list[int]:
        """Token ids of ``text``.

        ``add_bos``: begin with the BOS token; None does what the model was trained with. Pass False
        for a rendered chat template, which writes its own. ``special``: special tokens spelled in
        ``text`` become their ids (chat templates), but not in what a ``Quoted`` text quotes, and
        neither do markers there; otherwise they are ordinary text, so that a user cannot forge
        them. Raises ``EdgeDBError`` if ``text`` is not valid Unicode.
        """
        ...

    def encode_inside(self, text: str) -> list[int]:
        """Token ids of ``text`` behind other text: without BOS and without the space that encoding
        may put before a text."""
        ...

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Text of ``ids``; bytes that are no UTF-8 become U+FFFD. Unknown ids give no text."""
        ...

    def stream(self, after: Sequence[int] = ()) -> Detokenizer:
        """A decoder for ids that arrive one by one and continue the text of ``after``."""
        ...

    def token_bytes(self, token: int, skip_special: bool = True) -> bytes:
        """The bytes that ``token`` adds to a text; empty for unknown ids.

        Special tokens give their spelling (``<|im_end|>``) or, with ``skip_special``, nothing.
        """
        ...


class Detokenizer:
    """Turns ids into text one at a time and never gives out part of a UTF-8 character.

    The texts of all ``push`` calls and of ``finish`` join to ``Tokenizer.decode`` of all ids.
    """

    def __init__(self, vocabulary: _Vocabulary, leading: int, skip_special: bool = True) -> None:
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


_STRIP_ALL = 2  # a value of _Vocabulary.leading


class _Vocabulary:
    """Ids to bytes, and the encoding rules that both libraries share."""

    vocab_size: int
    # The space that encoding puts before a text: 0 none; 1 dropped from the first piece;
    # _STRIP_ALL dropped from every piece until there is text.
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
        used = spelling in (self._spec.chat_template or "") and _MARKER.fullmatch(spelling)
        return bool(used or _CONTROL_MARKER.fullmatch(spelling))

    def encode(self, text: str, *, add_bos: bool | None = None, special: bool = False) -> list[int]:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise EdgeDBError(
                f"the text is not valid Unicode: lone surrogate at character {error.start}"
            ) from None
        if special and source_of(text):
            ids = self._encode_quoting(cast(Quoted, text))
        else:
            ids = self._encode(str.__str__(text), special) if text else []
        if (self._spec.add_bos if add_bos is None else add_bos) and self._spec.bos_id is not None:
            ids.insert(0, self._spec.bos_id)
        return ids

    def encode_inside(self, text: str) -> list[int]:
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
            known = 0 <= token < self.vocab_size
            data = self._bytes[token] = self._piece_bytes(token) if known else b""
        return data

    def _encode(self, text: str, special: bool) -> list[int]:
        raise NotImplementedError

    def _encode_quoting(self, text: Quoted) -> list[int]:
        """Ids of ``text`` with control tokens where nothing is quoted."""
        raise NotImplementedError

    def _piece_bytes(self, token: int) -> bytes:
        raise NotImplementedError


def _bytes_of_piece(piece: str) -> bytes:
    """Bytes of a SentencePiece piece: ``<0xNN>`` is one byte, the mark is a space."""
    byte = _BYTE_PIECE.fullmatch(piece)
    if byte:
        return bytes([int(byte[1], 16)])
    return piece.replace(_SPACE_MARK, " ").encode("utf-8")


class _SentencePiece(_Vocabulary):
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
        specials = {i: model.id_to_piece(i) for i in range(self.vocab_size) if model.is_control(i)}
        self._hidden |= set(specials)
        for i in (spec.bos_id, *spec.eos_ids):
            if i is not None and i < self.vocab_size:
                specials[i] = model.id_to_piece(i)
        self._id_of_special = {piece: i for i, piece in specials.items() if piece}
        self._specials = any_of(self._id_of_special)
        self._markers = {
            i: piece
            for i, piece in enumerate(map(model.id_to_piece, range(self.vocab_size)))
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
        pieces = ((i, model.id_to_piece(i)) for i in range(self.vocab_size))
        word = next((i for i, p in pieces if p[:1] == _SPACE_MARK and len(p) > 1), None)
        if word is None or model.decode([word]).startswith(" "):
            return 0
        space = model.piece_to_id(_SPACE_MARK)
        return 1 if model.decode([space, word]).startswith(" ") else _STRIP_ALL

    def _encode(self, text: str, special: bool) -> list[int]:
        if special:
            return self._encode_quoting(Quoted(text, TEMPLATE))
        return self._encode_plain(Quoted(text), self._eager_specials)

    def _encode_quoting(self, text: Quoted) -> list[int]:
        ids: list[int] = []
        end = 0
        for match in own_matches(self._specials, text):
            ids += self._encode_plain(text[end : match.start()], self._eager)
            ids.append(self._id_of_special[match[0]])
            end = match.end()
        return ids + self._encode_plain(text[end:], self._eager)

    def _encode_plain(self, text: Quoted, refused: re.Pattern[str]) -> list[int]:
        """Ids of ``text``; what it quotes of ``refused`` is cut after the first character."""
        marks = sources(text)
        found = (match.span() for match in refused.finditer(text))
        cuts = [start + 1 for start, end in found if end - start > 1 and any(marks[start:end])]
        first, *rest = (
            str.__str__(text[a:b]) for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)
        )
        ids = list(self._model.encode(first)) if first else []
        for part in rest:
            ids += self.encode_inside(part)
        return ids

    def _piece_bytes(self, token: int) -> bytes:
        if self._model.is_unknown(token):
            return b" \xe2\x81\x87 "  # SentencePiece's own surface of an unknown piece
        return _bytes_of_piece(self._model.id_to_piece(token))


class _Tokenizers(_Vocabulary):
    def __init__(self, spec: TokenizerSpec) -> None:
        super().__init__(spec)
        self._model = open_tokenizer_json(spec.data)
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
            if text and _MARKER.fullmatch(text) and not (token and token.special):
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
            return self._added[token].encode("utf-8")
        piece = self._model.id_to_token(token)
        if piece is None:
            return b""
        if not self._byte_level:
            return _bytes_of_piece(piece)
        try:
            return bytes([_BYTE_OF_CHARACTER[c] for c in piece])
        except KeyError:
            return piece.encode("utf-8")


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable spelling of bytes: most stand for themselves, the rest follow 255."""
    themselves = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in themselves]
    alphabet = {chr(b): b for b in themselves}
    alphabet.update({chr(256 + n): b for n, b in enumerate(others)})
    return alphabet


_BYTE_OF_CHARACTER = _byte_level_alphabet()


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


def load_tokenizer(spec: TokenizerSpec, vocab_size: int | None = None) -> Tokenizer:
    """Open the tokenizer of ``spec``, for a model of ``vocab_size`` tokens.

    Raises ``FormatError`` if its file cannot be read, its special ids lie outside the vocabulary,
    or it has more tokens than the model.
    """
    tokenizer = _SentencePiece(spec) if spec.kind == "sentencepiece" else _Tokenizers(spec)
    for name, token in (("bos_id", spec.bos_id), *(("eos_ids", i) for i in spec.eos_ids)):
        if token is not None and token >= tokenizer.vocab_size:
            raise FormatError(
                f"tokenizer: {name} {token} is outside the vocabulary of {tokenizer.vocab_size}"
            )
    if vocab_size is not None and tokenizer.vocab_size > vocab_size:
        raise FormatError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model only {vocab_size}; "
            "it is another model's"
        )
    return tokenizer
