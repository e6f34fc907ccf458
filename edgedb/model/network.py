"""The forward pass: a program bound to its weights by a backend, and what it is doing now.

What is computed is said in ``families``, how in ``edgedb.ops``. Here ids go in, logits come out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from ..format.tensors import Weight
from ..ops import Ops
from ..ops.sequences import MAX_ROWS, Span
from ..ops.weights import Weights, check
from .config import ModelConfig
from .families import program_of
from .head import Needed, TwoStageHead
from .kvcache import KVCache
from .rope import RopeTables

LogitsWanted = Literal["last", "all"] | Needed


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
        n = len(tokens)
        self._read(tokens, [cache], n, state)
        if logits is None:
            return None
        if logits == "all":
            return self._bound.logits(state, 0, n)
        # The head is half of a small model's bytes: read it for the last token only.
        if isinstance(logits, Needed) and self.two_stage is not None:
            return self.two_stage.logits(self._bound.hidden(state, n - 1, 1), logits)
        return self._bound.logits(state, n - 1, 1)[0]

    def step(self, tokens: Sequence[int], caches: Sequence[KVCache], state: Any) -> np.ndarray:
        """Read one token of each of several sequences (1 to ``MAX_ROWS``) in one pass.

        Returns float32 logits ``(n, vocab)``: each row has the bits that ``forward`` gives for its
        sequence alone. The array is the state's own buffer.
        """
        self._read(tokens, caches, 1, state)
        return self._bound.logits(state, 0, len(tokens))

    def _read(self, tokens: Sequence[int], caches: Sequence[KVCache], n: int, state: Any) -> None:
        """Read ``n`` tokens at the end of each of ``caches``, and count them."""
        for cache in caches:
            cache.reserve(n)
        for table in self._tables.values():
            table.cover(n + max(cache.length for cache in caches))
        self._bound.read(state, tokens, [Span(cache, cache.length, n) for cache in caches])
        for cache in caches:
            cache.length += n

    def hidden(self, tokens: Sequence[int], cache: KVCache, state: Any) -> np.ndarray:
        """Read ``tokens`` as ``forward`` does; float32 ``(n, hidden)`` after the final norm.

        The array is the state's own buffer: the next call overwrites it.
        """
        self.forward(tokens, cache, state, logits=None)
        return self._bound.hidden(state, 0, len(tokens)).array

    def passes(
        self, tokens: Sequence[int], cache: KVCache, state: Any, wanted: Literal["all"] | None
    ) -> Iterator[tuple[int, np.ndarray | None]]:
        """``forward`` for any number of tokens, in steps of ``MAX_ROWS``: where each step begins,
        and its logits."""
        for start in range(0, len(tokens), MAX_ROWS):
            part = tokens[start : start + MAX_ROWS]
            yield start, self.forward(part, cache, state, logits=wanted)
