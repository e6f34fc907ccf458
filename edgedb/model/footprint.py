"""What a model takes of disk, memory and memory's speed: told by its configuration and by how its
matrices are stored, before there is a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..format.tensors import Kind, linear_parts
from ..ops.pages import PAGE, PageLayout
from .config import DEFAULT_CONTEXT, ModelConfig
from .families import program_of

# Beside the arrays, about: a tokenizer's bytes for each entry of the vocabulary (SmolLM2's has
# 31.8), and a header.
_TOKENIZER_BYTES = 32
_HEADER_BYTES = 1 << 17
# What Python, numpy and the tokenizer take of memory, about: 93 MB with SmolLM2's.
_PROCESS_BYTES = 100 << 20


def matrix_sizes(config: ModelConfig, kinds: Mapping[str, Kind]) -> dict[str, int]:
    """Bytes of each matrix in a file."""
    shapes, stacks = program_of(config).matrices(), program_of(config).stacks()
    return {n: matrix_bytes(n, *shapes[n], kind, stacks.get(n, 0)) for n, kind in kinds.items()}


def matrix_bytes(name: str, rows: int, cols: int, kind: Kind, experts: int) -> int:
    """Bytes of one matrix, or of a stack of ``experts``."""
    return sum(part.nbytes for part in linear_parts(name, rows, cols, kind, experts))


@dataclass(frozen=True)
class Footprint:
    """A model whose matrices take ``sizes`` bytes by name."""

    config: ModelConfig
    sizes: Mapping[str, int]

    @classmethod
    def of(cls, config: ModelConfig, kinds: Mapping[str, Kind]) -> Footprint:
        """Of matrices that are stored as ``kinds`` say."""
        return cls(config, matrix_sizes(config, kinds))

    @classmethod
    def at(cls, config: ModelConfig, bits: float) -> Footprint:
        """Of ``bits`` a weight in every matrix: about what a budget gives."""
        sizes = program_of(config).sizes().items()
        return cls(config, {name: int(bits * n / 8) for name, n in sizes})

    @property
    def n_weights(self) -> int:
        """Weights of all matrices."""
        return sum(program_of(self.config).sizes().values())

    @property
    def layer_bits(self) -> float:
        """Bits a weight, scales included, of the matrices inside the layers."""
        counts = program_of(self.config).sizes()
        inside = [name for name in counts if name.startswith("layers.")]
        return 8 * sum(self.sizes[n] for n in inside) / sum(counts[n] for n in inside)

    @property
    def file_bytes(self) -> int:
        """About what the file takes."""
        vectors = 4 * sum(program_of(self.config).vectors().values())
        tokenizer = _TOKENIZER_BYTES * self.config.vocab_size
        return sum(self.sizes.values()) + vectors + tokenizer + _HEADER_BYTES

    @property
    def token_bytes(self) -> int:
        """Bytes of weights that decoding one token reads: all but the other rows of the embedding,
        and of experts those of the chosen."""
        program, config = program_of(self.config), self.config
        stacks = program.stacks()
        layers = sum(
            size * config.experts_per_token // stacks[name] if name in stacks else size
            for name, size in self.sizes.items()
            if name.startswith("layers.")
        )
        return layers + sum(self.sizes[name] for name in program.head.matrices)

    def context(self, wanted: int | None = None) -> int:
        """Positions of a session: ``wanted``, or as many as one has by default, at most what the
        model can read."""
        longest = program_of(self.config).positions() or self.config.max_position_embeddings
        return min(wanted or DEFAULT_CONTEXT, longest, self.config.max_position_embeddings)

    def memory_bytes(self, context: int, kv_dtype: str = "float16") -> int:
        """About what a process with one session takes once its context is full: the file, keys and
        values, what a pass works in, and the interpreter."""
        program = program_of(self.config)
        layers = [(value["n_kv_heads"], value["head_dim"]) for value in program.attentions()]
        cache = PageLayout(layers, kv_dtype).page_bytes * context // PAGE
        return self.file_bytes + cache + program.session_bytes(0) + _PROCESS_BYTES
