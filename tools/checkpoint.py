"""A student on disk, small enough to carry around, and its way into a ``.dbb``.

The file is a safetensors file (``docs/checkpoint.md``). A latent weight is one byte: two bits say
which level is nearest, six bits where the latent lies between the neighbouring thresholds. So the
planes come back exactly, and a training goes on from latents that are off by under 2% of a cell.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from edgedb.config import ModelConfig
from edgedb.errors import FormatError

from .command import one_line_errors
from .decoder import Decoder
from .student import FDBLinear, planes

if TYPE_CHECKING:
    from edgedb.tensors import PairTensor
    from edgedb.tokenizer import TokenizerSpec

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
    tensors: dict[str, Tensor] = {name: norm.float() for name, norm in student.norms()}
    tensors["embedding"] = student.embedding.to(torch.float16)
    if not student.config.tie_word_embeddings:
        tensors["head"] = student.untied_head.to(torch.float16)
    for name, module in student.matrices():
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
    save_file(tensors, partial, metadata)
    os.replace(partial, path)


def read_student(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a student file. Raises ``FormatError`` if damaged or foreign."""
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
    return tensors, metadata


@torch.no_grad()
def load_student(path: Path, device: torch.device | str = "cpu") -> tuple[Decoder, dict[str, str]]:
    """The student of a file, ready to go on training, and the file's metadata.

    Raises ``FormatError`` naming the tensor that is missing or has another shape than the model.
    """
    tensors, metadata = read_student(path)
    config = ModelConfig.from_dict(json.loads(metadata["config"]))
    student = Decoder(config, lambda name, rows, cols: FDBLinear(rows, cols))

    def take(name: str, like: Tensor) -> Tensor:
        if name not in tensors:
            raise FormatError(f"{path}: tensor {name} is missing")
        if tensors[name].shape != like.shape:
            raise FormatError(
                f"{path}: tensor {name} has shape {list(tensors[name].shape)}, "
                f"expected {list(like.shape)}"
            )
        return tensors[name]

    for name, norm in student.norms():
        norm.copy_(take(name, norm))
    student.embedding.copy_(take("embedding", student.embedding))
    if not config.tie_word_embeddings:
        student.untied_head.copy_(take("head", student.untied_head))
    for name, module in student.matrices():
        assert isinstance(module, FDBLinear)
        module.alpha1.copy_(take(f"{name}.alpha1", module.alpha1[..., 0])[..., None])
        module.alpha2.copy_(take(f"{name}.alpha2", module.alpha2[..., 0])[..., None])
        module.sign.copy_(torch.where(module.alpha1 < 0, -1.0, 1.0))
        unit, c1, c2 = module.codes()
        codes = take(f"{name}.latent", module.latent)
        module.latent.copy_(decode_latent(codes, unit * c1, unit * c2))
    return student.to(device), metadata


@torch.no_grad()
def pair_tensor(module: FDBLinear) -> PairTensor:
    """The packed form of one matrix; it stands for exactly ``module.weight()``."""
    from edgedb.packing import pack_planes
    from edgedb.tensors import PairTensor

    module.round_scales = True
    unit, c1, c2 = module.codes()
    b1, b2 = (
        plane.flatten(1)[:, : module.cols].cpu().numpy()
        for plane in planes(module.latent, unit * c1, unit * c2)
    )
    codes1, codes2 = (c[..., 0].to(torch.int8).cpu().numpy() for c in (c1, c2))
    blocks = pack_planes(b1, b2, codes1, codes2)
    row_scale = unit[:, 0, 0].cpu().numpy()
    return PairTensor(blocks[None], row_scale[None], module.rows, module.cols)


@torch.no_grad()
def head_hessians(student: Decoder, ids: Tensor) -> list[NDArray[np.float32]]:
    """``X^T X`` of what the head multiplies on ``ids [windows, tokens]``, for ``tools.fdb.fit``."""
    from .feedback import panels

    rows = torch.cat([student(window[None], eager=True)[0] for window in ids])
    whole = (rows.t() @ rows / len(rows)).numpy()
    return [np.ascontiguousarray(whole[part, part]) for part in panels(len(whole))]


