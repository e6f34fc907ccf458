"""Model files: header, data and tokenizer changed, checksums right again."""

from __future__ import annotations

from pathlib import Path
from random import Random

from .. import mutators
from . import models
from .container import Container, damaged
from .kind import Files, Kind
from .tokenizer_json import TokenizerJsonKind

_NESTED = ("config", "tokenizer", "quantization", "checksums")
_TOKENIZER = "tokenizer.file"


class DbbKind(Kind):
    name = "dbb"
    share = 4

    def prepare(self, folder: Path) -> None:
        bpe, pieces = models.specs()
        configs = (models.CONFIG, models.FEATURES, models.EXPERTS)
        wanted = [(bpe, models.CONFIG), *((pieces, config) for config in configs)]
        self.raw = [
            models.write(folder / f"base{i}.dbb", spec, config)
            for i, (spec, config) in enumerate(wanted)
        ]
        self.tokenizers = TokenizerJsonKind()
        self.tokenizers.prepare(folder)

    def make(self, rng: Random) -> Files:
        raw = rng.choice(self.raw)
        if rng.random() < 0.1:
            return {"model.dbb": damaged(rng, raw)}
        container = Container(raw, _NESTED)
        chance = rng.random()
        if chance < 0.5:
            container.change_header(rng)
        elif chance < 0.8:
            container.change_data(rng)
        elif raw is self.raw[0]:
            container.replace_part(_TOKENIZER, self.tokenizers.make(rng)["tokenizer.json"])
        else:
            container.replace_part(_TOKENIZER, mutators.data(rng, container.part(_TOKENIZER)))
        return {"model.dbb": container.sealed(rng)}

    def use(self, files: Files, folder: Path) -> None:
        path = folder / "model.dbb"
        path.write_bytes(files["model.dbb"])
        models.use(models.load(path))
