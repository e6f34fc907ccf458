"""A trained student as a ``.dbb``: planes and scales as they are, bit for bit.

``python -m tools.export_student STUDENT OUT.dbb --check TEXT``; ``tools.export`` calls this for a
student too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from edgedb.convert.compaction import compacted
from edgedb.convert.plan import pairs
from edgedb.errors import EdgeDBError, FormatError, UnsupportedModelError
from edgedb.files import read_text
from edgedb.format.packing import dequantize, pack_int8, pack_planes, quantize_int8
from edgedb.format.tensors import Kind, LinearTensor, PairTensor, kind_text
from edgedb.model.dbb_writer import DbbWriter
from edgedb.model.families import program_of
from edgedb.text.spec import TokenizerSpec
from edgedb.text.tokenizer import load_tokenizer

from .checkpoint import load_student, tokenizer_of
from .command import Arguments, one_line_errors, say
from .decoder import Decoder
from .quality import Compared, exponential
from .scratch import scratch_folder
from .stacks import Stack, pack_stack
from .student import FDBLinear, plan_of, planes
from .tables import head_hessians
from .text import TextMix

if TYPE_CHECKING:
    from torch import nn


@torch.no_grad()
def pair_tensor(module: FDBLinear) -> PairTensor:
    """The packed form of one matrix; it stands for exactly ``module.weight()``."""
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


def export(
    path: Path,
    out: Path,
    *,
    table_planes: int | None = None,
    text: Path | None = None,
    check: Path | None = None,
    quality: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write the student ``path`` as ``out`` (``.dbb``); returns the record that the file carries.

    Embedding and head that were trained in planes are taken as they are; plain ones become int8, or
    get ``table_planes``, fitted to what the head sees on a few windows of the training text in
    folder ``text``. The record's ``quality`` holds ``quality``, or else what the training measured
    last, and, with a text file ``check``, how far the engine on this file is from the student in
    PyTorch.
    Raises ``FormatError`` if a packed matrix does not decode to the student's bit for bit.
    """
    student, metadata = load_student(path)
    plan = plan_of(student)
    if table_planes and (trained := plan.get("embedding")):
        raise FormatError(f"{path}: embedding and head are trained as {kind_text(trained)} already")
    provenance = json.loads(metadata["provenance"])
    trained_quality = provenance.pop("quality", {})
    measured: dict[str, Any] = dict(trained_quality if quality is None else quality)
    record = {
        "group": 64,
        "method": "FDB, trained",
        "student": metadata["sha256"],
        "step": int(metadata["step"]),
        "provenance": provenance,
    }
    kinds: dict[str, Kind] = {
        name: plan.get(name, "int8" if name == "positions" else table_planes or "int8")
        for name in program_of(student.config).matrices()
    }
    spec = tokenizer_of(path, metadata)
    _check_tokenizer(path, spec, student.config.vocab_size)
    spec = compacted(spec)
    packed = _packed(student, table_planes, text)
    vectors = {name: vector.detach().numpy() for name, vector in student.vectors()}

    def write(target: Path) -> None:
        if measured:
            record["quality"] = measured
        key = f"{metadata['sha256']} {table_planes} {text} {json.dumps(record, sort_keys=True)}"
        with DbbWriter(target, student.config, spec, kinds, fingerprint=key) as writer:
            for name in writer.remaining:
                writer.put(name, vectors[name] if name in vectors else packed[name])
            writer.finish(record)

    if check:
        # The file holds what is measured on it, so it is written twice.
        with scratch_folder(out.with_name(out.name + ".trial")) as folder:
            write(folder / out.name)
            measured["engine"] = compare_with_engine(student, folder / out.name, check)
    write(out)
    return record


def _check_tokenizer(path: Path, spec: TokenizerSpec, vocab_size: int) -> None:
    """Find out now what would keep the finished file from being loaded."""
    try:
        load_tokenizer(spec, vocab_size)
    except (FormatError, UnsupportedModelError) as error:
        raise type(error)(f"{path}: {error}") from None


