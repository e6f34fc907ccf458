"""Mistral's tekken.json as a tokenizer.json.

The file holds byte strings by rank, a regular expression that splits text into words, and special
tokens, whose ids come first. A word that is no token is put together from bytes: the two neighbours
that make the token of the lowest rank are joined, until none make one. For the package tokenizers
that is BPE whose merges are all pairs of tokens that make a token, by its rank.
"""

from __future__ import annotations

import base64
import json
from typing import Any

from ...errors import FormatError
from ...strict_json import refuse_many_values
from ...text.tokenizer_json import join_parts
from ...text.tokenizers_vocabulary import BYTE_OF_CHARACTER
from .pre_tokenizers import split_by
from .tokenizer_spec import is_text

FILE = "tekken.json"
BOS = "<s>"
SPECIAL = {"bos_token": BOS, "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}

MAX_VALUES = 1 << 21  # of JSON; the published files have half as many
MAX_TOKEN_BYTES = 256  # the longest in the published files has 76
MAX_SPECIAL_TOKENS = 1 << 14  # of the published files, 1,000
# Special tokens of the files that name none: those of version 7 and before.
_FIRST_SPECIAL = (
    "<unk> <s> </s> [INST] [/INST] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_RESULTS] "
    "[/TOOL_RESULTS] [TOOL_CALLS] [IMG] <pad> [IMG_BREAK] [IMG_END] [PREFIX] [MIDDLE] [SUFFIX] "
    "[SYSTEM_PROMPT] [/SYSTEM_PROMPT] [TOOL_CONTENT]"
)
_NAMELESS_VERSIONS = ("v1", "v2", "v3", "v7")
_CHARACTERS = {byte: character for character, byte in BYTE_OF_CHARACTER.items()}


def tokenizer_json(data: bytes) -> bytes:
    """The tokenizer.json that gives the ids of the tekken.json ``data``. BOS begins every text.

    Raises ``FormatError`` if ``data`` is no such file.
    """
    document, config = _opened(data)
    n_special = _integer(config, "default_num_special_tokens", 3, MAX_SPECIAL_TOKENS)
    special = _special_tokens(document.get("special_tokens"), config.get("version"), n_special)
    ranks = _ranks(
        document.get("vocab"), _integer(config, "default_vocab_size", 1, 1 << 31), n_special
    )

    vocab = {text: i for i, (text, _) in enumerate(special)}
    vocab |= {_spelled(token): n_special + rank for token, rank in ranks.items()}
    if len(vocab) < n_special + len(ranks):
        raise _damaged("a special token is spelled like another token")
    model = {
        "type": "BPE",
        "ignore_merges": True,
        "vocab": vocab,
        "merges": _merges(ranks),
    }
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [
        {"id": i, "content": text, **flags, "special": control}
        for i, (text, control) in enumerate(special)
    ]
    shell = {
        "version": "1.0",
        "added_tokens": added,
        **split_by(_pattern(config)).parts(),
        "post_processor": _post_processor(vocab.get(BOS)),
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": True,
            "trim_offsets": True,
            "use_regex": True,
        },
    }
    return join_parts(shell, json.dumps(model).encode())


def _post_processor(bos: int | None) -> dict[str, Any] | None:
    """Begins a text with BOS."""
    if bos is None:
        return None
    first = {"SpecialToken": {"id": BOS, "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [first, text],
        "pair": [first, text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {BOS: {"id": BOS, "ids": [bos], "tokens": [BOS]}},
    }


def _special_tokens(found: Any, version: Any, count: int) -> list[tuple[str, bool]]:
    """Text of each special token and whether it is a control token, by id."""
    if found is None and version in _NAMELESS_VERSIONS:
        tokens = [(text, True) for text in _FIRST_SPECIAL.split()]
    elif isinstance(found, list):
        tokens = []
        for number, entry in enumerate(found):
            entry = _object(entry, f"special token {number}")
            text, control = entry.get("token_str"), entry.get("is_control")
            if (
                entry.get("rank") != number
                or not isinstance(text, str)
                or type(control) is not bool
            ):
                raise _damaged(f"special token {number} without its rank, text and is_control")
            tokens.append((text, control))
    else:
        raise _damaged("no special_tokens")
    tokens += [(f"<SPECIAL_{i}>", True) for i in range(len(tokens), count)]
    if len(tokens) > count or len({text for text, _ in tokens}) < count:
        raise _damaged(f"more than {count} special tokens, or one is there twice")
    return tokens


def _ranks(vocab: Any, size: int, n_special: int) -> dict[bytes, int]:
    """The tokens that the model knows, each with its rank."""
    n_tokens = size - n_special
    if not isinstance(vocab, list) or not 256 <= n_tokens <= len(vocab):
        raise _damaged("vocab is no list, or has fewer tokens than config.default_vocab_size")
    ranks: dict[bytes, int] = {}
    for rank, entry in enumerate(vocab[:n_tokens]):
        entry = _object(entry, f"token {rank}")
        try:
            token = base64.b64decode(entry["token_bytes"], validate=True)
        except (KeyError, TypeError, ValueError):
            raise _damaged(f"token {rank}: token_bytes is no base64") from None
        if entry.get("rank") != rank or not 0 < len(token) <= MAX_TOKEN_BYTES:
            raise _damaged(f"token {rank} is not of this rank, or empty, or too long")
        ranks[token] = rank
    if len(ranks) < n_tokens:
        raise _damaged("a token is there twice")
    if not all(bytes([byte]) in ranks for byte in range(256)):
        raise _damaged("a byte is no token")
    return ranks


def _merges(ranks: dict[bytes, int]) -> list[tuple[str, str]]:
    return [
        (_spelled(token[:cut]), _spelled(token[cut:]))
        for token in ranks
        for cut in range(1, len(token))
        if token[:cut] in ranks and token[cut:] in ranks
    ]


def _spelled(token: bytes) -> str:
    return token.decode("latin-1").translate(_CHARACTERS)


def pattern(data: bytes) -> str:
    """The regular expression by which the tekken.json ``data`` splits text; see above."""
    return _pattern(_opened(data)[1])


def _opened(data: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """The file and its configuration."""
    document = _object(_parsed(data), "the file")
    return document, _object(document.get("config"), "config")


def _pattern(config: dict[str, Any]) -> str:
    found = config.get("pattern")
    if not is_text(found):
        raise _damaged("config.pattern is no text")
    return str(found)


def _parsed(data: bytes) -> Any:
    refuse_many_values(data, FILE, MAX_VALUES)
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _damaged(str(error)[:120]) from None


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _damaged(f"{what} is no JSON object")
    return value


def _integer(config: dict[str, Any], key: str, low: int, high: int) -> int:
    value = config.get(key)
    if type(value) is not int or not low <= value <= high:
        raise _damaged(f"config.{key} is no number from {low} to {high}")
    return value


def _damaged(reason: str) -> FormatError:
    return FormatError(f"{FILE}: {reason}")
