"""What every checkpoint offers: hyper-parameters, a tokenizer, and weights under edgedb's names."""

from __future__ import annotations

import abc
import dataclasses
import hashlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ...display import quoted
from ...errors import CheckpointWarning, FormatError, UnsupportedModelError
from ...model.checkpoint_config import read_config
from ...model.config import ModelConfig
from ...model.families import program_of
from ...text.spec import TokenizerSpec
from .layouts import Layout, Layouts
from .names import PRODUCTS, Names, split_layer, stored_names
from .tokenizer_spec import runnable

Float32 = NDArray[np.float32]

# Files up to this size are hashed whole; of larger ones (a 7B checkpoint would take a minute) the
# first such stretch, which holds the header with every tensor's name and shape, and the size.
_HASH_WHOLE_BYTES = 1 << 28

# Rows of two tables that are compared at a time: 128 MB of float32 at a width of 4,096.
_COMPARED_ROWS = 4096

_NAMED = 10  # keys that a warning names, of any number


@dataclasses.dataclass(frozen=True)
class _Product:
    """Names of a table ``[rows, width]`` and of what each of its rows is multiplied with: a matrix
    ``[width, cols]``, or where it ``is_turned`` ``[cols, width]``."""

    table: str
    factor: str
    is_turned: bool

    def read(self, source: Source) -> Float32:
        """The factor, ``[width, cols]``."""
        found = source.read_stored(self.factor, 0, source.stored_shapes()[self.factor][0])
        return found.T if self.is_turned else found

    def shapes(self, rows: int, cols: int, found: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """Of both, for a product ``[rows, cols]``, the factor being as wide as it is ``found``."""
        width = found[-1 if self.is_turned else 0] if found else 0
        own = (cols, width) if self.is_turned else (width, cols)
        return {self.table: (rows, width), self.factor: own}


class Source(abc.ABC):
    """A checkpoint on disk. Tensors are read one at a time, as float32.

    ``config_dict`` has the keys of a Hugging Face ``config.json``; ``config`` is what edgedb made
    of it. Subclasses have the names of every family in ``all_names``.
    """

    path: Path
    name: str | None = None  # for the provenance, where it is not that of ``path``
    config_dict: dict[str, Any]
    config: ModelConfig
    tokenizer_spec: TokenizerSpec
    all_names: ClassVar[Mapping[str, Names]]  # model_type -> names; see ``names``
    all_layouts: ClassVar[Mapping[str, Layouts]]  # likewise; see ``layouts``

    @abc.abstractmethod
    def stored_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Checkpoint name -> shape, of every tensor in the checkpoint."""

    @abc.abstractmethod
    def read_stored(self, stored: str, start: int, stop: int) -> Float32:
        """Rows ``start`` to ``stop`` of one stored tensor, float32, in edgedb's row order."""

    @abc.abstractmethod
    def unreadable(self, stored: str) -> str | None:
        """Why ``read_stored`` cannot give this tensor as floats, or None."""

    @abc.abstractmethod
    def files(self) -> list[Path]:
        """The files that hold the weights."""

    def stored_names(self, name: str) -> list[str]:
        """Checkpoint names of the parts of edgedb's tensor ``name``, in row order."""
        return stored_names(self.all_names[self._model_type], name)

    def tensor(self, name: str, rows: slice | None = None) -> Float32:
        """A weight matrix ``[rows, cols]`` or a norm ``[n]`` by its edgedb name, float32; of a
        stack all experts' ``[experts, rows, cols]``, of which ``expert`` reads one.

        ``rows`` limits what is read (embedding and head of a large vocabulary do not fit in
        memory at once); it works for tensors that the checkpoint stores in one piece.
        """
        shapes = self.stored_shapes()
        if (product := self._product(name)) is not None:
            start, stop, _ = (rows or slice(None)).indices(shapes[product.table][0])
            return self.read_stored(product.table, start, stop) @ product.read(self)
        parts = self.stored_names(name)
        stack = self._stack_of(name)
        layout = self._layout(name)
        if stack and rows is None:
            experts = [self.expert(name, i) for i in range(stack)]
            return np.concatenate(experts) if name.endswith(".bias") else np.stack(experts)
        if layout is not None:
            whole = [self.read_stored(part, 0, shapes[part][0]) for part in parts]
            found = layout.read(np.concatenate(whole), self.config)[rows or slice(None)]
        elif rows is None:
            read = [self.read_stored(part, 0, shapes[part][0]) for part in parts]
            found = read[0] if len(read) == 1 else np.concatenate(read)
        else:
            if len(parts) != 1 or stack:
                raise ValueError(f"{name}: rows of a fused tensor cannot be read on their own")
            start, stop, _ = rows.indices(shapes[parts[0]][0])
            found = self.read_stored(parts[0], start, stop)
        return self._folded(name, found)

    def expert(self, name: str, expert: int) -> Float32:
        """One expert's matrix ``[rows, cols]`` of a stack, or its ``[rows]`` of the stack's biases,
        float32."""
        parts = [self._of_expert(part, expert) for part in self.stored_names(name)]
        found = parts[0] if len(parts) == 1 else np.concatenate(parts)
        layout = self._layout(name)
        return self._folded(name, found if layout is None else layout.read(found, self.config))

    def _of_expert(self, part: str, expert: int) -> Float32:
        stored = part.format(e=expert)
        if stored != part:
            return self.read_stored(stored, 0, self.stored_shapes()[stored][0])
        return self.read_stored(stored, expert, expert + 1)[0]

    def _stack_of(self, name: str) -> int:
        """How many experts a tensor is of, or 0."""
        return program_of(self.config).stacks().get(name.removesuffix(".bias"), 0)

    def _folded(self, name: str, found: Float32) -> Float32:
        kind = split_layer(name)[1].removesuffix(".bias")
        if kind in self._fold.orders:
            found = found[self._fold.orders[kind]]
        factor = self._fold.factors.get(kind)
        if factor is None:
            return found
        by_row = np.asarray(factor, np.float64).reshape(-1, *[1] * (found.ndim - 1))
        return (found * by_row).astype(np.float32)

    def _layout(self, name: str) -> Layout | None:
        kind = split_layer(name)[1].removesuffix(".bias")
        return self.all_layouts.get(self._model_type, {}).get(kind)

    def fingerprint(self) -> dict[str, Any]:
        """Name, size and SHA-256 of the checkpoint, for the provenance of what is made from it."""
        digest = hashlib.sha256()
        size = 0
        for file in self.files():
            length = file.stat().st_size
            size += length
            with file.open("rb") as stream:
                left = _HASH_WHOLE_BYTES
                while left and (piece := stream.read(min(left, 1 << 22))):
                    digest.update(piece)
                    left -= len(piece)
        whole = all(file.stat().st_size <= _HASH_WHOLE_BYTES for file in self.files())
        return {
            "name": self.name or self.path.resolve().name,
            "size_bytes": size,
            "sha256": digest.hexdigest(),
            "hashed": "whole" if whole else "first 256 MiB of each file",
        }

    def read_config(self, file: str, settings: dict[str, Any], unknown: list[str]) -> None:
        """Set ``config_dict`` and ``config`` from ``settings`` in the names of config.json.

        ``unknown``: names in ``file`` that are on no list already; a warning says them all.
        """
        self.config_dict = settings
        self._model_type = str(settings.get("model_type"))
        self._fold, more = read_config(settings, self._has)
        self.config = self._fold.config
        listed = [quoted(name) for name in unknown + more]
        if listed:
            rest = f" and {len(listed) - _NAMED} more" if len(listed) > _NAMED else ""
            warnings.warn(
                f"{file}: ignored, because it is not known whether they change the forward pass: "
                f"{', '.join(listed[:_NAMED])}{rest}",
                CheckpointWarning,
                stacklevel=2,
            )

    def check(self) -> None:
        """Compare the checkpoint's tensors with what ``config`` asks for.

        Raises ``FormatError`` for a missing tensor or a wrong shape, ``UnsupportedModelError`` for
        one that cannot be read as floats, or that the family's pass would not use (a bias, a norm
        of q and k, an adapter).
        """
        shapes = self.stored_shapes()
        wanted: dict[str, tuple[int, ...]] = {}
        program = program_of(self.config)
        stacks = program.stacks()
        for name, matrix in program.matrices().items():
            product = self._product(name)
            if product is None:
                wanted |= self._wanted(name, stacks.get(name, 0), *matrix)
            else:
                wanted |= product.shapes(*matrix, shapes[product.factor])
        for name, length in program.vectors().items():
            count = stacks.get(name.removesuffix(".bias"), 0)
            wanted |= self._wanted(name, count, length // (count or 1))
        (embedding,), (head,) = self.stored_names("embedding"), self.stored_names("head")
        if head in shapes:
            wanted[head] = wanted[embedding]
        for part, shape in wanted.items():
            if part not in shapes:
                raise FormatError(f"{self.path.name}: tensor {part} is missing")
            if tuple(shapes[part]) != shape:
                raise FormatError(
                    f"{self.path.name}: tensor {part} has shape {list(shapes[part])}, "
                    f"the configuration asks for {list(shape)}"
                )
            if reason := self.unreadable(part):
                raise UnsupportedModelError(f"{self.path.name}: tensor {part} {reason}")
        for part in shapes:
            if part not in wanted and not self.ignorable(part):
                raise UnsupportedModelError(
                    f"{self.path.name}: tensor {part} has no place in the pass of "
                    f"{self.config.model_type}"
                )
        if self.config.tie_word_embeddings and head in shapes and not self._equal(embedding, head):
            # As in transformers: what the file holds counts, not what config.json says of it.
            self.config = dataclasses.replace(self.config, tie_word_embeddings=False)
            self.config_dict = {**self.config_dict, "tie_word_embeddings": False}

    def _product(self, name: str) -> _Product | None:
        """Of which two matrices this one is the product, if it is one."""
        factor, is_turned = PRODUCTS.get(self._model_type, {}).get(name, ("", False))
        if factor not in self.stored_shapes():
            return None
        (table,), (embedding,) = self.stored_names(name), self.stored_names("embedding")
        table = table if table in self.stored_shapes() else embedding
        return _Product(table, factor, is_turned)

    def _wanted(self, name: str, experts: int, rows: int, *cols: int) -> dict[str, tuple[int, ...]]:
        """Checkpoint names and shapes of the parts of a tensor, or of so many ``experts``'."""
        wanted: dict[str, tuple[int, ...]] = {}
        parts, layout = self.stored_names(name), self._layout(name)
        for part, n_rows in zip(parts, self._part_rows(name, rows, len(parts)), strict=True):
            own = (n_rows, *cols)
            if layout is not None:
                own = layout.stored(own)
            if "{e}" in part:
                wanted |= {part.format(e=i): own for i in range(experts)}
            else:
                wanted[part] = (experts, *own) if experts else own
        return wanted

    def take_tokenizer(self, found: TokenizerSpec) -> None:
        """Make ``tokenizer_spec`` of what the checkpoint says about its tokenizer."""
        self.tokenizer_spec = runnable(found, self.config.vocab_size, self.path.name)

    def ignorable(self, stored: str) -> bool:
        """Whether a tensor that the forward pass does not read may be left out without harm."""
        return False

    def _equal(self, stored: str, other: str) -> bool:
        n_rows = self.stored_shapes()[stored][0]
        return all(
            np.array_equal(
                self.read_stored(stored, start, min(start + _COMPARED_ROWS, n_rows)),
                self.read_stored(other, start, min(start + _COMPARED_ROWS, n_rows)),
            )
            for start in range(0, n_rows, _COMPARED_ROWS)
        )

    def _has(self, name: str) -> bool:
        return self.stored_names(name)[0].format(e=0) in self.stored_shapes()

    def _part_rows(self, name: str, rows: int, parts: int) -> tuple[int, ...]:
        """How the ``rows`` of a tensor are shared between its parts."""
        kind = split_layer(name)[1].removesuffix(".bias")
        if len(self.stored_names(name)) == 1:
            return (rows,)
        if kind == "attn_qkv":
            return (self.config.q_size, self.config.kv_size, self.config.kv_size)
        return (rows // parts,) * parts  # one, or gate and up
