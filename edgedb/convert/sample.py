"""Text sampled from the teacher itself, for a calibration that needs no data.

Runs on the runtime's kernels with 8-bit weights, many texts side by side: close enough to the
teacher for text, and on two cores many times faster than float32.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .. import ops
from ..errors import FormatError, TemplateError
from ..format.packing import pack_int8, quantize_int8
from ..format.tensors import DenseTensor, Experts, Weight
from ..model.config import ModelConfig
from ..model.families import program_of
from ..model.network import Network
from ..ops.sequences import MAX_ROWS
from ..text.spec import TokenizerSpec
from ..text.template import render
from ..text.tokenizer import load_tokenizer
from .forward import softmax
from .plan import is_router
from .sources import Source

Float32 = NDArray[np.float32]
Ids = NDArray[np.int32]

# The 8-bit copy of the model is held in memory while it writes.
MAX_SAMPLED_WEIGHTS = 1 << 30

_EMPTY_TURN = "\x00"


def can_sample(config: ModelConfig) -> bool:
    """Whether the model is small enough for ``from_teacher``."""
    return sum(program_of(config).sizes().values()) <= MAX_SAMPLED_WEIGHTS


def from_teacher(
    source: Source,
    sequences: int,
    length: int,
    seed: int,
    progress: Callable[[int], None] = lambda done: None,
) -> Ids:
    """``ids [sequences, length]``: texts sampled together at temperature 1.

    The first half follows the chat template's start of a user turn (the model asks and answers
    itself), the second half starts as documents do: with BOS where there is one, and any token.
    ``progress`` is told the tokens of each text so far.
    """
    config, spec = source.config, source.tokenizer_spec
    random = np.random.default_rng(seed)
    ids = np.zeros((sequences, length), np.int32)
    given = np.ones(sequences, int)
    ids[:, 0] = random.integers(0, config.vocab_size, sequences)
    if spec.add_bos and spec.bos_id is not None:
        ids[:, 1], ids[:, 0] = ids[:, 0], spec.bos_id
        given += 1
    if lead := _lead_tokens(spec)[: length - 1]:
        ids[: sequences // 2, : len(lead)] = lead
        given[: sequences // 2] = len(lead)
    writer = _Writer(source, sequences, length)
    for position in range(length - 1):
        logits = writer.step(ids[:, position])
        chosen = _draw(softmax(logits), random.random(sequences))
        sampled = position + 1 >= given
        ids[sampled, position + 1] = chosen[sampled]
        progress(position + 2)
    return ids


def _draw(probabilities: Float32, uniform: NDArray[np.float64]) -> NDArray[np.int64]:
    """One index for each row of ``probabilities [n, vocab]``, by inverting its running sum."""
    running = np.cumsum(probabilities, axis=1, dtype=np.float64)
    chosen = [
        np.searchsorted(row, u * row[-1], side="right")
        for row, u in zip(running, uniform, strict=True)
    ]
    return np.minimum(chosen, probabilities.shape[1] - 1)


def _lead_tokens(spec: TokenizerSpec) -> list[int]:
    """The chat template up to where the user's first words would stand; [] without a template."""
    if not spec.chat_template:
        return []
    messages = [{"role": "user", "content": _EMPTY_TURN}]
    try:
        text = render(spec, messages, add_generation_prompt=False).partition(_EMPTY_TURN)[0]
    except TemplateError:
        return []
    return load_tokenizer(spec).encode(text, add_bos=False, special=True)


class _Writer:
    """Reads a token of each text at a time, ``MAX_ROWS`` texts in one pass."""

    def __init__(self, source: Source, n: int, length: int) -> None:
        program = program_of(source.config)
        linears = {name: _in_8_bits(source, name) for name in program.matrices()}
        vectors = {name: source.tensor(name) for name in program.vectors()}
        self.network = Network(source.config, linears, vectors, ops.create(), length)
        self.caches = [self.network.cache(length) for _ in range(n)]
        self.state = self.network.state()

    def step(self, ids: Ids) -> Float32:
        """Logits ``[n, vocab]`` after one more token ``ids [n]`` of every text."""
        parts = [slice(at, at + MAX_ROWS) for at in range(0, len(ids), MAX_ROWS)]
        return np.concatenate(
            [self.network.step(ids[part].tolist(), self.caches[part], self.state) for part in parts]
        )


def _in_8_bits(source: Source, name: str) -> Weight:
    """A matrix or a stack; a router as it is, so that tokens go where they would."""
    if is_router(name):
        return DenseTensor(source.tensor(name))
    count = program_of(source.config).stacks().get(name)
    try:
        if count is None:
            return pack_int8(*quantize_int8(source.tensor(name)))
        found = [pack_int8(*quantize_int8(source.expert(name, i))) for i in range(count)]
    except ValueError as error:
        raise FormatError(f"{name}: {error}") from None
    arrays = (np.stack([one.codes for one in found]), np.stack([one.scales for one in found]))
    return Experts(arrays, found[0].rows, found[0].cols, "int8")
