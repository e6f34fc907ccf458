"""llama.cpp's own programs: importance matrix, quantizer, and what it measures of its formats."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
from gguf import GGMLQuantizationType as Type

from bench.peers.cases import shared_library
from edgedb.errors import EdgeDBError

from .rows import Row, Rows
from .teachers import WINDOW, WINDOWS, Sources, run

KIND = "llama.cpp"
IMATRIX_WINDOWS = 60  # of 512 tokens

# Formats in blocks of 256 are made of the padded teacher: of rows of 576 they would take others.
PADDED = ("Q4_K_M", "IQ4_XS", "Q3_K_M", "IQ3_S", "IQ3_XXS", "Q2_K", "IQ2_M", "IQ2_XS")
FAIR = (*(("Q4_0", False),), *((name, True) for name in PADDED))
# What a person has who quantizes the real SmolLM2; in Q4_K_M other formats stand for most matrices.
REAL = ("Q8_0", "Q5_0", "Q4_K_M", "Q4_1", "IQ4_NL", "Q3_K_M")

_FIGURE = r"\s*([-+.0-9]+|nan|inf)"
_FIGURES = {
    "kl": r"Mean\s+KLD:",
    "kl_median": r"Median\s+KLD:",
    "kl_99": r"99\.0%\s+KLD:",
    "kl_999": r"99\.9%\s+KLD:",
    "kl_max": r"Maximum KLD:",
    "same_top": r"Same top p:",
    "perplexity": r"Mean PPL\(Q\)\s+:",
    "base_perplexity": r"Mean PPL\(base\)\s+:",
}


@dataclass(frozen=True)
class Format:
    """A format of llama.cpp's quantizer, and which teacher it is made of."""

    name: str
    padded: bool

    @property
    def stem(self) -> str:
        return f"{'padded' if self.padded else 'real'}-{self.name}"


FORMATS = (
    *(Format(name, padded) for name, padded in FAIR),
    *(Format(name, False) for name in REAL),
)


class LlamaCpp:
    """The programs in ``folder``, and the files that they make."""

    def __init__(
        self,
        folder: Path,
        sources: Sources,
        version: str,
        threads: int,
        say: Callable[[str], None],
    ) -> None:
        self.folder, self.sources, self.version, self.say = folder, sources, version, say
        self._threads = ("-t", str(threads), "-tb", str(threads))

    def base(self, teacher: Path) -> Path:
        """What a teacher predicts, for ``--kl-divergence`` and ``edgedb eval kl``."""
        path = self.sources.made / f"{teacher.stem}.kld"
        if not path.exists():
            self.say(f"what {teacher.name} predicts")
            partial = path.with_name(path.name + ".partial")
            self._perplexity(
                teacher, partial, "-f", str(self.sources.text), "--chunks", str(WINDOWS)
            )
            partial.replace(path)
        return path

    def in_float(self, source: Path) -> Path:
        """A GGUF file's weights as float32."""
        path = self.sources.made / f"{source.stem}-f32.gguf"
        return self._quantized(path, ["--allow-requantize"], source, "F32")

    def file(self, format: Format) -> Path:
        """A teacher in a format, made if it is not there."""
        path = self.sources.made / f"{format.stem}.gguf"
        teacher = self.sources.teacher(padded=format.padded)
        return self._quantized(
            path, ["--imatrix", str(self._imatrix(teacher))], teacher, format.name
        )

    def measure(self, format: Format, base: Path, rows: Rows) -> Row:
        """A format against the fair teacher."""
        key = {"kind": KIND, "name": format.name, "padded": format.padded, "version": self.version}
        if found := rows.last(**key):
            return found
        path = self.file(format)
        self.say(f"{path.name} against the teacher")
        return rows.add({**key, **self.divergence(path, base), "layer_bits": layer_bits(path)})

    def divergence(self, model: Path, base: Path) -> dict[str, float]:
        """``figures`` of a GGUF file."""
        return figures(self._perplexity(model, base, "--kl-divergence"))

    def _imatrix(self, teacher: Path) -> Path:
        path = self.sources.made / f"{teacher.stem}.imatrix.gguf"
        if not path.exists():
            self.say(f"importance matrix of {teacher.name}")
            # The program picks its form by the ending.
            partial = path.with_name(f"partial-{path.name}")
            text = str(self.sources.calibration())
            self._run("imatrix", "-m", str(teacher), "-f", text, "-o", str(partial), "-c", "512",
                      "--chunks", str(IMATRIX_WINDOWS))  # fmt: skip
            partial.replace(path)
        return path

    def _quantized(self, path: Path, options: list[str], source: Path, name: str) -> Path:
        if not path.exists():
            self.say(f"making {path.name}")
            partial = path.with_name(path.name + ".partial")
            self._run("quantize", *options, str(source), str(partial), name)
            partial.replace(path)
        return path

    def _perplexity(self, model: Path, base: Path, *more: str) -> str:
        kept = ("-m", str(model), "--kl-divergence-base", str(base), "-c", str(WINDOW))
        return self._run("perplexity", *kept, *more)

    def _run(self, program: str, *arguments: str) -> str:
        path = self.folder / f"llama-{program}"
        if not path.exists():
            raise EdgeDBError(f"{path} is not there; make bench-quality builds it")
        threads = () if program == "quantize" else self._threads
        linger = shared_library(Path(__file__).with_name("linger.c"), self.sources.made)
        preloaded = ["env", f"LD_PRELOAD={linger}"]
        return run([*preloaded, str(path), *arguments, *threads], f"{path.name} failed")


def figures(output: str) -> dict[str, float]:
    """What ``llama-perplexity --kl-divergence`` printed at its end; shares are of 1."""
    found: dict[str, float] = {}
    for name, begin in _FIGURES.items():
        match = re.search(begin + _FIGURE, output)
        if match is None:
            raise EdgeDBError(f"llama-perplexity printed no {name}")
        found[name] = float(match[1])
    found["same_top"] /= 100
    return found


def layer_bits(path: Path) -> float:
    """Bits a weight of the matrices inside the layers."""
    matrices = [t for t in gguf.GGUFReader(path).tensors if t.name.startswith("blk.")]
    matrices = [t for t in matrices if t.tensor_type != Type.F32]
    weights: Any = sum(int(t.n_elements) for t in matrices)
    return float(8 * sum(int(t.n_bytes) for t in matrices) / weights)
