"""Saved sessions, for one model."""

from __future__ import annotations

from pathlib import Path
from random import Random

from . import models
from .container import Container, damaged
from .kind import Files, Kind

_NESTED = ("checksums", "extra")


class SessionKind(Kind):
    name = "session"
    share = 4

    def prepare(self, folder: Path) -> None:
        self.model_file = folder / "session.dbb"
        models.write(self.model_file, models.specs()[0])
        saved = folder / "session.kv"
        session = models.load(self.model_file).session()
        session.extra = {"messages": [{"role": "user", "content": "Hello"}], "seed": 3}
        session.generate("Once upon a time", max_tokens=5, temperature=0)
        session.save(saved)
        self.raw = saved.read_bytes()

    def open(self) -> None:
        self.model = models.load(self.model_file)

    def make(self, rng: Random) -> Files:
        if rng.random() < 0.15:
            return {"session": damaged(rng, self.raw)}
        container = Container(self.raw, _NESTED)
        if rng.random() < 0.6:
            container.change_header(rng)
        else:
            container.change_data(rng)
        return {"session": container.sealed(rng)}

    def use(self, files: Files, folder: Path) -> None:
        path = folder / "session"
        path.write_bytes(files["session"])
        session = self.model.load_session(path)
        session.generate("and", max_tokens=2, temperature=0)
        session.save(folder / "again")
        self.model.load_session(folder / "again")