def export(
    path: Path,
    out: Path,
    *,
    pairs: int | None = None,
    text: Path | None = None,
    quality: Mapping[str, Any] | None = None,
) -> Path:
    """Write the student ``path`` as ``out`` (``.dbb``): layers as pairs, embedding and head int8.

    pairs: embedding and head as so many pairs instead, fitted to what the head sees on a few
    windows of the training text in folder ``text``. ``quality`` goes into the file's record.
    Raises ``FormatError`` if a packed matrix does not decode to the student's bit for bit.
    """
    from edgedb.dbb_writer import DbbWriter
    from edgedb.packing import dequantize, pack_int8, quantize_int8
    from edgedb.tokenizer import TokenizerSpec

    from .fdb import fit
    from .text import TextMix

    student, metadata = load_student(path)
    if "tokenizer" not in metadata:
        raise FormatError(f"{path}: holds no tokenizer; train with a source that has one")
    spec = TokenizerSpec.from_metadata(
        json.loads(metadata["tokenizer"]), read_student(path)[0][TOKENIZER].numpy().tobytes()
    )
    matrices, norms = dict(student.matrices()), dict(student.norms())
    dense = {"embedding": student.embedding}
    if not student.config.tie_word_embeddings:
        dense["head"] = student.untied_head
    kinds: dict[str, Any] = {
        name: 1 if name in matrices else pairs or "int8" for name in student.config.linear_shapes()
    }
    hessians = None
    if pairs and text:
        windows = TextMix(text, 1024, real_share=0.5).batch(0, 12)
        hessians = head_hessians(student, torch.from_numpy(windows))
    with DbbWriter(
        out, student.config, spec, kinds, fingerprint=f"student {metadata['sha256']} {text}"
    ) as writer:
        for name in writer.remaining:
            if name in norms:
                writer.put(name, norms[name].detach().numpy())
            elif name in dense:
                weight = dense[name].detach().numpy()
                packed = (
                    fit(weight, pairs, hessians=hessians).tensor
                    if pairs
                    else pack_int8(*quantize_int8(weight))
                )
                writer.put(name, packed)
            else:
                module = matrices[name]
                assert isinstance(module, FDBLinear)
                tensor = pair_tensor(module)
                if not np.array_equal(dequantize(tensor), module.weight().detach().numpy()):
                    raise FormatError(f"{name}: the packed matrix is not the student's")
                writer.put(name, tensor)
        return writer.finish(
            {
                "group": 64,
                "method": "FDB, trained",
                "student": metadata["sha256"],
                "step": int(metadata["step"]),
                "provenance": json.loads(metadata["provenance"]),
                **(quality or {}),
            }
        )


@one_line_errors
def main() -> None:
    """``python -m tools.checkpoint export STUDENT OUT.dbb`` and ``... info STUDENT``."""
    parser = argparse.ArgumentParser(description="Student checkpoints.")
    commands = parser.add_subparsers(dest="command", required=True)
    exporting = commands.add_parser("export", help="write a .dbb")
    exporting.add_argument("student", type=Path)
    exporting.add_argument("out", type=Path)
    exporting.add_argument("--pairs", type=int, help="embedding and head in pairs, not int8")
    exporting.add_argument("--text", type=Path, help="training text, to fit those pairs by")
    exporting.add_argument("--quality", type=json.loads, help="JSON for the file's record")
    showing = commands.add_parser("info", help="print step, provenance and checksum")
    showing.add_argument("student", type=Path)
    args = parser.parse_args()
    if args.command == "export":
        print(
            export(args.student, args.out, pairs=args.pairs, text=args.text, quality=args.quality)
        )
        return
    _, metadata = read_student(args.student)
    print(json.dumps({key: metadata[key] for key in ("step", "provenance", "sha256")}, indent=2))


if __name__ == "__main__":
    main()
