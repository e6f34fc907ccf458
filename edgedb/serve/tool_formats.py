"""How models write calls of tools, by what their chat templates show of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ToolFormat:
    """Calls as text: ``begin CALL (between CALL)* end``, a call being a JSON object.

    An empty ``begin`` means that a call is the whole answer; without ``between`` there is one.
    """

    mark: str  # in a chat template that teaches it
    begin: str
    between: str | None
    end: str
    arguments: str = "arguments"  # the name of their member

    def write(self, calls: Sequence[tuple[str, Any]]) -> str:
        """``calls``, names and arguments, as the model would write them."""
        written = [
            json.dumps({"name": name, self.arguments: arguments}, ensure_ascii=False)
            for name, arguments in calls
        ]
        return self.begin + (self.between or "\n").join(written) + self.end


# The first whose mark a template has; the last also where a template knows no tools.
FORMATS = (
    ToolFormat("[TOOL_CALLS]", "[TOOL_CALLS][", ", ", "]"),
    ToolFormat("<|tool_call|>", "<|tool_call|>[", ", ", "]"),
    ToolFormat("<|python_tag|>", "", None, "", "parameters"),
    ToolFormat(
        "<tool_call>",
        "<tool_call>\n",
        "\n</tool_call>\n<tool_call>\n",
        "\n</tool_call>",
    ),
)


def format_of(template: str | None) -> ToolFormat:
    """The format that ``template`` teaches, or the usual one."""
    found = (one for one in FORMATS if one.mark in (template or ""))
    return next(found, FORMATS[-1])


def instructions(tools: Sequence[Mapping[str, Any]], form: ToolFormat) -> str:
    """What to tell a model whose template does not tell it of tools."""
    listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    example = form.write([("NAME", {})])
    return (
        "You may call these functions:\n"
        f"<tools>\n{listed}\n</tools>\n"
        "To call one, answer with its name and its arguments as JSON, in this form:\n"
        f"{example}"
    )
