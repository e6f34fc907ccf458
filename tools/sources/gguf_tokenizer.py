"""Tokenizers out of GGUF metadata: byte-level BPE as tokenizer.json, SentencePiece as a model."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

from edgedb.errors import FormatError, UnsupportedModelError
from edgedb.tokenizer import Kind, TokenizerSpec

# Values of tokenizer.ggml.token_type; SentencePiece's own enumeration.
_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 2, 3, 4, 6

# Llama 3's split into words, in the syntax of the package tokenizers (tokenizer.json of the model).
_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Control tokens that end an answer, for files whose metadata name only one of several.
_END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>")


def tokenizer_spec(name: str, metadata: Mapping[str, Any]) -> TokenizerSpec:
    """The tokenizer of the GGUF file ``name``.

    Raises ``FormatError`` when the metadata are incomplete and ``UnsupportedModelError`` for a
    kind of tokenizer (or a pre-tokenizer) that is not known.
    """

    def value(key: str, default: Any = None) -> Any:
        return metadata.get(f"tokenizer.ggml.{key}", default)

    model, tokens, types = value("model"), value("tokens"), value("token_type")
    if not tokens or types is None or len(types) != len(tokens):
        raise FormatError(f"{name}: the GGUF metadata hold no complete tokenizer")
    bos_id = value("bos_token_id")
    kind: Kind
    if model == "gpt2":
        kind, data = "tokenizers", _byte_level_bpe(name, tokens, types, value)
    elif model == "llama":
        kind, data = "sentencepiece", _sentencepiece_model(name, tokens, types, value)
    else:
        raise UnsupportedModelError(f"{name}: tokenizer {model!r} is not supported (gpt2, llama)")

    eos_ids = [value(key) for key in ("eos_token_id", "eot_token_id", "eom_token_id")]
    eos_ids += [
        i for i, token in enumerate(tokens) if token in _END_OF_TURN and types[i] == _CONTROL
    ]
    special = {}
    for key, field in (
        ("bos_token", "bos_token_id"),
        ("eos_token", "eos_token_id"),
        ("unk_token", "unknown_token_id"),
        ("pad_token", "padding_token_id"),
    ):
        index = value(field)
        if type(index) is int and 0 <= index < len(tokens):
            special[key] = tokens[index]
    # llama.cpp's defaults where the file is silent: SentencePiece models begin with BOS, and so
    # do those with Llama 3's pre-tokenizer.
    begins = model == "llama" or value("pre") in ("llama-bpe", "llama3")
    return TokenizerSpec(
        kind=kind,
        data=data,
        bos_id=bos_id,
        eos_ids=tuple(dict.fromkeys(i for i in eos_ids if i is not None)),
        add_bos=bool(value("add_bos_token", begins)) and bos_id is not None,
        chat_template=metadata.get("tokenizer.chat_template"),
        special_tokens=special,
    )


def _byte_level_bpe(name: str, tokens: list[str], types: list[int], value: Any) -> bytes:
    """tokenizer.json of a GPT-2-like tokenizer."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    merges = value("merges")
    if not merges:
        raise FormatError(f"{name}: the GGUF metadata hold no BPE merges")
    for merge in merges:
        if not isinstance(merge, str) or " " not in merge:
            raise FormatError(f"{name}: BPE merge {merge!r} is not two tokens with a space between")
    pre = value("pre", "default")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    bare = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    pre_tokenizer: pre_tokenizers.PreTokenizer
    if pre == "smollm":
        pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), byte_level])
    elif pre in ("llama-bpe", "llama3"):
        split = pre_tokenizers.Split(Regex(_LLAMA3_SPLIT), behavior="isolated")
        pre_tokenizer = pre_tokenizers.Sequence([split, bare])
    elif pre in ("default", "gpt-2", "gpt2"):
        pre_tokenizer = byte_level
    else:
        raise UnsupportedModelError(f"{name}: pre-tokenizer {pre!r} is not supported")

    try:
        bpe = models.BPE(
            vocab={token: i for i, token in enumerate(tokens)},
            merges=[tuple(merge.split(" ", 1)) for merge in merges],
            # Llama 3's vocabulary holds words that its merges do not reach.
            ignore_merges=pre in ("llama-bpe", "llama3"),
        )
    except Exception as error:  # the package raises plain Exception
        raise FormatError(f"{name}: BPE merges: {error}") from None
    tokenizer = Tokenizer(bpe)
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    for token, kind in zip(tokens, types, strict=True):
        if kind in (_CONTROL, _UNKNOWN):
            tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        elif kind == _USER_DEFINED:
            tokenizer.add_tokens([AddedToken(token, special=False, normalized=False)])
    return tokenizer.to_str().encode()


def _sentencepiece_model(name: str, tokens: list[str], types: list[int], value: Any) -> bytes:
    """A SentencePiece ModelProto with the pieces of the GGUF file.

    Written out in protobuf's wire format (sentencepiece_model.proto): it needs ten fields, and
    the protobuf package would be a dependency for them alone.
    """
    scores = value("scores")
    if scores is None or len(scores) != len(tokens):
        raise FormatError(f"{name}: the GGUF metadata hold no scores for the SentencePiece tokens")
    pieces = b"".join(
        _message(1, _text(1, token) + _float(2, score) + _integer(3, kind))
        for token, score, kind in zip(tokens, scores, types, strict=True)
    )
    trainer = (
        _integer(3, 2)  # model_type: BPE
        + _integer(4, len(tokens))
        + _integer(35, int(_BYTE in types))  # byte_fallback
    )
    for field, key in (
        (40, "unknown_token_id"),
        (41, "bos_token_id"),
        (42, "eos_token_id"),
        (43, "padding_token_id"),
    ):
        trainer += _integer(field, value(key, 0 if field == 40 else -1))
    normalizer = (
        _text(1, "identity")
        + _message(2, bytes(value("precompiled_charsmap", b"")))
        + _integer(3, int(value("add_space_prefix", True)))  # add_dummy_prefix
        + _integer(4, int(value("remove_extra_whitespaces", False)))
        + _integer(5, 1)  # escape_whitespaces
    )
    return pieces + _message(2, trainer) + _message(3, normalizer)


def _varint(number: int) -> bytes:
    number &= (1 << 64) - 1  # negative int32 are sign-extended to ten bytes
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _integer(field: int, number: int) -> bytes:
    return _varint(field << 3) + _varint(number)


def _message(field: int, body: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(body)) + body


def _text(field: int, text: str) -> bytes:
    return _message(field, text.encode())


def _float(field: int, number: float) -> bytes:
    return _varint(field << 3 | 5) + struct.pack("<f", number)
