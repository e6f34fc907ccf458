"""What a model file says about its tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import numpy as np

from ..errors import FormatError
from .piece_tables import PieceTables

Kind = Literal["sentencepiece", "tokenizers", "bpe"]
Prefix = Literal["always", "first"]
KINDS = ("sentencepiece", "tokenizers", "bpe")
MAX_TEMPLATE_CHARS = 1 << 17  # the longest of 74 published ones has 17,000

_METADATA_KEYS = (
    *("kind", "bos_id", "eos_ids", "add_bos", "chat_template", "special_tokens", "prefix"),
)
_MAX_SPECIAL_TOKENS = 1 << 16


@dataclass(frozen=True)
class TokenizerSpec:
    """Everything a model file says about its tokenizer.

    ``data`` is the tokenizer's own file: a SentencePiece model or a ``tokenizer.json``; of kind
    ``bpe`` a ``tokenizer.json`` without vocabulary and merges, which are ``tables`` (None
    otherwise).
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
    tables: PieceTables | None = None

    def arrays(self) -> dict[str, np.ndarray]:
        """What a model file holds beside ``to_metadata``: ``data`` as ``file``, and the tables."""
        tables = {} if self.tables is None else self.tables.arrays()
        return {"file": np.frombuffer(self.data, np.uint8), **tables}

    def to_metadata(self) -> dict[str, Any]:
        """The file's ``tokenizer`` entry: plain JSON values, without the arrays."""
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
    def from_metadata(
        cls, raw: object, data: bytes, tables: PieceTables | None = None
    ) -> TokenizerSpec:
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
        if (kind == "bpe") != (tables is not None):
            raise FormatError(
                "tokenizer: tables of pieces belong to the kind bpe, and it needs them"
            )
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
            tables=tables,
        )


def _is_id(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 31
