"""What an answer is asked to be, checked before anything is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypedDict

from ..arguments import Rule, each, function, instance, optional, token_id, unicode, whole, words
from ..choose.grammar import Grammar
from ..choose.penalties import breaker_mask, special_mask
from ..choose.sampling import Processor, Sampler, SamplingParams
from ..errors import EdgeDBError
from ..hints import no_option
from ..ops.sequences import MAX_ROWS
from .completion import Chunk
from .loaded import LoadedModel

Progress = Callable[[int, int], None]  # tokens read, tokens to read
MAX_LOGPROBS = 100
RULES: dict[str, Rule[Any]] = {
    "max_tokens": optional(whole()),
    "stop": optional(each(words, "a text or a list of texts", alone=str), ()),
    "stop_ids": optional(each(token_id, "a list of token ids"), ()),
    "params": optional(instance(SamplingParams, "SamplingParams")),
    "logprobs": optional(whole(0, MAX_LOGPROBS)),
    "processors": optional(each(function, "a function or a list of functions", alone=Callable), ()),
    "regex": optional(unicode),
    "grammar": optional(unicode),
    "prompt_lookup": optional(whole(0, MAX_ROWS - 1)),
    "draft_tokens": optional(whole(0, MAX_ROWS - 1)),
    "progress": optional(function),
    "cancelled": optional(function),
}


class SamplingOptions(TypedDict, total=False):
    """The fields of ``SamplingParams`` as options of a call, so that editors complete them."""

    temperature: float
    top_k: int
    typical_p: float
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    repetition_window: int
    dry_multiplier: float
    dry_base: float
    dry_allowed_length: int
    dry_breakers: Sequence[str]
    mirostat: int
    mirostat_tau: float
    mirostat_eta: float
    logit_bias: Mapping[int, float]
    seed: int | None


class AnswerOptions(SamplingOptions, total=False):
    """The options of ``Session.stream``, which describes them."""

    max_tokens: int | None
    stop: str | Sequence[str] | None
    stop_ids: Sequence[int] | None
    params: SamplingParams | None
    logprobs: int | None
    processors: Processor | Sequence[Processor] | None
    json_schema: str | Mapping[str, Any] | None
    regex: str | None
    grammar: str | None
    prompt_lookup: int | None
    draft_tokens: int | None
    progress: Progress | None
    cancelled: Callable[[], bool] | None


@dataclass(frozen=True)
class Sink:
    """Where chunks go that another thread makes than the one that asked. ``put`` takes one and is
    quick; ``flush`` is called once behind those of one pass, of all answers that have the same."""

    put: Callable[[Chunk], None]
    flush: Callable[[], None]


@dataclass(frozen=True)
class Request:
    """The options of ``Session.stream``, which describes them; and with a ``sink``, that chunks may
    go there instead of coming out. Then ``cancelled`` may be asked in any thread."""

    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    params: SamplingParams = field(default_factory=SamplingParams)
    logprobs: int | None = None
    processors: tuple[Processor, ...] = ()
    grammar: Grammar | None = None
    prompt_lookup: int | None = None
    draft_tokens: int | None = None
    progress: Progress | None = None
    cancelled: Callable[[], bool] | None = None
    sink: Sink | None = None

    @classmethod
    def of(cls, **options: Any) -> Request:
        """From the options of ``Session.stream`` as callers may write them; None is the default.

        Raises ``EdgeDBError`` for wrong values, ``TypeError`` for an option that there is not.
        """
        given = {name: rule(name, options.pop(name, None)) for name, rule in RULES.items()}
        forms = {"json_schema": options.pop("json_schema", None)}
        forms |= {kind: given.pop(kind) for kind in ("regex", "grammar")}
        wanted = [(kind, source) for kind, source in forms.items() if source is not None]
        if len(wanted) > 1:
            raise EdgeDBError("give only one of json_schema, regex and grammar")
        sampling = [field.name for field in fields(SamplingParams)]
        for name in options.keys() - set(sampling):
            raise no_option(name, [*sampling, *RULES, "json_schema"])
        params = replace(given.pop("params") or SamplingParams(), **options)
        return cls(**given, params=params, grammar=Grammar(*wanted[0]) if wanted else None)

    def sampler(self, model: LoadedModel) -> Sampler:
        """A new sampler for one answer.

        Raises ``EdgeDBError`` if an option names a token that the model does not have.
        """
        vocab_size = model.config.vocab_size
        for name, ids in (("stop_ids", self.stop_ids), ("logit_bias", self.params.logit_bias)):
            if max(ids, default=0) >= vocab_size:
                raise EdgeDBError(
                    f"{name}: token {max(ids)} is not in the vocabulary of {vocab_size}"
                )
        breakers = None
        if self.params.dry_multiplier:
            breakers = model.cached(breaker_mask, (vocab_size, self.params.dry_breakers))
        return Sampler(
            self.params,
            model.ops,
            processors=self.processors,
            breakers=breakers,
            exempt=model.cached(special_mask, vocab_size),
            constraint=self.grammar.parser(model) if self.grammar else None,
        )
