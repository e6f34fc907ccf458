"""Open a ``tokenizer.json`` that nobody vouches for, and encode with it.

The file is a program for the package ``tokenizers``, which believes it: a normalizer may multiply a
text, a regular expression may take for ever, a length may ask for gigabytes, and what is
inconsistent panics. So the parts that act on a text are read here first. Only those that published
checkpoints use are accepted, with bounds on how many there are and how much they can add; the
vocabulary and the merges, nearly all of the file, go to the library unread: they cost what they
hold, and whatever is wrong with them is an error or a panic, which is caught.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import EdgeDBError, FormatError, UnsupportedModelError
from ..strict_json import parse_json
from .bounded_regex import check_regex
from .charsmap import check_charsmap
from .piece_tables import PieceTables, model_of

if TYPE_CHECKING:
    import tokenizers

T = TypeVar("T")

MAX_GROWTH = 64  # characters that all replacements together make of one
MAX_PARTS = 32  # normalizers, or pre-tokenizers, or ...; published files have up to 9
MAX_NESTING = 4
MAX_ADDED_TOKENS = 1 << 17
MAX_ADDED_CHARS = 1024
MAX_IDS = 1 << 21
MAX_STRING_CHARS = 256  # of a pattern or a replacement
MAX_PARSED_BYTES = 1 << 24  # without the model; Gemma 3's 6,415 added tokens are 1.2 MB
_MODEL_KEY = re.compile(rb'"model"[ \t\r\n]*:')
_KEYS = ("version", "normalizer", "pre_tokenizer", "post_processor", "decoder")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_ONCE = ("ByteLevel", "Metaspace", "Prepend", "Precompiled")  # each grows a text a little


def open_tokenizer_json(data: bytes) -> tokenizers.Tokenizer:
    """The tokenizer of the file ``data``, without the limits of training (truncation, padding).

    It gives the same ids as the library's own reader. Raises ``FormatError`` if the file is
    damaged, ``UnsupportedModelError`` for a part that is not accepted, named.
    """
    parts = _split(data)
    if parts is not None:
        try:
            return _open(*parts)
        except FormatError:
            pass  # the model is not last, or the file is damaged: the other way says which
    return _open(*_whole(data))


def read_parts(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The document of the file ``data`` without its model, and the model as JSON, unread.

    Raises ``FormatError`` if there are no such parts.
    """
    return _split(data) or _whole(data)


