"""A draft model: a small one of the same vocabulary guesses what the large one will write.

The draft follows a sequence with a cache of its own. It reads the tokens that were taken, is cut
back where a guess was refused, and writes on by taking its likeliest token: the large model's
sampler, with its own random numbers, decides whether that is the one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from os import PathLike

import numpy as np

from ..display import quoted
from ..errors import EdgeDBError
from ..ops.pages import PAGE
from ..ops.selection import Floats, Ids
from ..ops.sequences import MAX_ROWS
from ..text.tokenizer import Tokenizer
from .cached_tokens import CachedTokens
from .loaded import LoadedModel, open_file
from .pace import Pace
from .schedule import Place, Times
from .speculative import ALONE, Beside
from .stakes import Stakes

DEFAULT_DRAFT = 16  # tokens guessed at once at most, unless a request says otherwise
# After a rest a draft that has more to read than this begins anew with so many: reading all that it
# missed could take longer than it will ever save.
_ANEW = 64
_COMPARED = 4096  # tokens of two vocabularies
_BEHIND = 2  # tokens that a draft has to read where all of its guesses were right


def load_draft(
    path: str | PathLike[str], model: LoadedModel, verify: bool, memory: str
) -> LoadedModel:
    """The draft of ``model``: it runs on the same threads, with a cache of the same type, and its
    weights lie in memory as ``load`` says.

    Raises ``EdgeDBError`` if its vocabulary is another one, or ``model`` has a backend whose bits
    depend on what is read together.
    """
    if model.ops.name != "native":
        raise EdgeDBError(
            f"a draft needs the native backend: with {model.ops.name} the text would be another one"
        )
    file = open_file(path, verify, memory)
    context = min(model.context, file.config.max_position_embeddings)
    draft = LoadedModel(file, model.ops, context, model.kv_dtype)
    if (reason := _difference(draft.tokenizer, model.tokenizer)) is not None:
        raise EdgeDBError(
            f"{file.path}: no draft for {model.file.path.name}: {reason}; give one of the same "
            "tokenizer"
        )
    draft.prefixes.limit(-(-context // PAGE))
    return draft


def _difference(draft: Tokenizer, model: Tokenizer) -> str | None:
    """Why ids of one are not those of the other, by some of them: all would take seconds. One may
    have more, as files pad a vocabulary."""
    n = min(draft.vocab_size, model.vocab_size)
    for token in range(0, n, -(-n // _COMPARED)):
        found, expected = (one.token_bytes(token, False) for one in (draft, model))
        if found != expected:
            return f"token {token} is {_shown(found)} there, and {_shown(expected)} in the model"
    return None


def _shown(token: bytes) -> str:
    return quoted(token.decode("utf-8", "replace"))


class Draft(CachedTokens):
    """What a draft model has read of a sequence, from one of its tokens on."""

    def __init__(self, model: LoadedModel, n_tokens: int) -> None:
        """``n_tokens``: of the vocabulary of the model that it guesses for."""
        super().__init__(model)
        self._origin = 0  # the place in the sequence of the first token that is held
        self._n_tokens = min(n_tokens, model.vocab_size)
        self._pace = Pace(model.loop.times, MAX_ROWS)

    def copy(self) -> Draft:
        """Another one that has read the same."""
        other = Draft(self.model, self._n_tokens)
        other.copy_from(self)
        other._origin = self._origin
        return other

    def catch_up(
        self, ids: Ids, most: int | None, cancelled: Callable[[], bool] | None = None
    ) -> None:
        """Read what is missing of ``ids`` but for the last token; of more than ``most`` the last
        ones only."""
        missing = len(ids) - self._origin - self._held(ids)
        if missing <= _BEHIND:
            return
        ids = ids[:-1]
        if most is not None and missing > most:
            self._begin(len(ids) - most)
        self._follow(ids, 1)
        is_long = not self._origin and self.length - self.cache.length > _ANEW
        self._read(cancelled)
        if is_long:
            self.offer()

    def guess(self, ids: Ids, n: int, cancelled: Callable[[], bool] | None = None) -> list[int]:
        """Up to ``n`` tokens that may follow ``ids``; none after a cancel."""
        n = min(n, self.cache.capacity // 2)
        self._follow(ids, n)
        guesses: list[int] = []
        while (logits := self._read(cancelled)) is not None:
            guesses.append(self.choose(logits))
            if len(guesses) == n:
                break
            self.append(guesses[-1:])
        self.model.loop.leave(self._place)
        return guesses

    @property
    def position(self) -> int:
        """Number of tokens of the sequence up to the last one that it holds."""
        return self._origin + self.length

    def choose(self, logits: Floats) -> int:
        """The token to guess, by ``logits`` float32 ``(vocab,)``."""
        return int(self.model.ops.largest(logits[: self._n_tokens], 1)[0][0])

    def _held(self, ids: Ids) -> int:
        """How many tokens of ``ids`` it holds, from its origin on."""
        common = self.common(ids[self._origin :])
        if self._origin >= len(ids) or (self.length and not common):
            self._begin(0)
        return common

    def _begin(self, origin: int) -> None:
        """Forget everything; what is read from now on begins there."""
        self.rewind(0)
        self._origin = max(0, origin)

    def _follow(self, ids: Ids, n: int) -> None:
        """Hold ``ids``, of which the last one at least is to be read, with room for ``n`` more: if
        the context is too short, the last tokens, which are half of it."""
        common = self._held(ids)
        if len(ids) - self._origin + n > self.cache.capacity:
            self._begin(len(ids) - self.cache.capacity // 2)
            common = 0
        own = np.minimum(ids[self._origin :], self.model.vocab_size - 1)
        self.rewind(min(common, len(own) - 1))
        if not self._origin and len(own) - self.length > _ANEW:
            self.take_over(own[:-1])
        self.append(own[self.length :])

    def _read(self, cancelled: Callable[[], bool] | None) -> Floats | None:
        """Logits after the last token, or None after a cancel."""
        logits: Floats | None = None
        while (at := self.cache.length) < self.length:
            if cancelled is not None and cancelled():
                self.rewind(at)
                return None
            most = MAX_ROWS if cancelled is None else self._pace.batch
            n = min(self.length - at, most)
            turn = self.run(
                self._ids[at : at + n].tolist(),
                "last" if at + n == self.length else None,
                most=most,
                cancelled=cancelled,
                is_stream=n <= _BEHIND,
            )
            if not turn.is_withdrawn:
                logits = turn.result
                self._pace.measured(turn.rows, turn.seconds)
        return logits


class Drafter:
    """Guesses of a draft, as many as pay."""

    def __init__(
        self,
        draft: Draft,
        most: int,
        times: Times,
        place: Place,
        cancelled: Callable[[], bool] | None,
    ) -> None:
        """``most`` guesses at once; ``times`` of passes of the model that reads them, in which the
        sequence has its ``place``."""
        self.drafted = self.accepted = 0
        self._draft, self._place, self._cancelled = draft, place, cancelled
        self._experience = draft.model.experience
        self._stakes = Stakes(most, times, self._experience)
        self._made, self._making = 0, 0.0  # guesses, and the seconds that they took
        self._unsettled: tuple[int, int, float] | None = None  # what Stakes.judged is to be told
        self._hits = 0

    def draft(self, ids: Ids, room: int, beside: Beside = ALONE) -> list[int]:
        """Up to ``room`` guesses of what follows ``ids`` int32 ``(n,)``."""
        if self._unsettled is not None:
            unsettled, self._unsettled = self._unsettled, None
            self._stakes.judged(self._hits, *unsettled)
        self._made = 0
        n = self._stakes.size(room, beside)
        if not n:
            return []
        began = time.perf_counter()
        self._place.due = began + n * self._experience.seconds
        self._draft.catch_up(ids, _ANEW if self._stakes.has_rested else None, self._cancelled)
        caught_up = time.perf_counter()
        guesses = self._draft.guess(ids, n, self._cancelled)
        ended = time.perf_counter()
        if len(guesses) == n:
            self._experience.took((ended - caught_up) / n)
        # What a prompt took is no reason to rest: that would not bring it back.
        began = began if self._stakes.has_rested else caught_up
        self._made, self._making = len(guesses), ended - began
        return guesses

    def measured(self, n_guesses: int, seconds: float) -> None:
        """A pass of so many seconds has read a token and the first ``n_guesses`` of the last
        guesses."""
        if self._made:
            self.drafted += n_guesses
            self._experience.drafted += n_guesses
            self._hits = 0
            self._unsettled = n_guesses, self._made, self._making + seconds

    def hit(self) -> None:
        """One more of them was right."""
        self.accepted += 1
        self._experience.accepted += 1
        self._hits += 1
