"""What a checkpoint says about its tokenizer, made into what the runtime loads.

Whatever loading a ``.dbb`` checks of a tokenizer is checked here, by the same code, before a weight
is read. What transformers and llama.cpp live with is left out with a word instead of refused.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from ...errors import CheckpointWarning, FormatError, TemplateError, UnsupportedModelError
from ...model.dbb import MAX_TOKENIZER_BYTES
from ...text.spec import MAX_TEMPLATE_CHARS, TokenizerSpec
from ...text.template import render
from ...text.tokenizer import load_tokenizer
from ...text.tokenizer_json import join_parts, read_parts


def runnable(found: TokenizerSpec, vocab_size: int, name: str) -> TokenizerSpec:
    """``found``, whose values may be of any type, as a tokenizer that ``edgedb.load`` takes.

    Ids outside the vocabulary and a template that is none are left out with a
    ``CheckpointWarning``; ``name`` is the checkpoint's. Raises ``FormatError`` or
    ``UnsupportedModelError`` for a tokenizer that cannot be read or has more tokens than the
    model's ``vocab_size``.
    """
    try:
        return _runnable(found, vocab_size, name)
    except (FormatError, UnsupportedModelError) as error:
        raise type(error)(f"{name}: {error}") from None


def _runnable(found: TokenizerSpec, vocab_size: int, name: str) -> TokenizerSpec:
    def warn(text: str) -> None:
        warnings.warn(f"{name}: {text}", CheckpointWarning, stacklevel=4)

    data = found.data
    if len(data) > MAX_TOKENIZER_BYTES:
        raise FormatError(f"a tokenizer of {len(data)} bytes; at most {MAX_TOKENIZER_BYTES}")
    if found.kind == "tokenizers":
        data = _without_excess(data, vocab_size, warn)
    bare = TokenizerSpec(found.kind, data)
    n_tokens = load_tokenizer(bare, vocab_size).vocab_size
    ids = {
        key: _ids(values, n_tokens, f"{key} token", warn)
        for key, values in (("BOS", [found.bos_id]), ("EOS", found.eos_ids))
    }
    bos_id = next(iter(ids["BOS"]), None)
    spec = replace(
        bare,
        bos_id=bos_id,
        eos_ids=ids["EOS"],
        add_bos=bool(found.add_bos) and bos_id is not None,
        chat_template=_template(found.chat_template, warn),
        special_tokens={k: v for k, v in found.special_tokens.items() if is_text(v)},
        prefix=found.prefix,
    )
    spec = TokenizerSpec.from_metadata(json.loads(json.dumps(spec.to_metadata())), data)
    load_tokenizer(spec, vocab_size)
    _try_template(spec, warn)
    return spec


def is_text(value: Any) -> bool:
    """Whether ``value`` is a string, and one that UTF-8 can hold (JSON has lone surrogates)."""
    try:
        return isinstance(value, str) and value.encode("utf-8") is not None
    except UnicodeEncodeError:
        return False


def _without_excess(data: bytes, vocab_size: int, warn: Callable[[str], None]) -> bytes:
    """A tokenizer.json without the added tokens that the model has no row for.

    Fine-tuned models often add a padding token and leave the embedding as it was.
    """
    try:
        document, model = read_parts(data)
        added = document["added_tokens"]
        beyond = [token for token in added if token["id"] >= vocab_size]
    except (FormatError, LookupError, TypeError):
        return data  # whatever is wrong with it, the tokenizer's own reader says
    if not beyond:
        return data
    document["added_tokens"] = [token for token in added if token["id"] < vocab_size]
    warn(without_rows([token.get("content") for token in beyond], vocab_size))
    return join_parts(document, model)


def without_rows(added: Sequence[Any], vocab_size: int) -> str:
    """What is said of tokens that were ``added`` to a tokenizer and not to the model."""
    named = ", ".join(repr(text)[:40] for text in added[:4]) + (", ..." if len(added) > 4 else "")
    return f"added tokens that the model of {vocab_size} has no row for are left out: {named}"


def _ids(
    values: Iterable[Any], n_tokens: int, what: str, warn: Callable[[str], None]
) -> tuple[int, ...]:
    kept: dict[int, None] = {}
    for value in values:
        if type(value) is int and 0 <= value < n_tokens:
            kept[value] = None
        elif value is not None:
            warn(f"{what} {str(value)[:40]} is none of the {n_tokens} tokens; it is left out")
    return tuple(kept)


def _template(value: Any, warn: Callable[[str], None]) -> str | None:
    if value is None:
        return None
    if not is_text(value):
        problem = "is no text"
    elif len(value) > MAX_TEMPLATE_CHARS:
        problem = f"has {len(value)} characters, more than {MAX_TEMPLATE_CHARS}"
    else:
        return str(value)
    warn(f"the chat template {problem}; it is left out")
    return None


def _try_template(spec: TokenizerSpec, warn: Callable[[str], None]) -> None:
    if spec.chat_template is None:
        return
    try:
        render(spec, [{"role": "user", "content": "Hello"}])
    except TemplateError as error:
        warn(f"chats with this model will fail: {error}")
