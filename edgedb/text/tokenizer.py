"""What the engine needs of a tokenizer, and how one is opened.

The two libraries that checkpoints use are behind ``sentencepiece_vocabulary.py`` and
``tokenizers_vocabulary.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

from ..errors import FormatError
from ..gate import gate
from .spec import TokenizerSpec

if TYPE_CHECKING:
    from .vocabulary import Detokenizer


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
