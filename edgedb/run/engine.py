"""Load a model and talk to it.

``Model`` is immutable and shared between threads; what a conversation holds is in ``Session``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np

from .. import arguments
from .. import ops as operations
from ..hints import hinted
from .answers import Answers
from .completion import Chunk
from .draft import load_draft
from .embedding import embed
from .loaded import CacheRoom, LoadedModel, Prompt, open_file
from .request import AnswerOptions
from .session import Session

if TYPE_CHECKING:
    import sys

    if sys.version_info >= (3, 11):
        from typing import Unpack
    else:
        from typing_extensions import Unpack

_TEXTS = arguments.each(arguments.text, "a text or a list of texts", alone=str)


@hinted
def load(
    path: str | PathLike[str],
    *,
    threads: int | None = None,
    backend: str | None = None,
    isa: str | None = None,
    context: int | None = None,
    kv_dtype: str = "float16",
    head: str = "full",
    cache_tokens: int | CacheRoom | None = None,
    draft: str | PathLike[str] | None = None,
    verify: bool = True,
    memory: str = "auto",
) -> Model:
    """Open a ``.dbb`` file; the weights stay in the file and are read through a memory map, or are
    copied into memory.

    ``path``: also the name of a model in ``models`` of this folder, in the user's data or in
    ``$EDGEDB_MODELS``, without ``.dbb`` if you like, or ``OWNER/NAME`` of one that was pulled.
    ``threads``, ``backend`` and ``isa`` are those of ``edgedb.ops.create``. ``context`` is the
    number of positions a session can hold (default: the model's own, at most 8,192), ``kv_dtype``
    the cache's type. ``head="two-stage"`` leaves out logits that no choice of a token depends on,
    in a head of two pairs or more: the same text, rarely faster (``docs/head.md``).
    ``cache_tokens`` bounds what all sessions hold together, in positions: an answer begins when
    there is room for all of it, and what is left keeps beginnings of earlier ones; a function gets
    the context and the bytes that one takes when it is full, and returns the bound. ``draft`` is a
    small model of the same tokenizer, named like ``path``, that guesses tokens which this one then
    reads in one pass: the same text, faster where the guesses are right. ``verify`` compares the
    data with the file's checksums. ``memory`` is ``"map"`` (shared with every other process that
    maps the file), ``"copy"`` (this process's own, in huge pages where the system has them), or
    ``"auto"``: a map, and a copy where that is faster and cheap (``docs/memory.md``).
    Raises ``FormatError`` for a damaged file, ``UnsupportedModelError`` for a model this version
    cannot run, ``NativeError`` if a forced backend cannot run, ``TypeError`` for an option that
    there is not.
    """
    file = open_file(path, arguments.flag("verify", verify), memory)
    ops = operations.create(backend, isa, threads)
    model = Model(file, ops, context, kv_dtype, head, cache_tokens)
    if draft is not None:
        model.draft = load_draft(draft, model, verify, memory)
    return model


class Model(LoadedModel, Answers):
    """A loaded model: immutable, safe to share between threads."""

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """Next-token logits after each of ``ids``: float32 ``(len(ids), vocab_size)``."""
        return self.session().logits_of(ids)

    def session(self) -> Session:
        """A new, empty session."""
        return Session(self)

    def load_session(self, path: str | PathLike[str]) -> Session:
        """The session that ``Session.save`` wrote to ``path``.

        Raises ``FormatError`` if the file is damaged or was saved with another model or cache type,
        ``ContextFullError`` if it holds more than this model's context.
        """
        return Session.load(self, path)

    def embed(self, texts: str | Sequence[str]) -> np.ndarray:
        """Vectors of ``texts``, float32 ``(len(texts), hidden_size)`` of length 1.

        A text's vector is the mean of the last hidden state (after the final norm) over its tokens,
        divided by its length. Compare two by their dot product. Raises ``EdgeDBError`` for a text
        without tokens, ``ContextFullError`` for one that is longer than the context.
        """
        return embed(self, _TEXTS("texts", texts))

    def stream(self, prompt: Prompt, **options: Unpack[AnswerOptions]) -> Iterator[Chunk]:
        """``generate(..., stream=True)``."""
        return self.generate(prompt, stream=True, **options)

    def _answering(self) -> Session:
        return Session(self)
