"""A student on disk, small enough to carry around.

The file is a safetensors file (``docs/checkpoint.md``). A latent weight is one byte: two bits say
which level is nearest, six bits where the latent lies between the neighbouring thresholds. So the
planes come back exactly, and a training goes on from latents that are off by under 2% of a cell.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from edgedb.errors import FormatError
from edgedb.model.config import ModelConfig
from edgedb.model.families import program_of
from edgedb.text.spec import TokenizerSpec

from .command import Arguments, one_line_errors
from .decoder import Decoder
from .parallel import assign
from .stacks import MAX_PLANES, MIN_PLANES, Stack, decode_stack, encode_stack, stack_codes
from .student import FDBLinear, empty_student, planes, scale_codes

FORMAT = "edgedb-student"
VERSION = "1"
BINS = 64  # six bits of position inside a cell
TOKENIZER = "tokenizer.file"


def _cells(alpha1: Tensor, alpha2: Tensor, b1: Tensor, b2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Level, and the distances to the cell's ends on its near and far side, ``[..., 64]``.

    Measured along sign(alpha1). Outer cells have no end; they are given ``1.5 * |alpha2|``, and
    what lies beyond is stored at the edge (its gradient only ever leads back in).
    """
    sign = torch.where(alpha1 < 0, -1.0, 1.0)
    long, short = alpha1 * sign, -alpha2 * sign
    level = torch.where(b1, long, 0.0) - torch.where(b2, short, 0.0)
    # In order of value: only b2, none, both, only b1; the gaps: short, long - short, short.
    middle = long - short
    end = 1.5 * short
    below = torch.where(b1, torch.where(b2, middle, short) / 2, torch.where(b2, end, short / 2))
    above = torch.where(b1, torch.where(b2, short / 2, end), torch.where(b2, short, middle) / 2)
    return level, below, above


def encode_latent(latent: Tensor, alpha1: Tensor, alpha2: Tensor) -> Tensor:
    """Latents ``[rows, groups, 64]`` as uint8 codes; alphas as the matrix uses them."""
    b1, b2 = planes(latent, alpha1, alpha2)
    level, below, above = _cells(alpha1, alpha2, b1, b2)
    off = latent * torch.where(alpha1 < 0, -1.0, 1.0) - level
    tiny = torch.finfo(torch.float32).tiny
    share = off / torch.where(off < 0, below, above).clamp_min(tiny)  # -1 .. 1 inside the cell
    bins = ((share + 1) * (BINS / 2)).floor().clamp(0, BINS - 1)
    return (b1 * 128 + b2 * 64 + bins).to(torch.uint8)


def decode_latent(codes: Tensor, alpha1: Tensor, alpha2: Tensor) -> Tensor:
    """The inverse of ``encode_latent``, up to the width of a bin; the planes are the same."""
    b1, b2 = codes >= 128, (codes & 64) > 0
    level, below, above = _cells(alpha1, alpha2, b1, b2)
    share = ((codes & (BINS - 1)).float() + 0.5) / (BINS / 2) - 1
    latent = level + share * torch.where(share < 0, below, above)
    return latent * torch.where(alpha1 < 0, -1.0, 1.0)


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


