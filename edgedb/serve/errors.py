"""Why a request is refused: a status of HTTP, and the words that clients look for."""

from __future__ import annotations

import re
from typing import Any

from ..errors import ContextFullError, EdgeDBError

_NAMED = re.compile(r"([a-z_][a-z0-9_]*)(?:\[[^\]]*\])* = ")

# What OpenAI's clients call the kinds of errors.
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "unavailable_error",
}


class Refused(EdgeDBError):
    """A request that is not answered: ``status`` of HTTP, ``code`` for programs, ``param`` the
    member of the body that is wrong, ``headers`` to send along."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param
        self.headers = headers or {}

    @property
    def type(self) -> str:
        return _TYPES.get(self.status, "invalid_request_error")


def bad_value(message: str, param: str | None = None) -> Refused:
    """A member of the body has a wrong value, or is missing."""
    return Refused(400, message, code="invalid_value", param=param)


def unsupported(name: str, why: str = "it is not supported") -> Refused:
    """A member of the body asks for what there is not."""
    return Refused(400, f"{name}: {why}", code="unsupported_parameter", param=name)


def refusal(error: Exception) -> Refused:
    """What to answer for ``error``; a fault of the program's own is a 500 without details."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, ContextFullError):
        return Refused(400, str(error), code="context_length_exceeded", param="messages")
    if isinstance(error, EdgeDBError):
        named = _NAMED.match(str(error))
        return bad_value(str(error), named[1] if named else None)
    if isinstance(error, MemoryError):
        return Refused(503, "not enough memory for this answer", headers={"Retry-After": "10"})
    return Refused(500, "the server failed to answer; its log says why")


def openai_error(error: Refused) -> dict[str, Any]:
    """As OpenAI writes it."""
    return {
        "error": {
            "message": str(error),
            "type": error.type,
            "param": error.param,
            "code": error.code,
        }
    }


def ollama_error(error: Refused) -> dict[str, Any]:
    """As Ollama writes it."""
    return {"error": str(error)}
