"""Saved sessions of one model, with each type of cache."""

from __future__ import annotations

from pathlib import Path
from random import Random

from edgedb.model.kvcache import KV_DTYPES

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
        self.raw = {}
        for dtype in KV_DTYPES:
            session = models.load(self.model_file, dtype).session()
            session.extra = {"messages": [{"role": "user", "content": "Hello"}], "seed": 3}
            session.generate("Once upon a time", max_tokens=5, temperature=0)
            session.save(folder / dtype)
            self.raw[dtype] = (folder / dtype).read_bytes()

    def open(self) -> None:
        self.models = {dtype: models.load(self.model_file, dtype) for dtype in KV_DTYPES}

    def make(self, rng: Random) -> Files:
        dtype = rng.choice(list(self.raw))
        if rng.random() < 0.15:
            return {dtype: damaged(rng, self.raw[dtype])}
        container = Container(self.raw[dtype], _NESTED)
        if rng.random() < 0.6:
            container.change_header(rng)
        else:
            container.change_data(rng)
        return {dtype: container.sealed(rng)}

    def use(self, files: Files, folder: Path) -> None:
        ((dtype, content),) = files.items()
        path = folder / "session"
        path.write_bytes(content)
        model = self.models[dtype]
        session = model.load_session(path)
        session.generate("and", max_tokens=2, temperature=0)
        session.save(folder / "again")
        model.load_session(folder / "again")
