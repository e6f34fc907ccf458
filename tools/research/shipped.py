"""Question 5 on models that ship, beside the full-precision model that taught them."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edgedb.convert.sources import Source, open_source
from edgedb.errors import EdgeDBError

from ..command import say
from ..decoder import load_teacher
from ..text import read_stream
from ..weights import open_weights
from .corpus import windows
from .entropy import Measured
from .results import Results


def named(pairs: list[str]) -> dict[str, Path]:
    """``NAME=FILE``. Raises ``EdgeDBError`` for anything else."""
    found = {}
    for pair in pairs:
        name, _, file = pair.partition("=")
        if not (name and file):
            raise EdgeDBError(f"{pair}: expected NAME=FILE")
        found[name] = Path(file)
    return found


def texts_of(source: Source, files: dict[str, Path], length: int, count: int) -> dict[str, Tensor]:
    """Windows ``[n, length]`` of each text, spread over it."""
    spec, vocab = source.tokenizer_spec, source.config.vocab_size
    streams = {name: read_stream([file], spec, vocab) for name, file in files.items()}
    return {name: torch.from_numpy(windows(ids, length, count)) for name, ids in streams.items()}


def run(args: argparse.Namespace, results: Results) -> None:
    """Measure the models that ``results`` lacks."""
    models, files = named(args.models), named(args.text)
    keys = {
        name: f"entropy/{name}/{'+'.join(files)}/{args.windows}x{args.length}" for name in models
    }
    missing = [name for name, key in keys.items() if key not in results]
    if not missing:
        return
    source = open_source(args.teacher)
    vocab = source.config.vocab_size
    texts = texts_of(source, files, args.length, args.windows)
    counted = read_stream([args.frequency], source.tokenizer_spec, vocab)
    counts = np.bincount(counted, minlength=vocab).astype(np.float64)
    measured = Measured(load_teacher(source, args.device), texts, counts)
    for name in missing:
        student = load_teacher(open_weights(models[name]), args.device)
        found = measured.of(student, entropies=True)
        facts = {"kind": "entropy", "model": name, "frequency": args.frequency.name}
        results.add({"key": keys[name], **facts, "quality": found})
        for text, of in found.items():
            say(f"{name} on {text}: KL {of['kl']:.4f}")
