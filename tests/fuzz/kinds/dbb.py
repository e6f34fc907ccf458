"""Model files: header, data and tokenizer changed, checksums right again."""

from __future__ import annotations

import json
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
        bpe, pieces, tables = models.specs()
        configs = (models.CONFIG, models.FEATURES, models.EXPERTS)
        wanted = [(bpe, models.CONFIG), *((pieces, config) for config in configs)]
        wanted += [(tables, models.CONFIG)]
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
        elif raw is self.raw[-1] and chance < 0.95:
            self._change_tables(rng, container)
        else:
            container.replace_part(_TOKENIZER, mutators.data(rng, container.part(_TOKENIZER)))
        return {"model.dbb": container.sealed(rng)}

    def _change_tables(self, rng: Random, container: Container) -> None:
        """Of the tokenizer alone: its file as JSON, or some of the tables."""
        if rng.random() < 0.4:
            document = mutators.document(rng, json.loads(container.part(_TOKENIZER)))
            container.replace_part(_TOKENIZER, mutators.encoded(mutators.dumps(rng, document)))
        else:
            tables = [name for name in container.entries if name.startswith("tokenizer.")]
            container.change_data(rng, rng.sample(tables, rng.choice((1, 1, 2))))

    def use(self, files: Files, folder: Path) -> None:
        path = folder / "model.dbb"
        path.write_bytes(files["model.dbb"])
        models.use(models.load(path))
