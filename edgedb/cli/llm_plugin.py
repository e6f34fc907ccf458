"""A plugin for simonw's ``llm``: ``llm -m edgedb-smollm2 "..."`` (extra ``[llm]``).

Every ``.dbb`` file in the folders of ``$EDGEDB_MODELS`` (by default ``models`` here,
``$XDG_DATA_HOME/edgedb/models``, where ``edgedb pull`` puts them, and ``edgedb`` in llm's own
folder) is the model
``edgedb-<name of the file>``, and the shortest name of a family is also ``edgedb-<family>``. What
was pulled is also ``edgedb-OWNER/NAME``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import llm
from pydantic import Field, create_model

from ..choose.settings import HELP, read_variables, sampling_settings, unescape
from ..display import NAME_CHARS, one_line, printable
from ..hub.modelfiles import configured_folders, models_in
from ..hub.names import name_of_folder
from ..run.engine import Model, load
from ..run.session import Session


def _options() -> Any:
    """The sampling settings, and the length and end of the answer, as options of llm.

    What is no plain number is a text in the form of ``/set``.
    """
    fields: dict[str, Any] = {
        "max_tokens": (int | None, Field(None, description=HELP["max_tokens"])),
        "stop": (str | None, Field(None, description=HELP["stop"])),
        "chat_template_kwargs": (
            str | None,
            Field(None, description=HELP["chat_template_kwargs"]),
        ),
    }
    for setting in sampling_settings().values():
        kind = setting.form.number or str
        fields[setting.name] = (kind | None, Field(None, description=setting.help))
    return create_model("Options", __base__=llm.Options, **fields)


def _read_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those that were given, as ``Session.chat`` takes them."""
    settings = sampling_settings()

    def read(name: str, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if name in settings:
            return settings[name].read(value)
        return unescape(value) if name == "stop" else read_variables(value)

    return {name: read(name, value) for name, value in options.items() if value is not None}


class EdgeDB(llm.Model):
    """One model file as llm sees it. It is loaded when it is first asked."""

    can_stream = True
    supports_schema = True

    Options = _options()

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
        options = _read_options(prompt.options.model_dump())
        if prompt.schema:
            options["json_schema"] = prompt.schema
        messages = [
            {"role": message.role, "content": "".join(_texts(message.parts))}
            for message in prompt.messages
        ]
        last = None
        for last in self._session(conversation).chat(messages, stream=True, **options):
            yield printable(last.text)  # llm prints it as it is
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
    for path in models_in(configured_folders(llm.user_dir() / "edgedb")):
        found.setdefault(one_line(path.stem, NAME_CHARS), path.absolute())
    return found


def aliases(names: Iterable[str]) -> dict[str, str]:
    """For a family (a name up to its first ``-``), the shortest name in it."""
    shortest: dict[str, str] = {}
    for name in sorted(names, key=lambda name: (len(name), name)):
        shortest.setdefault(name.partition("-")[0], name)
    return {name: family for family, name in shortest.items() if name != family}


def _registered() -> Iterator[tuple[str, Path, tuple[str, ...]]]:
    """Name, path and other names of each model file: that of its family, and ``OWNER/NAME`` of the
    repository that it was pulled from, if it was made last of those."""
    files = model_files()
    families = aliases(files)
    repositories: dict[str, str] = {}
    for name in sorted(files, key=lambda name: files[name].stat().st_mtime_ns):
        hub = name_of_folder(files[name].parent.name)
        if hub is not None:
            repositories[hub.repository] = name
    for name, path in files.items():
        also = [families[name]] if name in families else []
        also += [repository for repository, latest in repositories.items() if latest == name]
        yield name, path, tuple(f"edgedb-{other}" for other in also)


@llm.hookimpl
def register_models(register: Callable[..., None]) -> None:
    """Called by llm."""
    for name, path, also in _registered():
        register(EdgeDB(name, path), aliases=also)


@llm.hookimpl
def register_embedding_models(register: Callable[..., None]) -> None:
    """Called by llm."""
    for name, path, also in _registered():
        register(EdgeDBEmbedding(name, path), aliases=also)
