"""Checkpoints of a text model beside an encoder of pictures: the text model alone, and said so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import write_hf
from safetensors.numpy import load_file, save_file

from edgedb.convert.sources import open_source
from edgedb.convert.sources.wrapper import text_settings
from edgedb.errors import CheckpointWarning, FormatError, UnsupportedModelError
from edgedb.model.families import program_of

VISION = {"patch": np.ones((2, 3), np.float32)}
# How transformers 4 and 5 name what they save: the text model, its head, another part.
NAMES = {
    "4": ("language_model.model.", "language_model.lm_head.", "vision_tower."),
    "5": ("model.language_model.", "lm_head.", "model.vision_tower."),
}
OF = {"gemma3": "gemma3_text", "mistral3": "ministral3"}


def wrapped(plain: Path, folder: Path, wrapper: str, names: str = "4", **changes: Any) -> Path:
    """The checkpoint in ``plain`` inside of ``wrapper``."""
    shutil.copytree(plain, folder)
    text = json.loads((plain / "config.json").read_text())
    model, head, vision = NAMES[names]
    tensors = {}
    for name, tensor in load_file(plain / "model.safetensors").items():
        prefix = head if name.startswith("lm_head.") else model
        tensors[prefix + name.removeprefix("model.").removeprefix("lm_head.")] = tensor
    tensors |= {vision + name: tensor for name, tensor in VISION.items()}
    settings = {
        "model_type": wrapper,
        "architectures": ["OfPictures"],
        "eos_token_id": 2,
        "text_config": text,
        "vision_config": {"hidden_size": 3},
        **changes,
    }
    (folder / "config.json").write_text(json.dumps(settings))
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("names", NAMES)
@pytest.mark.parametrize("wrapper", OF)
def test_the_text_model_is_that_of_its_own_checkpoint(
    shared: Path, tmp_path: Path, wrapper: str, names: str
) -> None:
    plain = shared / "families" / OF[wrapper]
    expected = open_source(plain)
    folder = wrapped(plain, tmp_path / "m", wrapper, names)
    with pytest.warns(
        CheckpointWarning, match=r"text model alone .* 1 tensors .*vision_tower"
    ) as w:
        source = open_source(folder)
    assert len(w) == 1 and source.config == expected.config
    program = program_of(source.config)
    for name in [*program.matrices(), *program.vectors()]:
        np.testing.assert_array_equal(source.tensor(name), expected.tensor(name))


def test_a_mistral_may_be_inside(tmp_path: Path, tiny_bpe: bytes) -> None:
    plain = write_hf(tmp_path / "p", tiny_bpe, model_type="mistral", sliding_window=None)
    with pytest.warns(CheckpointWarning, match="text model alone"):
        source = open_source(wrapped(plain, tmp_path / "m", "mistral3"))
    assert source.config.model_type == "mistral" and source.tokenizer_spec.eos_ids


def test_what_is_in_no_part_is_refused(tmp_path: Path, tiny_bpe: bytes) -> None:
    plain = write_hf(tmp_path / "p", tiny_bpe, model_type="mistral", sliding_window=None)
    folder = wrapped(plain, tmp_path / "m", "mistral3")
    tensors = load_file(folder / "model.safetensors") | {"mystery.weight": np.ones(3, np.float32)}
    save_file(tensors, folder / "model.safetensors")
    with (
        pytest.warns(CheckpointWarning),
        pytest.raises(UnsupportedModelError, match=r"mystery\.weight has no place"),
    ):
        open_source(folder)
    tensors = load_file(plain / "model.safetensors") | {"vision_tower.patch": VISION["patch"]}
    save_file(tensors, plain / "model.safetensors")
    with pytest.raises(
        UnsupportedModelError, match=r"vision_tower\.patch has no place in the pass"
    ):
        open_source(plain)


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"model_type": "gemma3"}, FormatError, "gemma3 has no text_config"),
        ({"model_type": "gemma3", "text_config": [1]}, FormatError, "no text_config"),
        (
            {"model_type": "mistral3", "text_config": {"model_type": "llama"}},
            UnsupportedModelError,
            "mistral3 with a text model 'llama' is not supported",
        ),
        (
            {"model_type": "gemma3", "text_config": {"model_type": ["gemma3_text"]}},
            UnsupportedModelError,
            "is not supported",
        ),
    ],
)
def test_wrappers_without_such_a_text_model(settings: dict, error: type, match: str) -> None:
    with pytest.raises(error, match=match):
        text_settings(settings)


def test_settings_of_the_whole_are_those_of_its_text() -> None:
    text = {"hidden_size": 8, "eos_token_id": 5}
    whole = {"model_type": "gemma3", "bos_token_id": 2, "eos_token_id": 1, "text_config": text}
    assert text_settings(whole) == {
        "model_type": "gemma3_text",
        "bos_token_id": 2,
        "eos_token_id": 5,
        "hidden_size": 8,
    }
    quantized = text_settings(whole | {"quantization_config": {"bits": 4}})
    assert quantized["quantization_config"] == {"bits": 4}
    assert text_settings(text) is text
