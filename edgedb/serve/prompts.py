"""Prompts as texts or ids, and the routes that turn one into the other."""

from __future__ import annotations

from typing import Any

from .conversation import converse
from .errors import bad_value
from .fields import Fields
from .served import Served
from .tools import read_tools

MAX_PROMPTS = 2048  # in one request, as OpenAI has it


def read_prompts(served: Served, value: Any, name: str, special: bool) -> list[list[int]]:
    """Ids of a text, a list of texts, a list of ids, or a list of such lists; ``special``: whether
    control tokens that a text spells are ones."""
    many = isinstance(value, list) and bool(value) and isinstance(value[0], (str, list))
    found = [_ids(served, one, name, special) for one in (value if many else [value])]
    if len(found) > MAX_PROMPTS:
        raise bad_value(f"{name}: more than {MAX_PROMPTS}", name)
    return found


def _ids(served: Served, value: Any, name: str, special: bool) -> list[int]:
    if isinstance(value, str):
        return text_ids(served, value, special)
    return served.model.check_ids(name, value)


def text_ids(served: Served, text: str, special: bool) -> list[int]:
    """Ids of ``text``, with BOS as the model wants it: once, also where the text spells it."""
    ids = served.model.tokenizer.encode(text, special=special)
    bos = served.model.tokenizer_spec.bos_id
    return ids[1:] if bos is not None and ids[:2] == [bos, bos] else ids


def tokenize(served: Served, body: Any) -> Any:
    """``/tokenize``, as llama-server has it."""
    fields = Fields(body)
    served.check_name(fields.take("model"))
    content = fields.required("content", str)
    special = fields.flag("parse_special", True)
    whole, pieces = fields.flag("add_special"), fields.flag("with_pieces")
    fields.finish()
    if whole:
        ids = text_ids(served, content, special)
    else:
        ids = served.model.tokenizer.encode(content, add_bos=False, special=special)
    if not pieces:
        return {"tokens": ids}
    return {"tokens": [{"id": i, "piece": _piece(served, i)} for i in ids]}


def _piece(served: Served, token: int) -> Any:
    data = served.model.tokenizer.token_bytes(token, False)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:  # part of a character
        return list(data)


def detokenize(served: Served, body: Any) -> Any:
    """``/detokenize``: the text of ids, special tokens spelled out."""
    fields = Fields(body)
    served.check_name(fields.take("model"))
    ids = served.model.check_ids("tokens", fields.required("tokens", list))
    fields.finish()
    return {"content": served.model.tokenizer.decode(ids, skip_special=False)}


def apply_template(served: Served, body: Any) -> Any:
    """``/apply-template``: the text of a conversation, ready for the answer."""
    fields = Fields(body)
    served.check_name(fields.take("model"))
    messages = fields.required("messages", list)
    found = converse(
        served,
        messages,
        read_tools(fields, served.model.tokenizer_spec),
        variables=fields.typed("chat_template_kwargs", dict),
        documents=fields.typed("documents", list),
        continued=fields.flag("continue_final_message"),
    )
    fields.ignore("add_generation_prompt")
    fields.finish()
    return {"prompt": found.text}
