"""Files of what a teacher predicts (``edgedb eval kl``): numbers of a header, ids, and rows."""

from __future__ import annotations

import struct
from pathlib import Path
from random import Random

from edgedb.measure.divergence import divergence, write_base

from .. import mutators
from . import models
from .kind import Files, Kind

_WINDOW, _WINDOWS = 8, 2


class BaseLogitsKind(Kind):
    name = "base logits"
    share = 1

    def prepare(self, folder: Path) -> None:
        self.model_file = folder / "base.dbb"
        models.write(self.model_file, models.specs()[0])
        path = folder / "base"
        text = "Once upon a time there was a little girl named Lily."
        write_base(models.load(self.model_file), text, path, window=_WINDOW, max_windows=_WINDOWS)
        self.raw = path.read_bytes()

    def open(self) -> None:
        self.model = models.load(self.model_file)

    def make(self, rng: Random) -> Files:
        raw = self.raw
        where = rng.randrange(4)
        if where == 0:
            return {"base": mutators.data(rng, raw)}
        if where == 1:  # another number in the header, with as many bytes as before
            at = rng.choice((8, 12, 16))
            number = min(max(int(mutators.number(rng)), 0), 2**32 - 1)
            return {"base": raw[:at] + struct.pack("<I", number) + raw[at + 4 :]}
        text = 20 + 4 * _WINDOW * _WINDOWS
        begin, end = (20, text) if where == 2 else (text, len(raw))
        changed = mutators.data(rng, raw[begin:end])[: end - begin].ljust(end - begin, b"\0")
        return {"base": raw[:begin] + changed + raw[end:]}

    def use(self, files: Files, folder: Path) -> None:
        path = folder / "base"
        path.write_bytes(files["base"])
        divergence(self.model, path)
