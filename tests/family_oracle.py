"""Tiny checkpoints of families, with what transformers makes of them: ``golden/families``.

By hand, where transformers and torch are installed, which no test requires:

    python -P tests/family_oracle.py [NAME...]

(-P, because transformers looks for a package of the name that ``tests/kernels.py`` has.)

Random weights, float16, so small that they can be part of this source tree; what ``ref.npz`` and
``report.json`` hold is what ``../shared/families/README.md`` says of those there.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

GOLDEN = Path(__file__).resolve().parent / "golden" / "families"
TOKENIZER = GOLDEN.parents[3] / "shared" / "families" / "opt"
IDS, GREEDY, MARGIN = 48, 32, 0.03
NOISE = 1e-4

CASES: dict[str, dict[str, Any]] = {
    "falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
               "num_kv_heads": 2, "ffn_hidden_size": 48, "max_position_embeddings": 128,
               "new_decoder_architecture": True},
    "falcon_7b": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
                  "ffn_hidden_size": 48, "max_position_embeddings": 128, "bias": True},
    "falcon_rw": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
                  "ffn_hidden_size": 48, "max_position_embeddings": 128, "alibi": True,
                  "bias": True, "multi_query": False, "parallel_attn": False},
    "gptj": {"n_embd": 32, "n_head": 2, "n_layer": 2, "n_inner": 48, "n_positions": 128,
             "rotary_dim": 8},
    "olmo3": {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2,
              "num_hidden_layers": 4, "intermediate_size": 48, "sliding_window": 9,
              "max_position_embeddings": 128,
              "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 32.0,
                               "beta_slow": 1.0, "original_max_position_embeddings": 16}},
    "opt_350m": {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 3,
                 "ffn_dim": 48, "max_position_embeddings": 128, "word_embed_proj_dim": 20,
                 "do_layer_norm_before": False},
    "starcoder2": {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2,
                   "num_hidden_layers": 2, "intermediate_size": 48, "sliding_window": 11,
                   "max_position_embeddings": 128},
}  # fmt: skip

# What edgedb calls alike (``convert/sources/names.py``).
SYNONYMS = {".ln_attn.": ".input_layernorm.", ".ln_mlp.": ".post_attention_layernorm."}


def model_of(name: str, seed: int) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    more = {"vocab_size": 262, "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": None}
    config = AutoConfig.for_model(re.sub("_(7b|rw|350m)$", "", name), **CASES[name], **more)
    # Falcon's eager attention takes what ALiBi does twice: in its mask and beside it.
    attention = "sdpa" if "alibi" in CASES[name] else "eager"
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).float().eval()
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part, weight in model.named_parameters():
            random = torch.randn(weight.shape, generator=draw)
            if weight.ndim > 1:
                random *= 2 * weight.shape[-1] ** -0.5
            elif part.endswith("weight"):
                random = 1 + random / 3
            weight.copy_(random.half().float())
    return model


def logits_of(model: Any, ids: list[int]) -> np.ndarray:
    import torch

    with torch.no_grad():
        found: np.ndarray = model(torch.tensor([ids]), use_cache=False).logits[0].numpy()
    return found


def reference(model: Any, seed: int) -> dict[str, Any] | None:
    """None where the greedy text is not told by a wide margin, or ends."""
    ids = np.random.default_rng(seed).integers(0, 256, IDS).tolist()
    logits, greedy, margins = logits_of(model, ids), [], []
    for _ in range(GREEDY):
        last = logits_of(model, ids + greedy)[-1]
        best = np.sort(last)[-2:]
        greedy.append(int(last.argmax()))
        margins.append(float(best[1] - best[0]))
    if min(margins) < MARGIN or {256, 257} & {*greedy}:
        return None
    return {"ids": ids, "logits": logits, "greedy": greedy, "margin": min(margins)}


def ignoring(model: Any, ids: list[int], logits: np.ndarray) -> dict[str, float]:
    """The largest change of a logit where a vector of a layer is left out, in the weakest layer."""
    found: dict[str, float] = {}
    for part, weight in model.named_parameters():
        if weight.ndim > 1:
            continue
        kept = weight.data.clone()
        weight.data.fill_(0.0 if part.endswith("bias") else 1.0)
        change = float(np.abs(logits_of(model, ids) - logits).max())
        weight.data.copy_(kept)
        kind = re.sub(r"\.\d+(?=\.)", "", part)
        for theirs, ours in SYNONYMS.items():
            kind = kind.replace(theirs, ours)
        found[kind] = round(min(found.get(kind, change), change), 5)
    # What changes nothing is no zero, but what rounding leaves: a bias of keys.
    return {kind: change if change > NOISE else 0.0 for kind, change in found.items()}


def main() -> None:
    for name in sys.argv[1:] or CASES:
        seed = 0
        while (found := reference(model := model_of(name, seed), seed)) is None:
            seed += 1
        folder = GOLDEN / name
        shutil.rmtree(folder, ignore_errors=True)
        report = {"seed": seed, "ignoring": ignoring(model, found["ids"], found["logits"])}
        model.half().save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(TOKENIZER / file, folder / file)
        np.savez_compressed(folder / "ref.npz", **found)
        (folder / "report.json").write_text(json.dumps(report, indent=1))
        print(name, seed, report)


if __name__ == "__main__":
    main()
