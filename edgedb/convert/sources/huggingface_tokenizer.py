"""The tokenizer of a Hugging Face directory: which of its files counts, and its special tokens.

As in transformers, a tokenizer.json counts wherever there is one: a SentencePiece model beside it
may split otherwise, above all behind control tokens. Next comes Mistral's tekken.json; beside a
tokenizer.json it still says how text is split.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

from ...errors import CheckpointWarning, EdgeDBError, FormatError
from ...model.dbb import MAX_TOKENIZER_BYTES
from ...text.spec import Kind, TokenizerSpec
from ...text.tokenizer import load_tokenizer
from ...text.tokenizer_json import encode, join_parts, open_tokenizer_json, read_parts
from . import sentencepiece_proto as proto
from . import tekken
from .folder import exists, read_bytes, read_json, read_text
from .pre_tokenizers import split_by
from .tokenizer_spec import is_text, without_rows

T = TypeVar("T")

_TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token")


class _Tokenizer(NamedTuple):
    kind: Kind
    data: bytes
    token_id: Callable[[str], int | None]
    puts_first: Callable[[Any], bool]  # whether it begins every text with this id
    special: Mapping[str, str] = MappingProxyType({})  # as in tokenizer_config.json


def tokenizer_spec(path: Path, config: Mapping[str, Any], vocab_size: int) -> TokenizerSpec:
    """The tokenizer of the directory ``path``; special ids and the template are of any type.

    ``vocab_size`` is the model's. Raises ``FormatError`` for a missing or damaged file.
    """
    settings = read_json(path / "tokenizer_config.json")
    generation = read_json(path / "generation_config.json")
    special = {**read_json(path / "special_tokens_map.json"), **settings}
    texts = {name: _token_text(special.get(name)) for name in _TOKEN_NAMES}
    tokenizer = _open(path, settings, vocab_size)
    named = {name: text for name, text in texts.items() if is_text(text)}
    tokens = {**tokenizer.special, **named}

    def id_of(name: str) -> int | None:
        return tokenizer.token_id(tokens[name]) if name in tokens else None

    eos_ids: list[Any] = []
    for value in (generation.get("eos_token_id"), config.get("eos_token_id")):
        eos_ids += value if isinstance(value, list) else [value]
    eos_ids.append(id_of("eos_token"))
    bos_id = config.get("bos_token_id") if (found := id_of("bos_token")) is None else found
    add_bos = settings.get("add_bos_token")
    return TokenizerSpec(
        kind=tokenizer.kind,
        data=tokenizer.data,
        bos_id=bos_id,
        eos_ids=tuple(eos_ids),
        add_bos=tokenizer.puts_first(bos_id) if add_bos is None else bool(add_bos),
        chat_template=_chat_template(path, settings),
        special_tokens=tokens,
        prefix="first" if settings.get("legacy") is False else "always",
    )


def _open(path: Path, settings: Mapping[str, Any], vocab_size: int) -> _Tokenizer:
    model, fast = path / "tokenizer.model", path / "tokenizer.json"
    if exists(fast):
        data = read_bytes(fast, MAX_TOKENIZER_BYTES)
        return _tokenizers(_split_as_tekken(data, path), fast)
    if exists(path / tekken.FILE):
        return _tekken(path / tekken.FILE)
    data = read_bytes(model, MAX_TOKENIZER_BYTES) if exists(model) else b""
    # A tiktoken file (Llama 3's original/tokenizer.model) is base64 text; a SentencePiece model is
    # a protobuf whose first field is the first piece.
    if not data.startswith(b"\x0a"):
        raise FormatError(
            f"{path.name}: no tokenizer.json, no tekken.json and no SentencePiece tokenizer.model"
        )
    spec = TokenizerSpec("sentencepiece", data)
    n_pieces = _opened(model, lambda: load_tokenizer(spec).vocab_size)
    # Tokens added after training (chat markers, for one) are in files of their own.
    added = _added_tokens(path, settings, vocab_size)
    return _sentencepiece(_with_added(data, n_pieces, added))


def _opened(file: Path, opened: Callable[[], T]) -> T:
    """What ``opened`` makes of ``file``, which an error names."""
    try:
        return opened()
    except EdgeDBError as error:
        reason = str(error).removeprefix("tokenizer.file: ")
        raise type(error)(f"{file.parent.name}: {file.name} is damaged: {reason}") from None


def _named(file: Path, made: Callable[[], T]) -> T:
    """What ``made`` makes of ``file``, whose folder an error names."""
    try:
        return made()
    except FormatError as error:
        raise FormatError(f"{file.parent.name}: {error}") from None


def _sentencepiece(data: bytes) -> _Tokenizer:
    import sentencepiece

    pieces = sentencepiece.SentencePieceProcessor(model_proto=data)

    def piece_id(text: str) -> int | None:
        found = int(pieces.piece_to_id(text))
        return found if pieces.id_to_piece(found) == text else None

    return _Tokenizer("sentencepiece", data, piece_id, lambda bos_id: bos_id is not None)


def _tokenizers(data: bytes, file: Path) -> _Tokenizer:
    library = _opened(file, lambda: open_tokenizer_json(data))

    def puts_first(bos_id: Any) -> bool:
        return encode(library, "a", add_special_tokens=True).ids[:1] == [bos_id]

    return _Tokenizer("tokenizers", data, library.token_to_id, puts_first)


def _split_as_tekken(data: bytes, path: Path) -> bytes:
    """A tokenizer.json that splits text as the tekken.json beside it says, if there is one.

    Some of Mistral's own were converted with the split of Llama 3.
    """
    file = path / tekken.FILE
    if not exists(file):
        return data
    pattern = _named(file, lambda: tekken.pattern(read_bytes(file)))
    document, model = _opened(path / "tokenizer.json", lambda: read_parts(data))
    if json.dumps(pattern) in json.dumps(document.get("pre_tokenizer")):
        return data
    text = f"{path.name}: tokenizer.json splits text otherwise than tekken.json, which counts"
    warnings.warn(text, CheckpointWarning, stacklevel=5)
    split = split_by(pattern).parts()["pre_tokenizer"]
    return join_parts({**document, "pre_tokenizer": split}, model)


def _tekken(file: Path) -> _Tokenizer:
    data = _named(file, lambda: tekken.tokenizer_json(read_bytes(file)))
    found = _tokenizers(data, file)
    special = {k: v for k, v in tekken.SPECIAL.items() if found.token_id(v) is not None}
    return found._replace(special=special)


def _added_tokens(
    path: Path, settings: Mapping[str, Any], vocab_size: int
) -> dict[int, tuple[str, bool]]:
    """Id -> text and whether it is special, where no tokenizer.json says so."""
    more = settings.get("additional_special_tokens")
    named = [settings.get(name) for name in _TOKEN_NAMES] + (more if isinstance(more, list) else [])
    special = [_token_text(token) for token in named]
    found: dict[int, tuple[str, bool]] = {}
    try:
        for text, number in read_json(path / "added_tokens.json").items():
            found[int(number)] = text, text in special
        for number, token in (settings.get("added_tokens_decoder") or {}).items():
            found[int(number)] = token["content"], bool(token.get("special"))
    except (TypeError, LookupError, ValueError, OverflowError, AttributeError):
        raise FormatError(f"{path.name}: added tokens without ids and texts") from None
    if beyond := [token for number, (token, _) in found.items() if number >= vocab_size]:
        text = f"{path.name}: {without_rows(beyond, vocab_size)}"
        warnings.warn(text, CheckpointWarning, stacklevel=4)
    return {number: token for number, token in found.items() if number < vocab_size}


def _with_added(data: bytes, n_pieces: int, added: Mapping[int, tuple[str, bool]]) -> bytes:
    """A SentencePiece model with the tokens that were added after its training as more pieces."""
    pieces = [data]
    for number in range(n_pieces, max(added, default=-1) + 1):
        text, special = added.get(number, ("", False))
        if not is_text(text) or not text:  # an id that no token has
            pieces.append(proto.piece(f"<unused{number}>", 0.0, proto.UNUSED))
        else:
            kind = proto.CONTROL if special else proto.USER_DEFINED
            pieces.append(proto.piece(text, 0.0, kind))
    return b"".join(pieces)


def _chat_template(path: Path, settings: Mapping[str, Any]) -> Any:
    file = path / "chat_template.jinja"
    if exists(file):
        return read_text(file)
    template = settings.get("chat_template")
    if isinstance(template, list):
        try:
            template = {entry["name"]: entry["template"] for entry in template}.get("default")
        except (TypeError, KeyError):
            raise FormatError(
                f"{path.name}: tokenizer_config.json: chat templates without name and template"
            ) from None
    return template


def _token_text(value: Any) -> Any:
    return value.get("content") if isinstance(value, dict) else value
