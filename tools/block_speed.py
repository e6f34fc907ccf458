"""What block-wise training of a large model takes, on random weights of its shape.

    python -m tools.block_speed llama-2-7b --layers 3

runs a few layers and prints a JSON object: the most memory that the GPU held, seconds a layer, and
what the whole model would take. The start is a plain grid; the exporter's fit is not in the time.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from edgedb.measure.shapes import SHAPES
from edgedb.model.config import ModelConfig
from edgedb.model.families import program_of

from .block_run import BlockRun, RunOptions
from .blocks import add_settings, options_of
from .command import Arguments, one_line_errors
from .decoder import load_teacher
from .scratch import scratch_folder
from .student import make_student


class RandomSource:
    """Normal weights of the size that trained ones have; norms are 1."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config

    def tensor(self, name: str) -> NDArray[np.float32]:
        """By edgedb name, the same each time."""
        program = program_of(self.config)
        if name in program.vectors():
            return np.ones(program.vectors()[name], np.float32)
        rows, cols = program.matrices()[name]
        random = np.random.default_rng(list(name.encode()))
        return random.standard_normal((rows, cols), np.float32) * np.float32(cols**-0.5)


def measure(
    config: ModelConfig, n_layers: int, options: RunOptions, shape: tuple[int, int], device: str
) -> dict[str, object]:
    """Run ``n_layers`` of a model on ``shape`` sequences and tokens; figures for all of it."""
    source = RandomSource(replace(config, n_layers=n_layers))
    ids = np.random.default_rng(0).integers(0, config.vocab_size, shape)
    start = make_student(load_teacher(source), "absmax")
    began = time.monotonic()
    with scratch_folder(Path("block-speed")) as folder:
        run = BlockRun(
            source, folder / "student", ids, {}, options, device=torch.device(device), start=start
        )
        run.run()
    seconds = time.monotonic() - began
    layers = [layer["seconds"] for layer in run.record["layers"]]
    last = sorted(layers[1:] or layers)[len(layers[1:]) // 2]
    cuda = device.startswith("cuda")
    return {
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "tokens": ids.size,
        "seconds_in_all": round(seconds, 1),
        "seconds_a_layer": layers,
        "hours_of_all_layers": round(last * config.n_layers / 3600, 2),
        "seconds_of_scales_a_layer": round(run.record["scales"]["seconds"] / n_layers, 2),
        "gpu_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2) if cuda else 0.0,
        "main_memory_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
    }


def build_parser() -> argparse.ArgumentParser:
    """The command line: settings are those of ``tools.blocks``."""
    parser = Arguments(prog="python -m tools.block_speed", description="Measure large shapes.")
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--layers", type=int, default=3)
    add_settings(parser)
    return parser


@one_line_errors
def main() -> None:
    """See the module's docstring."""
    args = build_parser().parse_args()
    torch.set_float32_matmul_precision("high")
    shape = (max(args.tokens // args.length, 1), args.length)
    found = measure(SHAPES[args.shape], args.layers, options_of(args), shape, args.device)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
