"""A plugin for simonw's ``llm``: ``llm -m edgedb-smollm2 "..."`` (extra ``[llm]``).

Every ``.dbb`` file in the folders of ``$EDGEDB_MODELS`` (by default ``models`` here,
``$XDG_DATA_HOME/edgedb/models`` and ``edgedb`` in llm's own folder) is the model
``edgedb-<name of the file>``, and the shortest name of a family is also ``edgedb-<family>``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import llm
from pydantic import Field

from .engine import Model, load
from .modelfiles import configured_folders
from .session import Session


class EdgeDB(llm.Model):
    """One model file as llm sees it. It is loaded when it is first asked."""

    can_stream = True
    supports_schema = True

    class Options(llm.Options):
        """Fields of ``SamplingParams`` and the length of the answer."""

        max_tokens: int | None = Field(None, description="Longest answer, in tokens")
        temperature: float | None = Field(None, description="Randomness; 0: the most likely token")
        top_k: int | None = Field(None, description="Only so many tokens; 0: all")
        top_p: float | None = Field(None, description="Only so much probability; 1: all")
        min_p: float | None = Field(None, description="Only this likely beside the best; 0: all")
        typical_p: float | None = Field(None, description="Only tokens of average surprise; 1: all")
        repetition_penalty: float | None = Field(None, description="Recent tokens less likely")
        presence_penalty: float | None = Field(None, description="Off every recent token's logit")
        frequency_penalty: float | None = Field(None, description="Off for each occurrence")
        repetition_window: int | None = Field(None, description="Tokens that count as recent")
        dry_multiplier: float | None = Field(None, description="Against repeated sequences; 0: off")
        mirostat: int | None = Field(None, description="2: hold the surprise of the text")
        mirostat_tau: float | None = Field(None, description="Bits of surprise a token")
        seed: int | None = Field(None, description="Repeat the same choices")
        stop: str | None = Field(None, description="End the answer at this text")

    def __init__(self, name: str, path: Path) -> None:
        self.model_id = f"edgedb-{name}"
        self._path = path
        self._latest: tuple[str, Session] | None = None  # conversation and what it has read

    @cached_property
    def _model(self) -> Model:
        return load(self._path)

    def execute(
        self,
        prompt: llm.Prompt,
        stream: bool,
        response: llm.Response,
        conversation: llm.Conversation | None,
    ) -> Iterator[str]:
        """Answer a prompt; a conversation in one process reads only what is new."""
        options = {name: v for name, v in prompt.options.model_dump().items() if v is not None}
        if prompt.schema:
            options["json_schema"] = prompt.schema
        messages = [
            {"role": message.role, "content": "".join(_texts(message.parts))}
            for message in prompt.messages
        ]
        last = None
        for last in self._session(conversation).chat(messages, stream=True, **options):
            yield last.text
        if last is not None:
            response.set_usage(input=last.stats.prompt_tokens, output=last.stats.completion_tokens)

    def _session(self, conversation: llm.Conversation | None) -> Session:
        if conversation is None:
            return self._model.session()
        if self._latest is None or self._latest[0] != conversation.id:
            self._latest = (conversation.id, self._model.session())
        return self._latest[1]


class EdgeDBEmbedding(llm.EmbeddingModel):
    """Vectors of texts by one model file."""

    def __init__(self, name: str, path: Path) -> None:
        self.model_id = f"edgedb-{name}"
        self._path = path

    @cached_property
    def _model(self) -> Model:
        return load(self._path)

    def embed_batch(
        self, items: Iterable[str | bytes], *, key: str | None = None
    ) -> Iterator[list[float]]:
        """Vectors of length 1."""
        for item in items:
            yield self._model.embed(str(item))[0].tolist()


def _texts(parts: Iterable[Any]) -> Iterator[str]:
    for part in parts:
        if not hasattr(part, "text"):
            raise ValueError("edgedb models read text only")
        yield part.text


def model_files() -> dict[str, Path]:
    """Names and paths of the model files; of files with one name, the first folder's."""
    found: dict[str, Path] = {}
    for folder in configured_folders(llm.user_dir() / "edgedb"):
        for path in sorted(folder.glob("*.dbb")):
            found.setdefault(path.stem, path.absolute())
    return found


def aliases(names: Iterable[str]) -> dict[str, str]:
    """For a family (a name up to its first ``-``), the shortest name in it."""
    shortest: dict[str, str] = {}
    for name in sorted(names, key=lambda name: (len(name), name)):
        shortest.setdefault(name.partition("-")[0], name)
    return {name: family for family, name in shortest.items() if name != family}


@llm.hookimpl
def register_models(register: Callable[..., None]) -> None:
    """Called by llm."""
    files = model_files()
    families = aliases(files)
    for name, path in files.items():
        also = (f"edgedb-{families[name]}",) if name in families else ()
        register(EdgeDB(name, path), aliases=also)


@llm.hookimpl
def register_embedding_models(register: Callable[..., None]) -> None:
    """Called by llm."""
    files = model_files()
    families = aliases(files)
    for name, path in files.items():
        also = (f"edgedb-{families[name]}",) if name in families else ()
        register(EdgeDBEmbedding(name, path), aliases=also)
