"""Talk to a model: on a terminal, in a pipe, or one question at a time.

May ask: run, choose, hub, text.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from ..run.engine import Model
from .conversation import ChatOptions, Conversation
from .interrupt import silent_keys
from .repl import Manner, Repl

__all__ = ["ChatOptions", "Conversation", "Manner", "chat"]


def chat(
    open_model: Callable[..., Model],
    name: str | None,
    options: ChatOptions,
    manner: Manner,
    *,
    prompt: str | None = None,
    draft: str | None = None,
) -> None:
    """Hold a conversation with the model ``name``, or answer one ``prompt``.

    ``open_model`` takes a name or a path, and for this model its ``draft``, if there is one.

    With standard input on a terminal this is interactive; otherwise every line is a turn, and only
    the answers go to standard output. Raises ``EdgeDBError`` for what ends it.
    """
    interactive = prompt is None and sys.stdin.isatty()
    edited = interactive and manner.edited
    with silent_keys(lines=not edited):  # a large file takes its time to be checked
        conversation = Conversation(open_model(name, draft=draft), options)
    repl = Repl(conversation, manner, open_model, takes_commands=interactive)
    try:
        if interactive:
            repl.run()
        elif prompt is not None:
            _answer(repl, prompt)
        else:
            for line in sys.stdin:
                if line.strip():
                    _answer(repl, line.rstrip("\r\n"))
    finally:
        repl.close()


def _answer(repl: Repl, text: str) -> None:
    """One turn of a pipe: an interrupt ends it all."""
    last = repl.answer(lambda: repl.conversation.ask(text))
    if last is None or last.finish_reason == "cancelled":
        raise KeyboardInterrupt
