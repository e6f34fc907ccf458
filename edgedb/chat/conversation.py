"""A conversation: its turns over one session, and what of them fits the context."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ..arguments import optional, whole
from ..choose.sampling import SamplingParams
from ..errors import ContextFullError
from ..run.draft import DEFAULT_DRAFT
from ..run.engine import Model
from ..run.request import RULES
from ..run.session import Chunk, Progress, Stats
from ..text.messages import Message, plain_variables
from ..text.transcript import encode_keeping


class MessageTooLongError(ContextFullError):
    """A message does not fit even if it is the only one."""


@dataclass(frozen=True)
class ChatOptions:
    """What a user can change between the turns of a conversation."""

    params: SamplingParams = field(default_factory=SamplingParams)
    max_tokens: int | None = None  # of one answer
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    prompt_lookup: int = 0  # as in Session.stream
    draft_tokens: int = DEFAULT_DRAFT
    trim: Literal["off", "oldest"] = "off"
    stats: bool = False
    markdown: bool = False
    system: str | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, rule in _RULES.items():
            object.__setattr__(self, name, rule(name, getattr(self, name)))


# Those of an answer, which here must have a token.
_RULES = {name: RULES[name] for name in ("stop", "stop_ids", "prompt_lookup", "draft_tokens")}
_RULES["max_tokens"] = optional(whole(1))
_RULES["chat_template_kwargs"] = lambda _, variables: plain_variables(variables)


@dataclass(frozen=True)
class Prompt:
    """A user turn ready to be answered."""

    messages: list[Message]  # with the new turn at the end
    ids: list[int]
    dropped: list[Message] = field(default_factory=list)  # the turns that had to go
    attempt: int = 0  # how often this turn was answered before
    begun: str = ""  # the answer so far, which is to go on


@dataclass
class Turn:
    """Measurements of one answer."""

    stats: Stats = field(default_factory=Stats)
    first_token_seconds: float | None = None  # from the question to the first visible text


class Conversation:
    """Turns of one chat over one session: a new turn reads only what the cache does not hold."""

    def __init__(self, model: Model, options: ChatOptions) -> None:
        self.model = model
        self.options = options
        self.messages: list[Message] = []  # what the model sees
        self.forgotten: list[Message] = []  # turns that were dropped to make room
        self.turns: list[Turn] = []  # measurements, in the order of the answers
        self.session = model.session()
        self.kept = False  # whether the last answer had any text and became a turn
        self._attempt = 0
        self.clear()

    def clear(self) -> None:
        """Begin anew; the system message stays."""
        system = self.options.system
        self.messages = [] if system is None else [{"role": "system", "content": system}]
        self.forgotten = []

    def restore(self, messages: Sequence[Message], forgotten: Sequence[Message] = ()) -> None:
        """Go on from other turns; a system turn at their beginning becomes the system message."""
        self.messages, self.forgotten = list(messages), list(forgotten)
        system = self.messages[0]["content"] if self._head(self.messages) else None
        self.options = replace(self.options, system=system)

    def set_system(self, text: str | None) -> None:
        """Replace the system message for the turns so far and those to come."""
        rest = self.messages[self._head(self.messages) :]
        self.options = replace(self.options, system=text)
        self.messages = ([] if text is None else [{"role": "system", "content": text}]) + rest

    def use(self, model: Model) -> None:
        """Go on with another model; it reads the conversation anew and is measured by itself."""
        self.model = model
        self.turns = []
        self.session = model.session()

    def undo(self) -> str | None:
        """Take the last turn back; returns what the user had said, None if there was nothing."""
        start = self._last_turn()
        if start is None:
            return None
        text = self.messages[start]["content"]
        self.messages = self.messages[:start]
        return text

    @property
    def last_question(self) -> str | None:
        """What the user said last."""
        start = self._last_turn()
        return None if start is None else self.messages[start]["content"]

    def split(self) -> tuple[list[Message], list[Message]]:
        """The system message, if there is one, and the rest."""
        head = self._head(self.messages)
        return self.messages[:head], self.messages[head:]

    @property
    def used(self) -> int:
        """Tokens that the conversation takes of the context."""
        return len(self._encode(self.messages)) if self.messages else 0

    def ask(self, text: str) -> Prompt:
        """A new user turn. Raises ``ContextFullError`` if it does not fit.

        With ``trim`` set to ``oldest``, whole turns are dropped from the front until the turn and
        an answer of ``max_tokens``, at most a quarter of the context, fit.
        """
        return self._fit(self.messages, text, attempt=0)

    def ask_again(self, text: str | None = None) -> Prompt:
        """The last user turn once more, or ``text`` in its place; there must be one."""
        start = self._last_turn()
        assert start is not None, "ask_again needs a turn"
        attempt = self._attempt + 1 if text is None else 0
        text = self.messages[start]["content"] if text is None else text
        return self._fit(self.messages[:start], text, attempt)

    def go_on(self) -> Prompt:
        """The last answer, from where it stopped; there must be one. Raises ``ContextFullError`` if
        nothing more fits, ``TemplateError`` if the model's template always ends an answer."""
        *before, last = self.messages
        ids = self._encode(self.messages, continue_final_message=True)
        if len(ids) >= self.model.context:
            raise ContextFullError(f"the context has {self.model.context} tokens and is full")
        return Prompt(before, ids, begun=last["content"])

    def answer(
        self,
        prompt: Prompt | str,
        cancelled: Callable[[], bool] | None = None,
        progress: Progress | None = None,
    ) -> Iterator[Chunk]:
        """Stream the answer to a prompt, which then becomes the last turn.

        A cancelled answer stays in the conversation as far as it came. Without any text, because
        of an error or an early cancel, the conversation stays as it was.
        """
        started = time.perf_counter()
        if isinstance(prompt, str):
            prompt = self.ask(prompt)
        turn = Turn()
        said, blank = "", True
        seed = self.options.params.seed
        if seed is not None:  # the same seed would say the same again
            seed += prompt.attempt
        try:
            for chunk in self.session.stream(
                prompt.ids,
                max_tokens=self.options.max_tokens,
                stop=self.options.stop,
                stop_ids=self.options.stop_ids,
                prompt_lookup=self.options.prompt_lookup,
                draft_tokens=self.options.draft_tokens,
                params=replace(self.options.params, seed=seed),
                cancelled=cancelled,
                progress=progress,
            ):
                said += chunk.text
                turn.stats = chunk.stats
                # Some models begin with a space or a line of their own. It is not shown, but stays
                # in the conversation: the next turn reads only what differs from what was said.
                if blank:
                    blank = not chunk.text.strip()
                    chunk = replace(chunk, text=chunk.text.lstrip())
                    if not blank:
                        turn.first_token_seconds = time.perf_counter() - started
                yield chunk
        finally:
            self.kept = bool(prompt.begun or said)
            if said:
                said = prompt.begun + said
                self.messages = [*prompt.messages, {"role": "assistant", "content": said}]
                self.forgotten += prompt.dropped
                self.turns.append(turn)
                self._attempt = prompt.attempt

    def remark(self, last: Chunk | None) -> str:
        """What the reader should know about how an answer ended; empty if it simply ended."""
        if last is None:
            return ""
        stats = last.stats
        if not self.kept:
            why = "stopped" if last.finish_reason == "cancelled" else "the answer is empty"
            return f"{why}; your message was dropped"
        if last.finish_reason == "stop":
            return "" if stats.completion_tokens else "nothing was added"
        if last.finish_reason == "cancelled":
            return "stopped"
        if stats.prompt_tokens + stats.completion_tokens >= self.model.context:
            return f"the answer ends here: the context of {self.model.context} tokens is full"
        return f"the answer was cut after {stats.completion_tokens} tokens (--max-tokens)"

    def _last_turn(self) -> int | None:
        """Index of the last user message."""
        roles = [message["role"] for message in self.messages]
        return len(roles) - 1 - roles[::-1].index("user") if "user" in roles else None

    @staticmethod
    def _head(messages: Sequence[Message]) -> int:
        """How many messages stay in front whatever is dropped: the system message, if any."""
        return int(bool(messages) and messages[0]["role"] == "system")

    def _fit(self, before: list[Message], text: str, attempt: int) -> Prompt:
        messages = [*before, {"role": "user", "content": text}]
        ids = self._encode(messages)
        context, dropped = self.model.context, []
        if self.options.trim == "oldest":
            reserve = min(self.options.max_tokens or context, context // 4)
            head = self._head(messages)
            while len(ids) + reserve > context:
                later = (i for i in range(head + 1, len(messages)) if messages[i]["role"] == "user")
                end = next(later, None)
                if end is None:  # only the new turn is left
                    break
                dropped += messages[head:end]
                del messages[head:end]
                ids = self._encode(messages)
        if len(ids) >= context:
            full = f"the context has {context} tokens"
            alone = self._encode([*messages[: self._head(messages)], messages[-1]])
            if len(alone) >= context:
                raise MessageTooLongError(
                    f"{full}, this message alone makes {len(alone)}; shorten it"
                )
            raise ContextFullError(f"{full}, with this message it is {len(ids)}")
        return Prompt(messages, ids, dropped, attempt)

    def _encode(self, messages: Sequence[Message], **template: Any) -> list[int]:
        """Ids of a conversation up to where the next answer begins, spelled as in the cache."""
        variables = self.options.chat_template_kwargs
        text = self.model.chat_text(messages, chat_template_kwargs=variables, **template)
        return encode_keeping(self.model.tokenizer, text, self.session.tokens)
