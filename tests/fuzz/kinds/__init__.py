"""The kinds of input, each in a file of its own."""

from __future__ import annotations

from .base_logits import BaseLogitsKind
from .batch import BatchKind
from .dbb import DbbKind
from .gguf import GGUFKind
from .huggingface import HuggingFaceKind
from .kind import Files, Kind, WrongMessage
from .session import SessionKind
from .template import TemplateKind
from .tokenizer_json import TokenizerJsonKind

__all__ = ["KINDS", "Files", "Kind", "WrongMessage"]

KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        DbbKind(),
        SessionKind(),
        GGUFKind(),
        HuggingFaceKind(),
        TokenizerJsonKind(),
        TemplateKind(),
        BaseLogitsKind(),
        BatchKind(),
    )
}
