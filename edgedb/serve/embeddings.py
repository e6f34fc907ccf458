"""Texts as vectors, as OpenAI's clients and Ollama's want them."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..run.embedding import vectors
from ..run.request import Progress, Sink
from .asked import Cancelled, Reply
from .errors import Refused
from .fields import Fields
from .prompts import read_prompts
from .served import Served


@dataclass(frozen=True)
class Texts:
    """What is asked of the engine; the counterpart of ``Asked``."""

    ids: list[list[int]]
    stream: bool = False
    progress: bool = False

    def check(self, served: Served) -> None:
        """Raises ``Refused`` for a text that is too long or empty."""
        for number, ids in enumerate(self.ids, 1):
            if not ids:
                raise Refused(400, f"input: text {number} is empty", param="input")
            if len(ids) > served.model.context:
                raise Refused(
                    400,
                    f"text {number} has {len(ids)} tokens; the context has room for "
                    f"{served.model.context}",
                    code="context_length_exceeded",
                    param="input",
                )

    @property
    def answers(self) -> int:
        """Texts are read one after the other."""
        return 1

    def chunks(
        self,
        served: Served,
        cancelled: Cancelled,
        progress: Progress | None = None,
        at_once: int = 1,
        sink: Sink | None = None,
    ) -> Iterator[np.ndarray]:
        """A vector for each text."""
        return vectors(served.model, self.ids, cancelled)


class _Vectors:
    """A ``Reply`` of one document."""

    def __init__(self, served: Served, texts: Texts) -> None:
        self._served, self._texts = served, texts
        self._found: list[np.ndarray] = []
        self._started = time.perf_counter()

    def begin(self) -> list[Any]:
        self._started = time.perf_counter()
        return []

    def reading(self, done: int, total: int) -> list[Any]:
        return []

    def push(self, chunk: Any) -> list[Any]:
        self._found.append(chunk)
        return []

    def finish(self) -> list[Any]:
        return []

    @property
    def tokens(self) -> int:
        return sum(map(len, self._texts.ids))

    def document(self) -> Any:
        raise NotImplementedError


class OpenAIVectors(_Vectors):
    """As OpenAI has them."""

    is_base64 = False

    def document(self) -> Any:
        data = [
            {"object": "embedding", "index": index, "embedding": self._written(vector)}
            for index, vector in enumerate(self._found)
        ]
        return {
            "object": "list",
            "data": data,
            "model": self._served.name,
            "usage": {"prompt_tokens": self.tokens, "total_tokens": self.tokens},
        }

    def _written(self, vector: np.ndarray) -> Any:
        if self.is_base64:
            return base64.b64encode(vector.astype("<f4").tobytes()).decode()
        return vector.tolist()


class OllamaVectors(_Vectors):
    """As Ollama has them."""

    def document(self) -> Any:
        nanoseconds = int(1e9 * (time.perf_counter() - self._started))
        return {
            "model": self._served.name,
            "embeddings": [vector.tolist() for vector in self._found],
            "total_duration": nanoseconds,
            "load_duration": 0,
            "prompt_eval_count": self.tokens,
        }


class OldOllamaVector(_Vectors):
    """As Ollama had it, for one text."""

    def document(self) -> Any:
        return {"embedding": self._found[0].tolist()}


def read_embeddings(served: Served, body: object) -> tuple[Texts, Reply]:
    """``/v1/embeddings``. Raises ``EdgeDBError`` for what cannot be answered."""
    fields = Fields(body)
    served.check_name(fields.take("model"))
    form = fields.choice("encoding_format", ("float", "base64"), "float")
    texts = Texts(read_prompts(served, fields.take("input"), "input", special=False))
    fields.refuse("dimensions", unless=(served.model.config.hidden_size,))
    fields.ignore("user")
    fields.finish()
    texts.check(served)
    reply = OpenAIVectors(served, texts)
    reply.is_base64 = form == "base64"
    return texts, reply


def read_embed(served: Served, body: object) -> tuple[Texts, Reply]:
    """Ollama's ``/api/embed``. A text is cut only where ``truncate`` says so."""
    fields = Fields(body)
    served.check_name(fields.take("model"))
    ids = read_prompts(served, fields.take("input"), "input", special=False)
    if fields.flag("truncate"):
        ids = [one[: served.model.context] for one in ids]
    fields.refuse("dimensions", unless=(served.model.config.hidden_size, 0))
    fields.ignore("keep_alive", "options")
    fields.finish()
    texts = Texts(ids)
    texts.check(served)
    return texts, OllamaVectors(served, texts)


def read_old_embedding(served: Served, body: object) -> tuple[Texts, Reply]:
    """Ollama's ``/api/embeddings``, which clients still use: one ``prompt``."""
    fields = Fields(body)
    served.check_name(fields.take("model"))
    texts = Texts(read_prompts(served, fields.required("prompt", str), "prompt", special=False))
    fields.ignore("keep_alive", "options")
    fields.finish()
    texts.check(served)
    return texts, OldOllamaVector(served, texts)
