"""Where to take a mean away: in the norm, or in the weights that write the residual stream?

``python bench/centered_weights.py CHECKPOINT``. A layer norm is an RMS norm of a stream whose mean
is zero, and the mean of a stream is zero where no column of what writes it has one: embedding,
attention and feed-forward outputs, their biases. That is exact while weights are; the planes of a
fit are not centered. Prints the KL (nats a token, on random ids, layers' matrices fitted without a
calibration) of one, two and three pairs for the norm as an operation, and for centered weights and
an RMS norm; and the mean of the stream behind each layer over its root mean square.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from edgedb.convert import forward
from edgedb.convert.fdb import fit
from edgedb.convert.sources import open_source
from edgedb.model.families import program_of
from edgedb.ops.program import Program

SEQUENCES, TOKENS = 8, 48

Weights = Mapping[str, np.ndarray]


def logits(program: Program, weights: Weights, ids: np.ndarray, means: list[float]) -> np.ndarray:
    """Of ``ids [sequences, tokens]``; appends to ``means`` what each layer leaves."""
    run = forward.Float32Program(program, ids.shape[1])
    x = weights["embedding"][ids]
    for prefix, block in list(program.blocks())[:-1]:
        own = {n: weights[prefix + n] for n in (*block.matrices, *block.vectors)}
        x = run.values(block, x, own, own)[block.output]
        if prefix:
            means.append(float(np.sqrt(np.square(x.mean(-1)).mean() / np.square(x).mean())))
    own = {n: weights[n] for n in (*program.head.matrices, *program.head.vectors)}
    return run.values(program.head, x, own, own)[program.head.output]


def centered(weights: Weights) -> Weights:
    """The same, where nothing that is written to the stream has a mean."""
    found = dict(weights)
    for name, weight in weights.items():
        if name == "embedding":
            found[name] = weight - weight.mean(1, keepdims=True)
        elif name.removesuffix(".bias").endswith(("attn_out", "mlp_down")):
            found[name] = weight - weight.mean(0)
    return found


def kl(expected: np.ndarray, got: np.ndarray) -> float:
    p, q = (x.astype(np.float64) - x.max(-1, keepdims=True) for x in (expected, got))
    p, q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (p, q))
    return float((np.exp(p) * (p - q)).sum(-1).mean())


def main() -> None:
    warnings.simplefilter("ignore")
    source = open_source(Path(sys.argv[1]))
    program = program_of(source.config)
    if source.config.tie_word_embeddings or program.positions():
        sys.exit("the head takes the embedding with its mean: not exact here")
    plain = {n: source.tensor(n) for n in (*program.matrices(), *program.vectors())}
    ids = np.random.default_rng(0).integers(0, source.config.vocab_size, (SEQUENCES, TOKENS))
    exact, layer_norm = logits(program, plain, ids, []), forward.layer_norm
    for pairs in (1, 2, 3):
        for what, weights in (("norm", plain), ("weights", centered(plain))):
            inside = [n for n in program.matrices() if n.startswith("layers.")]
            fitted = {**weights, **{n: fit(weights[n], 2 * pairs).quantized for n in inside}}
            if what == "weights":
                forward.layer_norm = lambda x, w, b, eps: forward.rms_norm(x, w, eps) + b
            means: list[float] = []
            found = kl(exact, logits(program, fitted, ids, means))
            forward.layer_norm = layer_norm
            shown = " ".join(f"{mean:.3f}" for mean in means)
            print(f"{pairs} pairs, mean taken away in the {what:7}: KL {found:.4f}; means {shown}")


if __name__ == "__main__":
    main()
