"""How an answer is asked to be, from the members of a request: sampling, ends, form."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import fields as fields_of
from dataclasses import replace
from typing import Any

from ..choose.closed_schema import closed
from ..choose.sampling import SamplingParams
from ..display import quoted
from ..run.request import Request
from .errors import bad_value, unsupported
from .fields import Fields
from .served import Served

# llama-server's and vLLM's names for what has another one here.
_ALSO = {
    "repeat_penalty": "repetition_penalty",
    "repeat_last_n": "repetition_window",
}
_SAMPLING = tuple(field.name for field in fields_of(SamplingParams))
_SEED_BITS = 32  # of a seed that nobody named: a number that every client can send back


def read_sampling(fields: Fields, served: Served) -> SamplingParams:
    """The sampling options, by the names of ``SamplingParams`` and of other servers; what is not
    said is the server's. There is always a seed, so that an answer can be repeated."""
    given = {name: fields.take(name) for name in _SAMPLING}
    for also, name in _ALSO.items():
        value = fields.take(also)
        if given[name] is None:
            given[name] = value
    if given["logit_bias"] is not None:
        given["logit_bias"] = _bias(given["logit_bias"])
    if given["seed"] == -1:
        given["seed"] = None
    if given["repetition_window"] == -1:
        given["repetition_window"] = served.model.context
    params = replace(served.params, **{k: v for k, v in given.items() if v is not None})
    if params.seed is None:
        params = replace(params, seed=secrets.randbits(_SEED_BITS))
    return params


def _bias(value: Any) -> dict[int, Any]:
    """JSON's keys are texts."""
    if not isinstance(value, Mapping):
        raise bad_value(
            f"logit_bias = {quoted(value)}: expected token ids and numbers", "logit_bias"
        )
    try:
        return {int(key): bias for key, bias in value.items()}
    except ValueError:
        raise bad_value("logit_bias: its keys must be token ids", "logit_bias") from None


def read_max_tokens(fields: Fields, served: Served, *names: str) -> int | None:
    """The longest answer, by the first of ``names`` that is there; -1 is as long as may be."""
    found = [value for value in (fields.take(name) for name in names) if value is not None]
    if not found:
        return served.max_tokens
    if found[0] == -1:
        return None
    if isinstance(found[0], bool) or not isinstance(found[0], int) or found[0] < 0:
        raise bad_value(
            f"{names[0]} = {quoted(found[0])}: expected a whole number of at least 0", names[0]
        )
    return int(found[0])


def read_form(fields: Fields, key: str = "response_format") -> dict[str, Any]:
    """The form of an answer as an option of ``Request``: a JSON schema, or nothing.

    Never ignored: a form that is not understood is refused.
    """
    value = fields.take(key)
    if value is None:
        return {}
    form = Fields(value, key)
    kind = form.choice("type", ("text", "json_object", "json_schema"), "text")
    if kind == "text":
        return {}
    if kind == "json_object" and "schema" not in value:
        return {"json_schema": {"type": "object"}}
    # OpenAI's chat has the schema below json_schema, its responses and llama-server beside type.
    inner = form.take("json_schema")
    holder = Fields(inner, f"{key}.json_schema") if inner is not None else form
    holder.ignore("name", "description", "strict")
    schema = holder.required("schema", dict)
    return {"json_schema": closed(schema)}


def read_own_forms(fields: Fields) -> dict[str, Any]:
    """The forms that edgedb has beside JSON schemas."""
    given = {name: fields.take(name) for name in ("json_schema", "regex", "grammar")}
    if isinstance(given["json_schema"], Mapping):
        given["json_schema"] = closed(given["json_schema"])
    return {name: value for name, value in given.items() if value is not None}


def only_one_form(*forms: Mapping[str, Any]) -> dict[str, Any]:
    """All of them together are one at most."""
    found = {name: value for form in forms for name, value in form.items()}
    if sum(map(len, forms)) > 1:
        raise unsupported(sorted(found)[0], "give one form of the answer only")
    return found


def read_request(
    fields: Fields, served: Served, max_tokens: int | None, form: Mapping[str, Any], **own: Any
) -> Request:
    """The options of an answer; ``form`` and ``own`` are options of ``Request.of`` too."""
    return Request.of(
        params=read_sampling(fields, served),
        max_tokens=max_tokens,
        stop=fields.take("stop"),
        stop_ids=fields.take("stop_ids"),
        prompt_lookup=fields.take("prompt_lookup"),
        draft_tokens=fields.take("draft_tokens"),
        **form,
        **own,
    )
