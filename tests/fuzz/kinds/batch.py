"""Files of a batch: lines that ask wrong things, and what an earlier run may have left."""

from __future__ import annotations

import json
import re
from pathlib import Path
from random import Random

from edgedb.jobs.answering import Answering
from edgedb.jobs.batch import run_batch
from edgedb.jobs.defaults import Defaults, identity
from edgedb.jobs.lines import Line
from edgedb.jobs.machine import answer_here
from edgedb.jobs.records import Record

from .. import mutators
from . import models
from .kind import Files, Kind, WrongMessage

_MESSAGES = [{"role": "user", "content": "Hi"}]
_CALL = {"model": "batch", "messages": _MESSAGES, "max_tokens": 2, "n": 2, "stop": "x"}
_LINES = (
    {"id": "a", "prompt": "Once upon a time", "max_tokens": 2, "stop": ["x"], "seed": 3},
    {"messages": _MESSAGES, "max_tokens": 2, "tools": [{"type": "function"}], "temperature": 0},
    {"id": 3, "prompt": [5, 6, 7], "max_tokens": 1, "logprobs": 2, "logit_bias": {"4": -1}},
    {"custom_id": "b", "method": "POST", "url": "/v1/chat/completions", "body": _CALL},
)


class BatchKind(Kind):
    name = "batch"
    share = 1

    def prepare(self, folder: Path) -> None:
        self.model_file = folder / "batch.dbb"
        models.write(self.model_file, models.specs()[0])
        self.lines = "".join(json.dumps(line) + "\n" for line in _LINES).encode()
        self.open()
        source, out = folder / "batch.jsonl", folder / "batch.out"
        source.write_bytes(self.lines)

        def interrupted(line: Line) -> Record:
            if line.number == 3:
                raise KeyboardInterrupt
            return self.answer(line, lambda: False)

        try:
            run_batch(source, out, self.same, lambda lines: map(interrupted, lines))
        except KeyboardInterrupt:
            self.part = out.with_name("batch.out.part").read_bytes()

    def open(self) -> None:
        model, defaults = models.load(self.model_file), Defaults(max_tokens=2)
        self.same, self.answer = identity(model, defaults), Answering(model, defaults)

    def make(self, rng: Random) -> Files:
        lines, part = self.lines, self.part
        if rng.random() < 0.3:
            part = mutators.data(rng, part)
        elif rng.random() < 0.7:
            changed = (mutators.document(rng, line) for line in _LINES)
            lines = b"\n".join(mutators.encoded(mutators.dumps(rng, one)) for one in changed)
        else:
            lines = mutators.data(rng, lines)
        return {"in.jsonl": lines, "out.part": part}

    def use(self, files: Files, folder: Path) -> None:
        for name, content in files.items():
            (folder / name).write_bytes(content)
        out = folder / "out"
        out.unlink(missing_ok=True)
        source = folder / "in.jsonl"
        run_batch(source, out, self.same, lambda lines: answer_here(self.answer, lines, 1))
        for line in out.read_bytes().splitlines():
            error = json.loads(line).get("error", "")
            said = str(error["message"] if isinstance(error, dict) else error)
            if re.match(r"\w+Error: ", said):  # a fault of ours, which the record quotes
                raise WrongMessage(said)
