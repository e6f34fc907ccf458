"""Checkpoints that hold a text model beside an encoder of pictures: of these, the text model."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, TypeVar

from ...display import quoted
from ...errors import CheckpointWarning, FormatError, UnsupportedModelError

# model_type -> the text models that it may hold, the usual one first
WRAPPERS: Mapping[str, tuple[str, ...]] = {
    "gemma3": ("gemma3_text",),
    "mistral3": ("ministral3", "mistral"),
}
# What names of the text model begin with, as transformers 4 and 5 save it -> without a wrapper.
_PREFIXES = {
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
    "model.language_model.": "model.",
}
# Parts that are left out, as either saves them.
_OTHERS = tuple(
    f"{base}{part}."
    for base in ("", "model.")
    for part in ("vision_tower", "multi_modal_projector", "vision_model", "visual")
)
# Settings of the whole that are those of its text as well, where that has none of its own.
_SHARED = ("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings")

Found = TypeVar("Found")


def text_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of the text model, or ``settings`` where there is no wrapper.

    Raises ``FormatError`` where a wrapper has none, ``UnsupportedModelError`` for another model
    than it may hold.
    """
    wrapper = settings.get("model_type")
    if not isinstance(wrapper, str) or wrapper not in WRAPPERS:
        return settings
    text = settings.get("text_config")
    if not isinstance(text, dict):
        raise FormatError(f"config.json: {wrapper} has no text_config")
    held = text.get("model_type", WRAPPERS[wrapper][0])
    if held not in WRAPPERS[wrapper]:
        raise UnsupportedModelError(
            f"{wrapper} with a text model {quoted(held)} is not supported; "
            f"this version runs {', '.join(WRAPPERS[wrapper])} in it"
        )
    shared = {key: settings[key] for key in _SHARED if settings.get(key) is not None}
    if "quantization_config" in settings:  # refused by its name
        shared["quantization_config"] = settings["quantization_config"]
    return {**shared, **text, "model_type": held}


def text_tensors(wrapper: object, stored: Mapping[str, Found]) -> dict[str, Found]:
    """Tensors of the text model under the names that it has without a wrapper, with a word about
    those that are left out; all of them where there is no wrapper.

    What belongs to no part that is known stays, under its own name, to be refused by it.
    """
    if not isinstance(wrapper, str) or wrapper not in WRAPPERS:
        return dict(stored)
    others = [name for name in stored if name.startswith(_OTHERS)]
    left = set(others)
    if others:
        warnings.warn(
            f"{wrapper}: its text model alone is converted; {len(others)} tensors of other parts "
            f"({quoted(others[0])}, ...) are left out, so it sees no pictures",
            CheckpointWarning,
            stacklevel=2,
        )
    return {_plain(name): found for name, found in stored.items() if name not in left}


def _plain(name: str) -> str:
    for prefix, without in _PREFIXES.items():
        if name.startswith(prefix):
            return without + name.removeprefix(prefix)
    return name
