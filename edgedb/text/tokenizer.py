"""What a model file says about its tokenizer, and what the engine needs of one.

The two libraries that checkpoints use are behind ``sentencepiece_vocabulary.py`` and
``tokenizers_vocabulary.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from ..errors import FormatError
from ..gate import gate

if TYPE_CHECKING:
    from .vocabulary import Detokenizer

Kind = Literal["sentencepiece", "tokenizers"]
Prefix = Literal["always", "first"]
KINDS = ("sentencepiece", "tokenizers")
MAX_TEMPLATE_CHARS = 1 << 17  # the longest of 74 published ones has 17,000

_METADATA_KEYS = (
    *("kind", "bos_id", "eos_ids", "add_bos", "chat_template", "special_tokens", "prefix"),
)
_MAX_SPECIAL_TOKENS = 1 << 16


@dataclass(frozen=True)
class TokenizerSpec:
    """Everything a model file says about its tokenizer.

    ``data`` is the tokenizer's own file: a SentencePiece model or a ``tokenizer.json``.
    ``special_tokens`` are the names a chat template may use (``bos_token``, ``eos_token``, ...).
    ``prefix``: where a SentencePiece model puts a space before a text, whether it also puts one
    behind every special token (``always``).
    """

    kind: Kind
    data: bytes
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    add_bos: bool = False
    chat_template: str | None = None
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    prefix: Prefix = "always"

    def to_metadata(self) -> dict[str, Any]:
        """The file's ``tokenizer`` entry: plain JSON values, without ``data``."""
        return {
            "kind": self.kind,
            "bos_id": self.bos_id,
            "eos_ids": list(self.eos_ids),
            "add_bos": self.add_bos,
            "chat_template": self.chat_template,
            "special_tokens": dict(self.special_tokens),
            **({} if self.prefix == "always" else {"prefix": self.prefix}),
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
        if raw.get("prefix", "always") not in ("always", "first"):
            raise FormatError("tokenizer: prefix must be always or first")
        return cls(
            kind=cast(Kind, kind),
            data=data,
            bos_id=raw.get("bos_id"),
            eos_ids=tuple(eos_ids),
            add_bos=raw.get("add_bos", False),
            chat_template=template,
            special_tokens=dict(special),
            prefix=raw.get("prefix", "always"),
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


def _open(spec: TokenizerSpec) -> Tokenizer:
    if spec.kind == "sentencepiece":
        from .sentencepiece_vocabulary import SentencePieceVocabulary

        return SentencePieceVocabulary(spec)
    from .tokenizers_vocabulary import TokenizersVocabulary

    return TokenizersVocabulary(spec)


def load_tokenizer(spec: TokenizerSpec, vocab_size: int | None = None) -> Tokenizer:
    """Open the tokenizer of ``spec``, for a model of ``vocab_size`` tokens.

    Raises ``FormatError`` if its file cannot be read, its special ids lie outside the vocabulary,
    or it has more tokens than the model.
    """
    with gate.lock:
        tokenizer = _open(spec)
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