def compare_with_engine(
    student: Decoder, file: Path, text: Path, n_tokens: int = 1000
) -> dict[str, Any]:
    """The engine on ``file`` against the student in PyTorch, on the first tokens of a text.

    ``kl`` (nats a token, from PyTorch to the engine) and ``top1`` agreement; perplexities of the
    engine, of the student, and of the student with its matrices' inputs in 8 bits as the engine
    has them: what is left between the last and the engine is embedding, head and rounding.
    """
    import edgedb

    model = edgedb.load(file)
    n_tokens = min(n_tokens, model.context - 1)
    ids = model.tokenize(read_text(text), add_bos=False)[: n_tokens + 1]
    if len(ids) < 2:
        raise EdgeDBError(f"{text}: too short to compare anything on")
    theirs = torch.from_numpy(model.logits(ids)[:-1]).float().log_softmax(-1)
    found: dict[str, Any] = {"tokens": len(ids) - 1, "text": text.name}
    targets = torch.tensor(ids[1:])
    with torch.no_grad():
        for rounded in (False, True):
            for _, module in student.matrices():
                module.quantize_input = rounded
            mine = student.logits(torch.tensor([ids]))[0, :-1].log_softmax(-1)
            places = Compared(theirs, mine, targets)  # the engine is compared with the student
            name = "ppl_pytorch_int8_inputs" if rounded else "ppl_pytorch"
            found[name] = _ppl(places.teacher_nll)
            if not rounded:
                found["kl"] = _rounded(places.kl.mean().item())
                found["top1"] = places.agrees.float().mean().item()
    for _, module in student.matrices():
        module.quantize_input = False
    return {**found, "top1": _rounded(found["top1"]), "ppl_engine": _ppl(places.nll)}


def _ppl(nll: torch.Tensor) -> float:
    return _rounded(exponential(nll.double().mean().item()))


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


def _packed(
    student: Decoder, table_planes: int | None, text: Path | None
) -> dict[str, LinearTensor]:
    """Every matrix as the file holds it."""
    hessians = None
    if table_planes and text:
        windows = TextMix(text, 1024, real_share=0.5).batch(0, 12)
        hessians = head_hessians(student, torch.from_numpy(windows))
    packed: dict[str, LinearTensor] = {}
    for name, table in student.tables().items():
        if isinstance(table, Stack):
            packed[name] = _verified(name, table)
            continue
        assert isinstance(table, torch.Tensor)
        weight = table.detach().numpy()
        if table_planes and name != "positions":
            from edgedb.convert.fdb import (
                fit,  # numba, which is not everywhere where students train
            )

            packed[name] = fit(weight, table_planes, hessians=hessians).tensor
        else:
            packed[name] = pack_int8(*quantize_int8(weight))
    for name, module in student.matrices():
        packed[name] = _verified(name, module)
    return packed


@torch.no_grad()
def _verified(name: str, module: nn.Module) -> PairTensor:
    assert isinstance(module, FDBLinear | Stack)
    tensor = pack_stack(module) if isinstance(module, Stack) else pair_tensor(module)
    values = module.weight()
    if not np.array_equal(dequantize(tensor), values.numpy()):
        raise FormatError(f"{name}: the packed matrix is not the student's")
    return tensor


@one_line_errors
def main() -> None:
    """See the module's docstring."""
    parser = Arguments(description="Write a trained student as a .dbb.")
    parser.add_argument("student", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--pairs", type=pairs, help="plain embedding and head in pairs, not int8")
    parser.add_argument("--text", type=Path, help="folder of training text, to fit those pairs by")
    parser.add_argument("--check", type=Path, help="text file to compare engine and PyTorch on")
    parser.add_argument("--quality", type=json.loads, help="JSON for the file's record")
    args = parser.parse_args()
    record = export(
        args.student,
        args.out,
        table_planes=args.pairs,
        text=args.text,
        check=args.check,
        quality=args.quality,
    )
    say(f"{args.out}: {args.out.stat().st_size / 1e6:.1f} MB")
    print(json.dumps(record.get("quality", {}), indent=1))


if __name__ == "__main__":
    main()
