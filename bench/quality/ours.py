"""edgedb's rows: the same teacher and calibration text, ``edgedb convert``, ``edgedb eval kl``."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from edgedb.convert.sources import open_source
from tools.weights import all_weights, layer_weights, open_weights

from .rows import Row, Rows
from .teachers import Sources, run

KIND, MODEL = "edgedb", "edgedb, model"
LAYER_BITS = (2.3, 2.9, 3.4, 4.5)
CALIBRATION_TOKENS = 65536
TABLE_BITS = 8.5  # of the embedding, which is the head as well, in int8


class Ours:
    """Conversions of the fair teacher, at ``commit``."""

    def __init__(
        self, sources: Sources, commit: str, threads: int, say: Callable[[str], None]
    ) -> None:
        self.sources, self.commit, self.threads, self.say = sources, commit, threads, say

    def plan(self, bits: float) -> Path:
        """The planes of each matrix, as ``edgedb convert --plan`` wrote them."""
        return self.sources.made / f"edgedb-{bits:g}.plan"

    def measure(self, bits: float, base: Path, rows: Rows) -> Row:
        """The teacher with ``bits`` bits a weight in its layers."""
        key = {"kind": KIND, "name": f"edgedb {bits:g}", "bits": bits, "commit": self.commit}
        if (found := rows.last(**key)) and self.plan(bits).exists():
            return found
        self._forget(bits)
        path = self.sources.made / f"edgedb-{bits:g}-{self.commit}.dbb"
        command = self.command(bits, path)
        if not path.exists():
            started = time.monotonic()
            run(command, f"cannot convert to {bits:g} bits", progress=self._told(bits))
            self.say(f"edgedb at {bits:g} bits: made in {time.monotonic() - started:.0f} s")
        found, stored = self.divergence(path, base), open_weights(path)
        more = {"layer_bits": stored.layer_bits, "all_bits": stored.all_bits}
        shown = " ".join(["edgedb", *(word.rpartition("/")[2] for word in command[3:])])
        return rows.add({**key, **found, **more, "command": shown})

    def command(self, bits: float, path: Path) -> list[str]:
        """``edgedb convert``, for so many bits in the layers beside an embedding in int8."""
        config = open_source(self.sources.teacher()).config
        inside, whole = layer_weights(config), all_weights(config)
        in_all = (bits * inside + TABLE_BITS * (whole - inside)) / whole
        # Up, not down: one pair everywhere has a few hundredths more than the bits of its planes.
        return [
            *(sys.executable, "-m", "edgedb", "convert", str(self.sources.teacher()), str(path)),
            *("--bits", f"{in_all + 0.005:.2f}", "--embedding", "int8"),
            *("--calibration", str(self.sources.long_calibration())),
            *("--calibration-tokens", str(CALIBRATION_TOKENS)),
            *("--plan", str(self.plan(bits)), "--threads", str(self.threads)),
        ]

    def model(self, name: str, path: Path, base: Path, rows: Rows) -> Row:
        """A finished model against its own teacher."""
        key = {"kind": MODEL, "name": name, "file": path.name, "commit": self.commit}
        if found := rows.last(**key):
            return found
        self.say(f"{path.name} against its teacher")
        bits = open_weights(path)
        more = {"layer_bits": bits.layer_bits, "all_bits": bits.all_bits}
        return rows.add({**key, **self.divergence(path, base), **more})

    def divergence(self, path: Path, base: Path) -> dict[str, float]:
        """What the engine gives, 8-bit activations and all."""
        command = [sys.executable, "-m", "edgedb", "eval", "kl", str(path), str(base)]
        options = ["--json", "--threads", str(self.threads)]
        return dict(json.loads(run([*command, *options], f"cannot measure {path.name}")))

    def _forget(self, bits: float) -> None:
        """Remove what other commits made, unfinished files too: each is as large as a model."""
        for old in self.sources.made.glob(f"edgedb-{bits:g}-*.dbb*"):
            if f"-{self.commit}.dbb" not in old.name and "-768." not in old.name:
                old.unlink()

    def _told(self, bits: float) -> Callable[[str], None]:
        return lambda line: self.say(f"edgedb at {bits:g} bits: {line}")
