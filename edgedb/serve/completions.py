"""OpenAI's completions: plain text, or ids, goes on."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from ..run.completion import Chunk, Logprob, TokenLogprobs
from .asked import Asked
from .chat import HARMLESS, check_likely, read_count, read_stream
from .choices import Answer, Choices
from .errors import bad_value
from .fields import Fields
from .options import only_one_form, read_form, read_max_tokens, read_own_forms, read_request
from .prompts import read_prompts
from .served import Served
from .usage import timings


def read_completion(served: Served, body: object) -> tuple[Asked, CompletionReply]:
    """Raises ``Refused`` or another ``EdgeDBError`` for what cannot be answered."""
    fields = Fields(body)
    served.check_name(fields.take("model"))
    prompt = fields.take("prompt")
    if prompt is None:
        raise bad_value("prompt is missing: expected a text, ids, or a list of those", "prompt")
    prompts = read_prompts(served, prompt, "prompt", fields.flag("parse_special", True))
    echo = fields.flag("echo")
    logprobs = fields.typed("logprobs", int)
    check_likely("logprobs", logprobs)
    n = read_count(fields)
    fields.refuse("best_of", unless=(n,))
    fields.refuse("suffix")
    request = read_request(
        fields,
        served,
        read_max_tokens(fields, served, "max_tokens", "n_predict"),
        only_one_form(read_form(fields), read_own_forms(fields)),
        logprobs=logprobs,
    )
    stream, include_usage, progress = read_stream(fields)
    fields.ignore(*HARMLESS)
    fields.finish()
    scores = echo and logprobs is not None
    asked = Asked(tuple(prompts), request, n, stream, progress, scores)
    asked.check(served)
    echoed = []
    if echo:
        texts = prompt if isinstance(prompt, list) else [prompt]
        for ids, text in zip(
            prompts, texts if len(texts) == len(prompts) else prompts, strict=True
        ):
            echoed.append(text if isinstance(text, str) else served.model.detokenize(ids))
    return asked, CompletionReply(served, asked, echoed, include_usage)


@dataclass
class _Answer(Answer):
    text: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)  # not yet sent
    offset: int = 0  # of the next token in the text


class CompletionReply(Choices[_Answer]):
    """A ``Reply`` as completions have it."""

    def __init__(
        self, served: Served, asked: Asked, echoed: list[str], include_usage: bool
    ) -> None:
        super().__init__(served, asked, include_usage, "cmpl", "text_completion")
        self._echoed = echoed

    def begin(self) -> list[Any]:
        return []

    def reading(self, done: int, total: int) -> list[Any]:
        return self._progress(self._event(_written(0, "", None, None)), done, total)

    def push(self, chunk: Chunk) -> list[Any]:
        self.usage.of[chunk.index] = chunk.stats
        answer, text = self.answers.get(chunk.index), chunk.text
        if answer is None:
            answer = self.answers[chunk.index] = _Answer()
            if self._echoed:
                text = self._echoed[chunk.index // self._asked.n] + text
        answer.text.append(text)
        if chunk.logprobs is not None:
            answer.logprobs.append(chunk.logprobs)
        is_last = chunk.finish_reason is not None
        if is_last:
            answer.reason = "length" if chunk.finish_reason == "length" else "stop"
            answer.timings = timings(chunk.stats)
        if not self._asked.stream or not (text or is_last):
            return []
        logprobs = self._logprobs(answer)
        event = self._event(_written(chunk.index, text, logprobs, answer.reason))
        return [self._last(event, chunk.index, answer) if is_last else event]

    def _choice(self, index: int, answer: _Answer) -> dict[str, Any]:
        return _written(index, "".join(answer.text), self._logprobs(answer), answer.reason)

    def _logprobs(self, answer: _Answer) -> dict[str, Any] | None:
        """Those that were not sent yet, in the lists that completions have."""
        if self._asked.request.logprobs is None:
            return None
        tokens, answer.logprobs = answer.logprobs, []
        offsets = []
        for one in tokens:
            offsets.append(answer.offset)
            answer.offset += len(one.text)
        return {
            "tokens": [one.text for one in tokens],
            "token_logprobs": [None if math.isnan(o.logprob) else o.logprob for o in tokens],
            "top_logprobs": [_top(one) for one in tokens],
            "text_offset": offsets,
        }


def _top(one: TokenLogprobs) -> dict[str, float] | None:
    """The likely tokens by their text, the chosen one among them."""
    if math.isnan(one.logprob):
        return None
    likely: tuple[Logprob, ...] = (*one.top, one)
    found: dict[str, float] = {}
    for other in likely:
        found.setdefault(other.text, other.logprob)
    return found


def _written(index: int, text: str, logprobs: Any, reason: str | None) -> dict[str, Any]:
    """A choice, whole or in part."""
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
