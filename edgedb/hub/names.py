"""Names of models on the hub, ``OWNER/NAME`` or ``OWNER/NAME@REVISION``, and of their folders."""

from __future__ import annotations

import re
from dataclasses import dataclass

# The hub's own rules: no "--", so that a folder's name says where the owner ends, and no "..".
_PART = r"(?!-)[A-Za-z0-9_-][A-Za-z0-9._-]{0,95}(?<![.-])"
_NAME = re.compile(rf"({_PART})/({_PART})(?:@([A-Za-z0-9_][A-Za-z0-9._/+-]{{0,199}}))?")
_FOLDER = re.compile(rf"({_PART})--({_PART})")


@dataclass(frozen=True)
class HubName:
    """A repository, and the branch, tag or commit that was asked for."""

    owner: str
    name: str
    revision: str | None = None

    @property
    def repository(self) -> str:
        return f"{self.owner}/{self.name}"

    @property
    def folder(self) -> str:
        """The folder of its models, below one of models."""
        return f"{self.owner}--{self.name}"

    def __str__(self) -> str:
        return self.repository + (f"@{self.revision}" if self.revision else "")


def hub_name(text: str) -> HubName | None:
    """The name that ``text`` is, or None if it can be none: a path, a plain name."""
    found = _NAME.fullmatch(text)
    if not found or ".." in text or "--" in found[1] + "/" + found[2] or text.endswith(".dbb"):
        return None
    return HubName(found[1], found[2], found[3])


def name_of_folder(folder: str) -> HubName | None:
    """The other way: the repository whose models are in a folder of this name."""
    found = _FOLDER.fullmatch(folder)
    return hub_name(f"{found[1]}/{found[2]}") if found else None
