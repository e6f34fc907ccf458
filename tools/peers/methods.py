"""HQQ, GPTQ and AutoRound at two bits, groups of 64, through their own packages.

Each function takes a float32 Hugging Face model (in a folder, or loaded) and calibration ids and
returns a model of the same class whose layer matrices are the dequantized two-bit weights. The
embedding, the head and the norms stay as they are.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgedb.convert.sources.source import Float32
from edgedb.errors import EdgeDBError

BITS, GROUP = 2, 64

# Distribution on PyPI and the module it installs.
PACKAGES = {
    "hqq": ("hqq", "hqq"),
    "gptq": ("gptqmodel", "gptqmodel"),
    "auto-round": ("auto-round", "auto_round"),
}


def load(folder: Path, device: str, dtype: torch.dtype = torch.float32) -> Any:
    """The model of ``folder`` by Hugging Face's transformers."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device).eval()


def layer_matrices(model: Any) -> Iterator[tuple[str, nn.Linear]]:
    """Name and module of every matrix inside the layers; the head is none of them."""
    for name, module in model.model.layers.named_modules(prefix="model.layers"):
        if isinstance(module, nn.Linear):
            yield name, module


def hqq(folder: Path, ids: Tensor, *, device: str, axis: int = 1) -> tuple[Any, dict[str, Any]]:
    """Half-quadratic quantization (Badri and Shaji): no calibration, ``ids`` is not used.

    axis 1 groups 64 columns of a row; 0, which the authors recommend for quality, groups 64
    weights that lie far apart.
    """
    from hqq.core.quantize import Quantizer

    model = load(folder, device)
    with torch.no_grad():
        for _, module in layer_matrices(model):
            codes, meta = Quantizer.quantize(
                module.weight.data,
                nbits=BITS,
                group_size=GROUP,
                axis=axis,
                round_zero=False,
                compute_dtype=torch.float32,
                device=device,
            )
            meta["compute_dtype"] = torch.float32
            # Scale and zero point are stored as float16.
            for key in ("scale", "zero"):
                meta[key] = meta[key].half().float()
            module.weight.copy_(Quantizer.dequantize(codes, meta))
    return model, {"axis": axis, "bits_per_weight": BITS + 32 / GROUP}


def gptq(
    folder: Path, ids: Tensor, *, device: str, act_order: bool = False, batch: int = 4
) -> tuple[Any, dict[str, Any]]:
    """GPTQ (Frantar et al.) by gptqmodel, with zero points.

    act_order: columns by falling energy across groups, so that a group's columns lie apart; the
    package's default orders them in a way that keeps groups together.
    """
    # The package's own default for two cores is one worker, and it then refuses to start.
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
    from gptqmodel import GPTQModel, QuantizeConfig

    config = QuantizeConfig(
        bits=BITS,
        group_size=GROUP,
        desc_act=act_order,
        act_group_aware=not act_order,
        offload_to_disk=False,
        # The first format stores zero points less one, and 0 - 1 does not fit into two bits.
        format="gptq_v2",
        sym=False,
        device=device,
    )
    wrapped = GPTQModel.load(str(folder), config)
    rows = [row[None] for row in ids]
    wrapped.quantize(
        [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in rows],
        batch_size=batch,
    )
    quantized = {
        name: module.dequantize_weight()
        for name, module in wrapped.model.named_modules()
        if hasattr(module, "dequantize_weight")
    }
    model = load(folder, "cpu")
    with torch.no_grad():
        for name, module in layer_matrices(model):
            # gptqmodel keeps [columns, rows].
            module.weight.copy_(quantized[name].t())
    return model, {"act_order": act_order, "bits_per_weight": BITS + (16 + BITS) / GROUP}


def auto_round(
    folder: Path,
    ids: Tensor,
    *,
    device: str,
    iterations: int = 200,
    batch: int = 8,
    extension: bool = False,
) -> tuple[Any, dict[str, Any]]:
    """AutoRound (Cheng et al.): rounding and ranges tuned by signed gradients, block by block.

    extension: the package's improved recipe for two bits (``enable_alg_ext``).
    """
    from auto_round import AutoRound
    from transformers import AutoTokenizer

    before = load(folder, "cpu")
    rounding = AutoRound(
        load(folder, "cpu"),
        AutoTokenizer.from_pretrained(folder),
        scheme="W2A16",
        group_size=GROUP,
        sym=False,
        iters=iterations,
        dataset=[row[None] for row in ids],
        nsamples=len(ids),
        seqlen=ids.shape[1],
        batch_size=batch,
        device_map=device,
        enable_alg_ext=extension,
    )
    model, _ = rounding.quantize()
    model = model.to("cpu").float()
    changed = {name: module.weight for name, module in layer_matrices(model)}
    for name, module in layer_matrices(before):
        if torch.equal(changed[name].data, module.weight.data):
            raise EdgeDBError(f"auto-round left {name} as it was")
    settings = {"iterations": iterations, "batch": batch, "extension": extension}
    return model, {**settings, "bits_per_weight": BITS + (16 + BITS) / GROUP}


def most_levels(model: Any) -> int:
    """The most distinct values that any 64 consecutive weights of a row have.

    Four at most where a method's groups are such: the check that weights really are two-bit.
    """
    most = 0
    for _, module in layer_matrices(model):
        ordered = module.weight.detach().float().reshape(-1, GROUP).sort(dim=1).values
        # Dequantizing in float32 may split a level in the last bit.
        gap = 1e-5 * ordered.abs().amax(dim=1, keepdim=True)
        most = max(most, 1 + int((ordered.diff(dim=1) > gap).sum(dim=1).max()))
    return most


def weight_error(model: Any, original: Mapping[str, Float32]) -> float:
    """Relative squared error of the layers' matrices, ``|W - Q|^2 / |W|^2``.

    Raises ``EdgeDBError`` above 1: zero would be nearer, so weights were not read back as the
    package means them (a zero point that is off by one, say).
    """
    lost = total = 0.0
    for name, module in layer_matrices(model):
        weight = original[f"{name}.weight"]
        lost += float(np.square(module.weight.detach().float().cpu().numpy() - weight).sum())
        total += float(np.square(weight).sum())
    if not lost <= total:
        raise EdgeDBError(f"relative squared error {lost / total:.3g}: these are not the weights")
    return lost / total


METHODS: dict[str, Callable[..., tuple[Any, dict[str, Any]]]] = {
    "hqq": hqq,
    "gptq": gptq,
    "auto-round": auto_round,
}


def version(method: str) -> str:
    """Version of the package behind ``method``. Raises ``EdgeDBError`` if it is not installed."""
    distribution, _ = PACKAGES[method]
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        raise EdgeDBError(f"{method} needs its package: pip install {distribution}") from None