@torch.no_grad()
def save_student(
    path: Path,
    student: Decoder,
    *,
    step: int,
    provenance: Mapping[str, Any],
    tokenizer: TokenizerSpec | None = None,
) -> None:
    """Write ``path`` (atomically). ``provenance`` is JSON: teacher, text, settings, quality."""
    tensors: dict[str, Tensor] = {name: vector.float() for name, vector in student.vectors()}
    for name, module in (*student.tables().items(), *student.matrices()):
        if isinstance(module, Tensor):  # a plain table
            tensors[name] = module.to(torch.float16)
            continue
        if isinstance(module, Stack):
            tensors[f"{name}.latent"] = encode_stack(module.latent, *stack_codes(module.alphas))
            tensors[f"{name}.alphas"] = module.alphas
            continue
        assert isinstance(module, FDBLinear)
        unit, c1, c2 = module.codes()
        tensors[f"{name}.latent"] = encode_latent(module.latent, unit * c1, unit * c2)
        tensors[f"{name}.alpha1"] = module.alpha1[..., 0]
        tensors[f"{name}.alpha2"] = module.alpha2[..., 0]
    if tokenizer is not None:
        tensors[TOKENIZER] = torch.from_numpy(np.frombuffer(tokenizer.data, np.uint8).copy())
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "config": json.dumps(student.config.to_dict()),
        "step": str(step),
        "provenance": json.dumps(dict(provenance)),
        "sha256": _checksum(tensors),
    }
    if tokenizer is not None:
        metadata["tokenizer"] = json.dumps(tokenizer.to_metadata())
    partial = path.with_name(path.name + ".partial")
    try:
        save_file(tensors, partial, metadata)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def read_student(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a student file: config, provenance, and tokenizer if it has one, are
    JSON objects, step is a whole number. Raises ``FormatError`` if damaged or foreign.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise FormatError(f"{path}: no readable student checkpoint: {error}") from None
    if metadata.get("format") != FORMAT or metadata.get("version") != VERSION:
        raise FormatError(f"{path}: not a student checkpoint of version {VERSION}")
    if _checksum(tensors) != metadata.get("sha256"):
        raise FormatError(f"{path}: the checksum does not fit; the file is damaged")
    # The checksum is the tensors' alone.
    if not metadata.get("step", "").isdecimal():
        raise FormatError(f"{path}: the metadata hold no step")
    for key in ("config", "provenance", *({"tokenizer"} & metadata.keys())):
        if not _is_object(metadata.get(key, "")):
            raise FormatError(f"{path}: the metadata hold no {key} as a JSON object")
    if "tokenizer" in metadata and TOKENIZER not in tensors:
        raise FormatError(f"{path}: tensor {TOKENIZER} is missing")
    return tensors, metadata


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


@torch.no_grad()
def load_student(
    path: Path, device: torch.device | str = "cpu", *, sharded: bool = False
) -> tuple[Decoder, dict[str, str]]:
    """The student of a file, ready to go on training, and the file's metadata.

    Raises ``FormatError`` naming the tensor that is missing or has another shape than the model.
    """
    tensors, metadata = read_student(path)
    try:
        config = ModelConfig.from_dict(json.loads(metadata["config"]))
    except FormatError as error:
        raise type(error)(f"{path}: {error}") from None
    scales = {name: tensors.get(f"{name}.alphas") for name in program_of(config).matrices()}
    plan = {  # a number of scales that no stack has is refused with its tensor's shape
        name: min(max(t.shape[-1], MIN_PLANES), MAX_PLANES)
        for name, t in scales.items()
        if t is not None and t.ndim
    }
    student = empty_student(config, device, plan, sharded=sharded)

    def take(name: str, shape: Sequence[int]) -> Tensor:
        if name not in tensors:
            raise FormatError(f"{path}: tensor {name} is missing")
        if tensors[name].shape != tuple(shape):
            raise FormatError(
                f"{path}: tensor {name} has shape {list(tensors[name].shape)}, "
                f"expected {list(shape)}"
            )
        return tensors[name].to(device)

    for name, vector in student.vectors():
        assign(vector, take(name, vector.shape))
    for name, module in (*student.tables().items(), *student.matrices()):
        if isinstance(module, Tensor):
            assign(module, take(name, module.shape))
            continue
        if isinstance(module, Stack):
            alphas = take(f"{name}.alphas", module.alphas.shape)
            codes = take(f"{name}.latent", module.latent.shape)
            module.fill(decode_stack(codes, *stack_codes(alphas)), alphas)
            continue
        assert isinstance(module, FDBLinear)
        alpha1, alpha2 = (
            take(f"{name}.{which}", module.alpha1.shape[:2])[..., None]
            for which in ("alpha1", "alpha2")
        )
        unit, c1, c2 = scale_codes(alpha1, alpha2)
        codes = take(f"{name}.latent", module.latent.shape)
        assign(module.latent, decode_latent(codes, unit * c1, unit * c2))
        assign(module.alpha1, alpha1)
        assign(module.alpha2, alpha2)
        assign(module.sign, torch.where(alpha1 < 0, -1.0, 1.0))
    return student, metadata


def tokenizer_of(path: Path, metadata: Mapping[str, str]) -> TokenizerSpec:
    """The tokenizer that a file read before carries, with its metadata.

    Raises ``FormatError`` if it has none.
    """
    if "tokenizer" not in metadata:
        raise FormatError(f"{path}: holds no tokenizer; train with a source that has one")
    with safe_open(path, "np") as file:
        data = file.get_tensor(TOKENIZER).tobytes()
    try:
        return TokenizerSpec.from_metadata(json.loads(metadata["tokenizer"]), data)
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from None


@one_line_errors
def main() -> None:
    """``python -m tools.checkpoint STUDENT``: print step, provenance and checksum."""
    parser = Arguments(description="Show what a student checkpoint is.")
    parser.add_argument("student", type=Path)
    _, metadata = read_student(parser.parse_args().student)
    print(json.dumps({key: metadata[key] for key in ("step", "provenance", "sha256")}, indent=2))


if __name__ == "__main__":
    main()
