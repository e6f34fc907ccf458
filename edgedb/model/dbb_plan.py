"""What stands in a ``.dbb``, and in which order, before anything is written."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from ..format.container import VERSIONS, lay_out
from ..format.tensors import HALF_PART, TOKENIZER, Kind, Part, linear_parts, type_of
from ..text.spec import TokenizerSpec
from .config import ModelConfig
from .families import program_of

TOKENIZER_NAME = "tokenizer"
# Room in the header for the quantization record before the data has to move.
RECORD_BYTES = 4096
RECORD_BYTES_PER_LINEAR = 256


def file_bytes(config: ModelConfig, tokenizer: TokenizerSpec, kinds: Mapping[str, Kind]) -> int:
    """About what a file with matrices of these kinds takes, but for the record of its making that
    ``DbbWriter.finish`` is given."""
    parts = [part for found in planned(config, tokenizer, kinds).values() for part in found]
    entries = lay_out(parts)
    texts = json.dumps([config.to_dict(), json.dumps(tokenizer.to_metadata())])
    header = 2 * RECORD_BYTES_PER_LINEAR * len(entries) + len(texts) + RECORD_BYTES
    return max(entry.end for entry in entries.values()) + header


def version_of(config: ModelConfig, parts: Iterable[Part]) -> str:
    """The oldest whose readers know what is in the file."""
    if program_of(config).stacks():
        return VERSIONS[2]
    return VERSIONS[any(part.name.endswith(HALF_PART) for part in parts)]


def planned(
    config: ModelConfig, tokenizer: TokenizerSpec, kinds: Mapping[str, Kind]
) -> dict[str, list[Part]]:
    """The arrays of every tensor, in the order of the file: that of a forward pass."""
    shapes = program_of(config).matrices()
    if set(kinds) != set(shapes):
        wrong = sorted(set(kinds) ^ set(shapes))[0]
        raise ValueError(f"{wrong}: kinds must name exactly the matrices of the model")
    stacks = program_of(config).stacks()
    plan = {
        name: linear_parts(name, rows, cols, kinds[name], stacks.get(name, 0))
        for name, (rows, cols) in shapes.items()
    }
    plan |= {name: [Part(name, "F32", (n,))] for name, n in program_of(config).vectors().items()}
    plan[TOKENIZER_NAME] = [
        Part(TOKENIZER + name, type_of(array), array.shape)
        for name, array in tokenizer.arrays().items()
    ]
    return plan
