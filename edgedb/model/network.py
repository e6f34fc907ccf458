"""The forward pass: a program bound to its weights by a backend, and what it is doing now.

What is computed is said in ``families``, how in ``edgedb.ops``. Here ids go in, logits come out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from ..format.tensors import Weight
from ..ops import Ops
from ..ops.buffer import Buffer
from ..ops.sequences import MAX_ROWS, Span
from ..ops.weights import Weights, check
from .config import ModelConfig
from .families import program_of
from .head import Needed, TwoStageHead
from .kvcache import KVCache
from .rope import RopeTables

LogitsWanted = Literal["last", "all"] | Needed
Wanted = LogitsWanted | Literal["hidden"] | None


class Reading(NamedTuple):
    """One sequence's part of a pass: ``tokens`` at its cache's end, and what is ``wanted`` of them.

    Logits of the last one go to ``out``, float32 ``[1, vocab]``, if it is alone in the pass.
    """

    cache: KVCache
    tokens: Sequence[int]
    wanted: Wanted
    out: Buffer | None = None

    @property
    def of_each(self) -> bool:
        """Whether something is wanted of each token, not of the last one."""
        return self.wanted in ("all", "hidden")


class Network:
    """Weights bound to a backend. Immutable: sessions on several threads share one."""

    def __init__(
        self,
        config: ModelConfig,
        linears: Mapping[str, Weight],
        vectors: Mapping[str, np.ndarray],
        ops: Ops,
        context: int,
    ) -> None:
        """Raises ``FormatError`` if a weight is missing or has another shape than the model's."""
        self.config, self.ops = config, ops
        self.context = context  # positions that the rotary tables cover
        self.program = program_of(config)
        self._tables = {table: RopeTables(table, context) for table in self.program.ropes()}
        weights = Weights(linears, vectors, self._tables)
        check(self.program, weights)
        self._bound = ops.bind(self.program, weights)
        self.two_stage: TwoStageHead | None = None  # reads of the head what a sampler looks at

    def cache(self, capacity: int, dtype: str = "float16") -> KVCache:
        """Room for ``capacity`` positions of one sequence, of type ``dtype``."""
        return KVCache(self.program.attentions(), self.ops, capacity, dtype)

    def state(self) -> Any:
        """Scratch of one running pass: every buffer, allocated once."""
        return self._bound.state()

    def forward(
        self,
        tokens: Sequence[int],
        cache: KVCache,
        state: Any,
        logits: LogitsWanted | None = "last",
    ) -> np.ndarray | None:
        """Read ``tokens`` (1 to ``MAX_ROWS``) at the cache's end.

        Returns float32 logits of the last token ``(vocab,)``, of all ``(n, vocab)``, or ``None``;
        with ``Needed``, those of the last token with -inf where a two-stage head left some out.
        The array is the state's own buffer: the next call overwrites it. The caller checks that
        ids are in the vocabulary and that the cache has room.
        """
        return self.read([Reading(cache, tokens, logits)], state)[0]

    def step(self, tokens: Sequence[int], caches: Sequence[KVCache], state: Any) -> np.ndarray:
        """Read one token of each of several sequences (1 to ``MAX_ROWS``) in one pass.

        Returns float32 logits ``(n, vocab)``: each row has the bits that ``forward`` gives for its
        sequence alone. The array is the state's own buffer.
        """
        self._run([Reading(c, [t], None) for c, t in zip(caches, tokens, strict=True)], state)
        return self._bound.logits(state, 0, len(tokens))

    def read(self, readings: Sequence[Reading], state: Any) -> list[np.ndarray | None]:
        """Several sequences in one pass, at most ``MAX_ROWS`` tokens together.

        Returns what each of them wants, with the bits that it gets alone: as ``forward`` does, and
        with "hidden" as ``hidden``. Of one sequence it is the state's own buffer, or ``out``. Of
        several, logits of a last token are the state's own, whatever is in ``out``, and the rest
        are copies.
        """
        self._run(readings, state)
        if len(readings) == 1:
            return [self._alone(readings[0], state)]
        results: list[np.ndarray | None] = []
        rows: list[int] = []  # whose logits are wanted
        start = 0
        for reading in readings:
            end = start + len(reading.tokens)
            found = None
            if reading.wanted == "hidden":
                found = self._bound.hidden(state, start, end - start).array.copy()
            elif reading.wanted is not None:
                rows += range(start if reading.wanted == "all" else end - 1, end)
            results.append(found)
            start = end
        if not rows:
            return results
        self._bound.gather(state, rows)
        logits, row = self._bound.logits(state, 0, len(rows)), 0
        for i, reading in enumerate(readings):
            if reading.wanted is None or reading.wanted == "hidden":
                continue
            if reading.wanted == "all":
                results[i] = logits[row : row + len(reading.tokens)].copy()
                row += len(reading.tokens)
            else:
                results[i] = logits[row]
                row += 1
        return results

    def _alone(self, reading: Reading, state: Any) -> np.ndarray | None:
        """What the only sequence of a pass wants of it."""
        wanted, n = reading.wanted, len(reading.tokens)
        if wanted is None:
            return None
        if wanted == "hidden":
            return self._bound.hidden(state, 0, n).array
        if wanted == "all":
            return self._bound.logits(state, 0, n)
        # The head is half of a small model's bytes: read it for the last token only.
        if isinstance(wanted, Needed) and self.two_stage is not None:
            return self.two_stage.logits(self._bound.hidden(state, n - 1, 1), wanted)
        return self._bound.logits(state, n - 1, 1, reading.out)[0]

    def _run(self, readings: Sequence[Reading], state: Any) -> None:
        """One pass, and count what was read."""
        spans: list[Span] = []
        tokens: list[int] = []
        end = 0
        for cache, part, _, _ in readings:
            cache.reserve(len(part))
            spans.append(Span(cache, cache.length, len(part)))
            tokens += part
            end = max(end, cache.length + len(part))
        for table in self._tables.values():
            table.cover(end)
        self._bound.read(state, tokens, spans)
        for cache, part, _, _ in readings:
            cache.length += len(part)

    def hidden(self, tokens: Sequence[int], cache: KVCache, state: Any) -> np.ndarray:
        """Read ``tokens`` as ``forward`` does; float32 ``(n, hidden)`` after the final norm.

        The array is the state's own buffer: the next call overwrites it.
        """
        found = self.read([Reading(cache, tokens, "hidden")], state)[0]
        assert found is not None, "it was asked for"
        return found

    def passes(
        self, tokens: Sequence[int], cache: KVCache, state: Any, wanted: Literal["all"] | None
    ) -> Iterator[tuple[int, np.ndarray | None]]:
        """``forward`` for any number of tokens, in steps of ``MAX_ROWS``: where each step begins,
        and its logits."""
        for start in range(0, len(tokens), MAX_ROWS):
            part = tokens[start : start + MAX_ROWS]
            yield start, self.forward(part, cache, state, logits=wanted)
