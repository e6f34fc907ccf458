"""Tokenizers out of GGUF metadata: byte-level BPE as tokenizer.json, SentencePiece as a model."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from ...errors import CheckpointWarning, FormatError, UnsupportedModelError
from ...text.spec import Kind, TokenizerSpec
from . import pre_tokenizers
from . import sentencepiece_proto as proto

_PREFIX = "tokenizer.ggml."

# Tokens that end an answer, for files whose metadata name only one of several, or none of them.
_END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>")

# What llama.cpp takes where the metadata of a SentencePiece model do not say.
_SENTENCEPIECE_IDS = {"unknown_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

_FLOAT32_MAX = float(np.finfo(np.float32).max)


def tokenizer_spec(name: str, metadata: Mapping[str, Any]) -> TokenizerSpec:
    """The tokenizer of the GGUF file ``name``.

    Special ids and the template are as the file has them, of any type. Raises ``FormatError`` when
    the metadata are incomplete or of the wrong kind, ``UnsupportedModelError`` for a kind of
    tokenizer (or a pre-tokenizer) that is not known.
    """
    values = _Values(name, metadata)
    model = values.text("model", "?")
    if model not in ("gpt2", "llama"):
        raise UnsupportedModelError(f"{name}: tokenizer {model!r} is not supported (gpt2, llama)")
    tokens, types = _vocabulary(values)
    kind: Kind
    begins = True  # llama.cpp's default for a SentencePiece model that does not say
    if model == "gpt2":
        pre = _pre_tokenizer(values)
        kind, data, begins = "tokenizers", _byte_level_bpe(values, tokens, types, pre), pre.begins
    else:
        defaults = {_PREFIX + key: index for key, index in _SENTENCEPIECE_IDS.items()}
        values = _Values(name, {**defaults, **metadata})
        kind, data = "sentencepiece", _sentencepiece_model(values, tokens, types)

    eos_ids = [values.raw(key) for key in ("eos_token_id", "eot_token_id", "eom_token_id")]
    eos_ids += [i for i, token in enumerate(tokens) if token in _END_OF_TURN]
    special = {}
    for key, field in (
        ("bos_token", "bos_token_id"),
        ("eos_token", "eos_token_id"),
        ("unk_token", "unknown_token_id"),
        ("pad_token", "padding_token_id"),
    ):
        index = values.token_id(field)
        if index is not None and index < len(tokens):
            special[key] = tokens[index]
    return TokenizerSpec(
        kind=kind,
        data=data,
        bos_id=values.raw("bos_token_id"),
        eos_ids=tuple(i for i in eos_ids if i is not None),
        add_bos=values.flag("add_bos_token", begins),
        chat_template=metadata.get("tokenizer.chat_template"),
        special_tokens=special,
    )


class _Values:
    """``tokenizer.ggml.*`` of one file, as the types that are asked for; else ``FormatError``."""

    def __init__(self, name: str, metadata: Mapping[str, Any]) -> None:
        self.name, self._metadata = name, metadata

    def raw(self, key: str) -> Any:
        return self._metadata.get(_PREFIX + key)

    def text(self, key: str, default: str) -> str:
        found = self.raw(key)
        if found is None:
            return default
        if not isinstance(found, str):
            raise self.error(key, "is no text")
        return found

    def flag(self, key: str, default: bool) -> bool:
        found = self.raw(key)
        if found is None:
            return default
        if type(found) is not bool:
            raise self.error(key, "is neither true nor false")
        return found

    def token_id(self, key: str) -> int | None:
        found = self.raw(key)
        return found if type(found) is int and 0 <= found < 1 << 31 else None

    def texts(self, key: str) -> list[str]:
        """A list of texts; empty if the file has none."""
        found = self._list(key)
        for number, item in enumerate(found):
            if not isinstance(item, str):
                raise self.error(key, f"entry {number} is no UTF-8 text")
        return found

    def integers(self, key: str, low: int, high: int) -> list[int]:
        found = self._list(key)
        if not all(type(item) is int and low <= item <= high for item in found):
            raise self.error(key, f"expected integers from {low} to {high}")
        return found

    def floats(self, key: str) -> list[float]:
        found = self._list(key)
        if not all(type(item) is float and abs(item) <= _FLOAT32_MAX for item in found):
            raise self.error(key, "expected finite numbers")
        return found

    def _list(self, key: str) -> list[Any]:
        found = self.raw(key)
        if found is not None and not isinstance(found, list):
            raise self.error(key, "is no list")
        return found or []

    def error(self, key: str, problem: str) -> FormatError:
        return FormatError(f"{self.name}: {_PREFIX}{key}: {problem}")


def _vocabulary(values: _Values) -> tuple[list[str], list[int]]:
    """Tokens, each of its own, and their types."""
    tokens = values.texts("tokens")
    # 0 is llama.cpp's "undefined".
    types = [kind or proto.NORMAL for kind in values.integers("token_type", 0, proto.BYTE)]
    if not tokens or len(types) != len(tokens):
        raise FormatError(f"{values.name}: the GGUF metadata hold no complete tokenizer")
    empty = [i for i, token in enumerate(tokens) if not token]
    for i in empty:  # llama.cpp's name for them
        tokens[i] = f"[EMPTY_{i}]"
    if empty:
        text = f"{values.name}: token {empty[0]} has no text; it is called {tokens[empty[0]]}"
        warnings.warn(text, CheckpointWarning, stacklevel=4)
    for i, token in enumerate(tokens):
        # Converters of older files typed every added token as the user's own, as text.
        if token in _END_OF_TURN and types[i] != proto.CONTROL:
            types[i] = proto.CONTROL
            text = f"{values.name}: token {token} is typed as text; it is taken for an end of turn"
            warnings.warn(text, CheckpointWarning, stacklevel=4)
    if len(set(tokens)) < len(tokens):
        twice = Counter(tokens).most_common(1)[0][0]
        raise values.error("tokens", f"{twice[:40]!r} is there twice")
    return tokens, types


def _pre_tokenizer(values: _Values) -> pre_tokenizers.PreTokenizer:
    pre = values.text("pre", "") or "missing"
    if pre in ("missing", "default"):
        warnings.warn(
            f"{values.name}: {_PREFIX}pre is {pre}: how text is split into words is not known; "
            "GPT-2's way is assumed, and another model's answers will be worse",
            CheckpointWarning,
            stacklevel=4,
        )
        pre = "gpt-2"
    if pre not in pre_tokenizers.KNOWN:
        raise UnsupportedModelError(
            f"{values.name}: pre-tokenizer {pre[:40]!r} is not known, so its text would be split "
            "wrongly; convert the model's Hugging Face folder, whose tokenizer.json says how"
        )
    return pre_tokenizers.KNOWN[pre]


def _byte_level_bpe(
    values: _Values, tokens: list[str], types: list[int], pre: pre_tokenizers.PreTokenizer
) -> bytes:
    """tokenizer.json of a GPT-2-like tokenizer."""
    from tokenizers import AddedToken, Tokenizer, decoders, models

    name, merges = values.name, values.texts("merges")
    if not merges:
        raise FormatError(f"{name}: the GGUF metadata hold no BPE merges")
    pairs = []
    for merge in merges:
        left, space, right = merge.partition(" ")
        if not space:
            raise FormatError(
                f"{name}: BPE merge {merge[:80]!r} is not two tokens with a space between"
            )
        pairs.append((left, right))
    try:
        bpe = models.BPE(
            vocab={token: i for i, token in enumerate(tokens)},
            merges=pairs,
            ignore_merges=pre.whole_words,
        )
    except Exception as error:  # the package raises plain Exception
        raise FormatError(f"{name}: BPE merges: {error}") from None
    empty = {"type": "BPE", "vocab": {}, "merges": []}
    tokenizer = Tokenizer.from_str(json.dumps({**pre.parts(), "model": empty}))
    tokenizer.model = bpe
    tokenizer.decoder = decoders.ByteLevel()
    typed = list(zip(tokens, types, strict=True))
    special = [token for token, kind in typed if kind in (proto.CONTROL, proto.UNKNOWN)]
    plain = [token for token, kind in typed if kind == proto.USER_DEFINED]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in plain])
    return tokenizer.to_str().encode()


def _sentencepiece_model(values: _Values, tokens: list[str], types: list[int]) -> bytes:
    """A SentencePiece ModelProto with the pieces of the GGUF file."""
    scores = values.floats("scores")
    if len(scores) != len(tokens):
        raise FormatError(
            f"{values.name}: the GGUF metadata hold no scores for the SentencePiece tokens"
        )
    # Older converters typed every token without a piece as unknown; a model has one of these.
    typed = [i for i, kind in enumerate(types) if kind == proto.UNKNOWN]
    unknown = typed[0] if len(typed) == 1 else values.token_id("unknown_token_id")
    kinds = [
        proto.UNKNOWN if i == unknown else proto.UNUSED if kind == proto.UNKNOWN else kind
        for i, kind in enumerate(types)
    ]
    pieces = b"".join(map(proto.piece, tokens, scores, kinds))
    trainer = (
        proto.integer(3, 2)  # model_type: BPE
        + proto.integer(4, len(tokens))
        + proto.integer(35, int(proto.BYTE in types))  # byte_fallback
    )
    for field, key in (
        (40, "unknown_token_id"),
        (41, "bos_token_id"),
        (42, "eos_token_id"),
        (43, "padding_token_id"),
    ):
        found = values.token_id(key)
        trainer += proto.integer(field, -1 if found is None else found)
    charsmap = bytes(i & 0xFF for i in values.integers("precompiled_charsmap", -128, 255))
    normalizer = (
        proto.text(1, "identity")
        + proto.message(2, charsmap)
        + proto.integer(3, int(values.flag("add_space_prefix", True)))  # add_dummy_prefix
        + proto.integer(4, int(values.flag("remove_extra_whitespaces", False)))
        + proto.integer(5, 1)  # escape_whitespaces
    )
    return pieces + proto.message(2, trainer) + proto.message(3, normalizer)