def read_model(data: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """As ``read_parts``, of a file that ``open_tokenizer_json`` has opened, with the model read."""
    parts = _split(data)
    if parts is not None:
        try:
            return parts[0], json.loads(parts[1])
        except ValueError:
            pass  # something follows the model
    document, model_json = _whole(data)
    return document, json.loads(model_json)


def join_parts(document: Mapping[str, Any], model_json: bytes) -> bytes:
    """The file of what ``read_parts`` returns."""
    return json.dumps(dict(document)).encode()[:-1] + b', "model": ' + model_json + b"}"


def with_tables(data: bytes, tables: PieceTables) -> bytes:
    """The whole file of ``data``, whose model is without its vocabulary and merges."""
    document = parsed(data)
    settings = document.pop("model")
    return join_parts(document, json.dumps(model_of(tables, settings)).encode())


def encode(tokenizer: Any, text: str, *, add_special_tokens: bool = False) -> Any:
    """``text`` as ids and where they are from, by a tokenizer of the package or one that stands in
    for it. Raises ``EdgeDBError`` if the tokenizer fails."""
    return _guarded(
        lambda: tokenizer.encode(str.__str__(text), add_special_tokens=add_special_tokens),
        lambda reason: EdgeDBError(f"the tokenizer fails at this text ({reason})"),
    )


def _split(data: bytes) -> tuple[dict[str, Any], bytes] | None:
    """The document without its model, and the model as JSON; None where the model is not last.

    Reading a large vocabulary here would double the time to open it. Writers put the model last:
    so what stands before it is a whole document once a brace closes it, and what stands behind is
    one value, as the library finds when it reads it.
    """
    left = MAX_PARSED_BYTES  # of all tries together
    for key in _MODEL_KEY.finditer(data):
        left -= key.start()
        if left < 0:
            break
        try:
            document = parsed(data[: key.start()].rstrip().removesuffix(b",") + b"}")
        except FormatError:
            continue  # the word is inside of something
        end = len(data.rstrip()) - 1
        return (document, data[key.end() : end]) if data[end : end + 1] == b"}" else None
    return None


def _whole(data: bytes) -> tuple[dict[str, Any], bytes]:
    document = parsed(data)
    model = document.pop("model", None)
    if not isinstance(model, dict):
        raise _damaged("it has no model")
    return document, json.dumps(model).encode()


def parsed(data: bytes) -> dict[str, Any]:
    """The document ``data``, if it is not too large."""
    if len(data) > MAX_PARSED_BYTES:
        raise _damaged(f"more than {MAX_PARSED_BYTES} bytes, and the model is not its last entry")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _damaged(f"not UTF-8 at byte {error.start}") from None
    document = parse_json(text, "tokenizer.file: not a tokenizer.json")
    if not isinstance(document, dict):
        raise _damaged("not a JSON object")
    return document


def _open(document: dict[str, Any], model_json: bytes) -> tokenizers.Tokenizer:
    import tokenizers

    opened = open_shell(document, {"type": "BPE", "vocab": {}, "merges": []})
    model = tokenizers.models.BPE()  # of whatever type: the state brings its own
    _guarded(lambda: model.__setstate__(model_json), _damaged)
    opened.model = model
    _check_model(opened.model)
    add_tokens(opened, added_tokens(document))
    return opened


def open_shell(document: Mapping[str, Any], model: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """A tokenizer with what ``document`` does to a text before its model, and after it; with
    another ``model``, and no added tokens."""
    import tokenizers

    _check_normalizer(document.get("normalizer"))
    _check_pre_tokenizer(document.get("pre_tokenizer"))
    _check_post_processor(document.get("post_processor"))
    _check_decoder(document.get("decoder"))
    shell = {key: document.get(key) for key in _KEYS} | {"model": model, "added_tokens": []}
    return _guarded(lambda: tokenizers.Tokenizer.from_str(json.dumps(shell)), _damaged)


def added_tokens(document: Mapping[str, Any]) -> list[tokenizers.AddedToken]:
    """The added tokens of ``document``, checked."""
    import tokenizers

    return [
        tokenizers.AddedToken(token["content"], **{flag: token[flag] for flag in _FLAGS})
        for token in _added_tokens(document.get("added_tokens"))
    ]


def added_ids(document: Mapping[str, Any]) -> list[int]:
    """The id that ``document`` gives to each of its ``added_tokens``, which were checked."""
    ids: list[Any] = [token.get("id") for token in document.get("added_tokens") or []]
    if not all(type(i) is int and 0 <= i < MAX_IDS for i in ids):
        raise _damaged("an added token without an id")
    return ids


def add_tokens(library: tokenizers.Tokenizer, tokens: Sequence[tokenizers.AddedToken]) -> None:
    """Add ``tokens`` to ``library``, whatever it says of them."""
    _guarded(lambda: library.add_tokens(list(tokens)), _damaged)


def model_without_tables(document: Mapping[str, Any]) -> tokenizers.models.BPE:
    """What ``document`` says of its model, whose vocabulary and merges are elsewhere."""
    import tokenizers

    settings = document.get("model")
    if not isinstance(settings, dict) or settings.get("type") != "BPE":
        raise _damaged("a model that is no BPE")
    model = tokenizers.models.BPE()
    state = json.dumps({**settings, "vocab": {}, "merges": []}).encode()
    _guarded(lambda: model.__setstate__(state), _damaged)
    _check_model(model)
    return model


def _damaged(reason: str) -> FormatError:
    return FormatError(f"tokenizer.file: not a tokenizer.json ({reason})")


def _guarded(call: Callable[[], T], error_of: Callable[[str], EdgeDBError]) -> T:
    """The result of ``call``; what the library raises, panics too, as an error of ours."""
    try:
        return call()
    except Exception as error:  # the library raises bare Exception
        reason = str(error)
    except BaseException as error:
        # A panic is no Exception, and its class cannot be imported. Ctrl-C is neither.
        if type(error).__name__ != "PanicException":
            raise
        reason = f"panic: {error}"
    raise error_of((reason.splitlines() or ["unreadable"])[0][:200])


def _added_tokens(tokens: Any) -> list[dict[str, Any]]:
    if tokens is None:
        return []
    if not isinstance(tokens, list) or len(tokens) > MAX_ADDED_TOKENS:
        raise _damaged(f"added_tokens is no list of at most {MAX_ADDED_TOKENS} tokens")
    for token in tokens:
        if (
            not isinstance(token, dict)
            or not isinstance(token.get("content"), str)
            or len(token["content"]) > MAX_ADDED_CHARS
            or not _is_unicode(token["content"])
            or not all(type(token.get(flag)) is bool for flag in _FLAGS)
        ):
            raise _damaged("an added token without its content or its flags, or too long")
    return tokens


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _check_model(model: Any) -> None:
    kind = type(model).__name__
    if kind not in ("BPE", "Unigram"):
        raise UnsupportedModelError(f"tokenizer.json: model {kind} is not supported")
    if kind == "BPE":
        if model.dropout:
            raise UnsupportedModelError("tokenizer.json: dropout makes the ids of a text random")
        for name in ("continuing_subword_prefix", "end_of_word_suffix"):
            if getattr(model, name):
                raise UnsupportedModelError(f"tokenizer.json: {name} is not supported")


def _leaves(part: Any, what: str, plural: str, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """(type, part) of everything in a normalizer, pre-tokenizer ..., in order."""
    if part is None:
        return
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        raise _damaged(f"a {what} without a type")
    if part["type"] != "Sequence":
        yield part["type"], part
        return
    parts = part.get(plural)
    if depth >= MAX_NESTING or not isinstance(parts, list) or len(parts) > MAX_PARTS:
        raise _damaged(f"a sequence of {what}s that is none, too long, or nested too deeply")
    for inner in parts:
        yield from _leaves(inner, what, plural, depth + 1)


def _known(
    part: Any, what: str, plural: str, allowed: Mapping[str, Callable[[Any], None] | None]
) -> list[tuple[str, Any]]:
    """The leaves of ``part``, each of an allowed type and checked."""
    leaves = list(_leaves(part, what, plural))
    if len(leaves) > MAX_PARTS:
        raise _damaged(f"more than {MAX_PARTS} {what}s")
    for kind, leaf in leaves:
        if kind not in allowed:
            raise UnsupportedModelError(f"tokenizer.json: {what} {kind[:40]} is not supported")
        check = allowed[kind]
        if check is not None:
            check(leaf)
    for kind in _ONCE:
        if sum(found == kind for found, _ in leaves) > 1:
            raise UnsupportedModelError(f"tokenizer.json: {what} {kind} is there twice")
    return leaves


def _check_normalizer(part: Any) -> None:
    growth = 1.0
    for kind, leaf in _known(part, "normalizer", "normalizers", _NORMALIZERS):
        if kind == "Replace":
            growth *= _growth(leaf)
        elif kind == "Prepend":
            growth *= 1 + len(leaf["prepend"])
    if growth > MAX_GROWTH:
        raise UnsupportedModelError(
            f"tokenizer.json: the normalizers make more than {MAX_GROWTH} characters of one"
        )


def _check_pre_tokenizer(part: Any) -> None:
    _known(part, "pre-tokenizer", "pretokenizers", _PRE_TOKENIZERS)


def _check_decoder(part: Any) -> None:
    _known(part, "decoder", "decoders", _DECODERS)


def _check_post_processor(part: Any) -> None:
    _known(part, "post-processor", "processors", _POST_PROCESSORS)


def _text(leaf: Any, key: str, least: int = 0) -> str:
    value = leaf.get(key)
    if not isinstance(value, str) or not least <= len(value) <= MAX_STRING_CHARS:
        raise _damaged(
            f"{leaf['type']}: {key} is no text of {least} to {MAX_STRING_CHARS} characters"
        )
    return value


def _check_prepend(leaf: Any) -> None:
    _text(leaf, "prepend")


def _check_pattern(leaf: Any) -> None:
    pattern = leaf.get("pattern")
    if not isinstance(pattern, dict) or len(pattern) != 1:
        raise _damaged(f"{leaf['type']}: a pattern that is neither String nor Regex")
    if "Regex" in pattern and isinstance(pattern["Regex"], str):
        check_regex(pattern["Regex"], f"tokenizer.json: {leaf['type']}")
    else:
        _text({**pattern, "type": leaf["type"]}, "String", least=1)


def _check_replace(leaf: Any) -> None:
    _check_pattern(leaf)
    _text(leaf, "content")


def _growth(leaf: Any) -> float:
    """How many characters at most a replacement makes of one."""
    content = len(leaf["content"])
    if "String" in leaf["pattern"]:
        return max(1.0, content / len(leaf["pattern"]["String"]))
    return 1.0 + content  # an expression may match between any two characters


def _check_charsmap(leaf: Any) -> None:
    try:
        table = base64.b64decode(leaf.get("precompiled_charsmap") or "", validate=True)
    except (TypeError, ValueError):
        raise _damaged("Precompiled: precompiled_charsmap is not base64") from None
    try:
        check_charsmap(table)
    except FormatError as error:
        raise _damaged(f"Precompiled: {error}") from None


def _check_template(leaf: Any) -> None:
    """What is put around a text: each text once."""
    single, special = leaf.get("single"), leaf.get("special_tokens", {})
    if not isinstance(single, list) or not isinstance(special, dict):
        raise _damaged("TemplateProcessing: single or special_tokens are missing")
    texts = sum(isinstance(piece, dict) and "Sequence" in piece for piece in single)
    ids = [token.get("ids") if isinstance(token, dict) else None for token in special.values()]
    if texts > 1 or len(single) > MAX_PARTS or len(ids) > MAX_PARTS:
        raise _damaged("TemplateProcessing: more than one text or too many pieces")
    if not all(isinstance(found, list) and len(found) <= MAX_PARTS for found in ids):
        raise _damaged("TemplateProcessing: a special token without ids, or with too many")


_NORMALIZERS: dict[str, Callable[[Any], None] | None] = {
    **dict.fromkeys(("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents")),
    **dict.fromkeys(("Strip", "Nmt", "ByteLevel")),
    "Prepend": _check_prepend,
    "Replace": _check_replace,
    "Precompiled": _check_charsmap,
}
_PRE_TOKENIZERS: dict[str, Callable[[Any], None] | None] = {
    **dict.fromkeys(("ByteLevel", "Metaspace", "Digits", "Punctuation")),
    **dict.fromkeys(("Whitespace", "WhitespaceSplit", "UnicodeScripts")),
    "Split": _check_pattern,
}
_DECODERS: dict[str, Callable[[Any], None] | None] = {
    **dict.fromkeys(("ByteLevel", "Metaspace", "ByteFallback", "Fuse", "Strip")),
    "Replace": _check_replace,
}
_POST_PROCESSORS: dict[str, Callable[[Any], None] | None] = {
    **dict.fromkeys(("ByteLevel", "BertProcessing", "RobertaProcessing")),
    "TemplateProcessing": _check_template,
}
