"""What an answer is asked to be, checked before anything is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from .errors import EdgeDBError
from .grammar import Grammar
from .llama import MAX_BATCH
from .penalties import breaker_mask
from .sampling import Processor, Sampler, SamplingParams

if TYPE_CHECKING:
    from .engine import Model

Progress = Callable[[int, int], None]  # tokens read, tokens to read
MAX_LOGPROBS = 100


@dataclass(frozen=True)
class Request:
    """The options of ``Session.stream``, which describes them."""

    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    stop_ids: frozenset[int] = frozenset()
    params: SamplingParams = field(default_factory=SamplingParams)
    logprobs: int | None = None
    processors: tuple[Processor, ...] = ()
    grammar: Grammar | None = None
    prompt_lookup: int | None = None
    progress: Progress | None = None
    cancelled: Callable[[], bool] | None = None

    @classmethod
    def of(
        cls,
        *,
        stop: str | Sequence[str] = (),
        stop_ids: Sequence[int] = (),
        params: SamplingParams | None = None,
        processors: Processor | Sequence[Processor] = (),
        max_tokens: int | None = None,
        logprobs: int | None = None,
        json_schema: str | Mapping[str, Any] | None = None,
        regex: str | None = None,
        grammar: str | None = None,
        prompt_lookup: int | None = None,
        progress: Progress | None = None,
        cancelled: Callable[[], bool] | None = None,
        **sampling: Any,
    ) -> Request:
        """From the options as callers may write them. Raises ``EdgeDBError`` for wrong values,
        ``TypeError`` for an option that there is not."""
        if max_tokens is not None and max_tokens < 0:
            raise EdgeDBError(f"max_tokens = {max_tokens}: expected 0 or more")
        if logprobs is not None and not 0 <= logprobs <= MAX_LOGPROBS:
            raise EdgeDBError(f"logprobs = {logprobs}: expected 0 to {MAX_LOGPROBS}")
        if prompt_lookup is not None and not 0 <= prompt_lookup < MAX_BATCH:
            raise EdgeDBError(f"prompt_lookup = {prompt_lookup}: expected 0 to {MAX_BATCH - 1}")
        forms = {"json_schema": json_schema, "regex": regex, "grammar": grammar}
        given = [(kind, source) for kind, source in forms.items() if source is not None]
        if len(given) > 1:
            raise EdgeDBError("give only one of json_schema, regex and grammar")
        return cls(
            max_tokens=max_tokens,
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            stop_ids=frozenset(stop_ids),
            params=replace(params or SamplingParams(), **sampling),
            logprobs=logprobs,
            processors=(processors,) if callable(processors) else tuple(processors),
            grammar=Grammar(*given[0]) if given else None,
            prompt_lookup=prompt_lookup,
            progress=progress,
            cancelled=cancelled,
        )

    def sampler(self, model: Model) -> Sampler:
        """A new sampler for one answer."""
        breakers = None
        if self.params.dry_multiplier:
            breakers = model.cached(breaker_mask, self.params.dry_breakers)
        return Sampler(
            self.params,
            model.ops,
            processors=self.processors,
            breakers=breakers,
            constraint=self.grammar.parser(model) if self.grammar else None,
        )
