"""From the messages of a request to the ids of a prompt, and what its answer may hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import bad_value
from .served import Served
from .speech import Speech
from .tool_formats import ToolFormat, format_of
from .tools import Toolbox, told, with_objects


@dataclass(frozen=True)
class Conversation:
    """A prompt, and how to take its answer apart."""

    ids: list[int]
    text: str
    tools: ToolFormat | None  # if the answer may call some
    thinks: bool | None  # see ``Speech``

    def speech(self, served: Served) -> Speech:
        """For one answer."""
        return Speech(served.model.tokenizer, self.tools, self.thinks)


def converse(
    served: Served,
    messages: Sequence[Any],
    toolbox: Toolbox | None = None,
    *,
    variables: Mapping[str, Any] | None = None,
    documents: Sequence[Any] | None = None,
    continued: bool = False,
    reasons: bool = True,
) -> Conversation:
    """Render ``messages``. ``continued``: the answer goes on with the last of them; ``reasons``:
    thoughts are told apart from the rest.

    Raises ``Refused``, or ``TemplateError`` if the model has no template or it refuses them.
    """
    if not messages:
        raise bad_value("messages: give at least one", "messages")
    messages = with_objects(messages)
    if any(_calls(one) for one in messages) and toolbox is None:
        toolbox = Toolbox((), (), False, True, format_of(served.model.tokenizer_spec.chat_template))
    if toolbox is not None and not served.knows_tools:
        messages = told(messages, toolbox, knows_calls=False)
        given = None
    else:
        given = [tool.given for tool in toolbox.told] if toolbox and toolbox.told else None
    text = served.model.chat_text(
        messages,
        tools=given,
        documents=documents,
        continue_final_message=continued,
        chat_template_kwargs={**served.template, **(variables or {})},
    )
    ids = served.model.tokenizer.encode(text, add_bos=False, special=True)
    form = toolbox.form if toolbox is not None and toolbox.tools else None
    thinks = _thinks(served, text) if reasons else False
    return Conversation(ids, str.__str__(text), form, thinks)


def _calls(message: Any) -> bool:
    if not isinstance(message, Mapping):
        return False
    return message.get("role") == "tool" or bool(message.get("tool_calls"))


def _thinks(served: Served, text: str) -> bool | None:
    template = served.model.tokenizer_spec.chat_template or ""
    if "</think>" not in template:
        return False
    return True if text.rstrip().endswith("<think>") else None
