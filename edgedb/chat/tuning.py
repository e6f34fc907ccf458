"""What ``/set`` changes: the sampling options and the chat's own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ..choose.settings import Setting, sampling_settings, settings_of
from ..errors import EdgeDBError
from ..hints import suggestion
from .conversation import ChatOptions, Conversation

# `/system` is the command for it.
_OWN = {name: s for name, s in settings_of(ChatOptions).items() if name != "system"}


class Settings:
    """Names, values and changes; ``start`` are the values that ``default`` brings back."""

    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation
        self._start = conversation.options

    @property
    def names(self) -> list[str]:
        """Everything that can be set."""
        return [*sampling_settings(), *_OWN]

    def values(self, name: str) -> tuple[str, ...]:
        """Words to offer for a value."""
        setting = {**sampling_settings(), **_OWN}.get(name)
        return setting.values if setting else ()

    def rows(self) -> Iterator[tuple[str, str]]:
        """Every option with its value, marked if that is not the one of the start, and its help."""
        options = self._conversation.options
        values = {name: self._shown(name, options) for name in self.names}
        wide, value_wide = max(map(len, values)), max(map(len, values.values()))
        for name, value in values.items():
            mark = "" if value == self._shown(name, self._start) else "*"
            yield f"{name:<{wide}}  {value:<{value_wide}} {mark}", self._setting(name).help

    def explain(self, name: str) -> str:
        """One option on one line."""
        setting = self._setting(name)
        value = self._shown(name, self._conversation.options)
        return f"{name} {value}: {setting.help} Expected: {setting.form.expected}."

    def change(self, name: str, text: str) -> str:
        """Set an option; returns what changed. Raises ``EdgeDBError`` if it cannot be that."""
        setting = self._setting(name)
        before = self._conversation.options
        value = self._get(name, self._start) if text == "default" else setting.read(text)
        if name in _OWN:
            changed = {name: value}
        else:
            changed = {"params": replace(before.params, **{name: value})}
        self._conversation.options = replace(before, **changed)
        return f"{name} {setting.show(value)} (was {self._shown(name, before)})"

    def reset(self) -> list[str]:
        """Set every option to what it was at the start; returns what changed."""
        options = self._conversation.options
        changed = [n for n in self.names if self._get(n, options) != self._get(n, self._start)]
        return [self.change(name, "default") for name in changed]

    def _setting(self, name: str) -> Setting:
        known = {**sampling_settings(), **_OWN}
        if name not in known:
            near = suggestion(name, list(known)) or "; /set lists the settings"
            raise EdgeDBError(f"there is no setting {name}{near}")
        return known[name]

    @staticmethod
    def _get(name: str, options: ChatOptions) -> Any:
        return getattr(options if name in _OWN else options.params, name)

    def _shown(self, name: str, options: ChatOptions) -> str:
        return self._setting(name).show(self._get(name, options))
