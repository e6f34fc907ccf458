"""What is served: a model, its names, and what requests leave unsaid."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from .. import __version__
from ..choose.sampling import SamplingParams
from ..display import quoted
from ..errors import TemplateError
from ..hub.names import name_of_folder
from ..run.engine import Model
from .errors import Refused

_PROBE = "edgedb_probe"


class Served:
    """A model that answers requests. Immutable, shared between threads."""

    def __init__(
        self,
        model: Model,
        *,
        aliases: Sequence[str] = (),
        params: SamplingParams | None = None,
        max_tokens: int | None = None,
        template: Mapping[str, Any] | None = None,
    ) -> None:
        """``aliases``: more names, of which the first is the one that is shown. ``params``,
        ``max_tokens`` and ``template``, variables of the chat template, are for requests that do
        not say."""
        path = model.file.path
        hub = name_of_folder(path.parent.name)
        self.model = model
        own = (path.stem, path.name, *((hub.repository,) if hub else ()))
        self.names: tuple[str, ...] = tuple(dict.fromkeys((*aliases, *own)))
        self.params = params or SamplingParams()
        self.max_tokens = max_tokens
        self.template = dict(template or {})
        self.created = int(time.time())
        self._knows_tools: bool | None = None

    @property
    def name(self) -> str:
        """The name that answers bear."""
        return self.names[0]

    @property
    def knows_tools(self) -> bool:
        """Whether the chat template writes the tools that it is given."""
        if self._knows_tools is None:
            tool = {"type": "function", "function": {"name": _PROBE, "parameters": {}}}
            try:
                text = self.model.chat_text([{"role": "user", "content": "?"}], tools=[tool])
            except TemplateError:
                text = ""
            self._knows_tools = _PROBE in text
        return self._knows_tools

    @property
    def fingerprint(self) -> str:
        """Of all that the text of an answer depends on beside the request."""
        return f"edgedb-{__version__}-{self.model.file.fingerprint[:12]}"

    def check_name(self, name: object) -> None:
        """Raises ``Refused`` if a request asks for another model than this one."""
        if name is None or name == "":
            return
        if not isinstance(name, str):
            raise Refused(400, f"model = {quoted(name)}: expected a text", param="model")
        if name in self.names or name.removesuffix(":latest") in self.names:
            return
        raise Refused(
            404,
            f"there is no model {quoted(name)} here; this server has {self.name}",
            code="model_not_found",
            param="model",
        )
