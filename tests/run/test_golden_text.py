"""One text each, to the last bit: every instruction set and exact kernel that this CPU has, 1 to 8
threads, the prompt read at once and token by token, greedily and drawn with a seed.

``tests/golden/NAME.json`` holds the texts and a digest of every logit behind them.
``EDGEDB_WRITE_GOLDEN=1 pytest tests/run/test_golden_text.py`` writes them anew: for another model,
or a deliberate change of the numerics. The C library alone has a golden text of its own
(``native/tests``), which runs as Arm code too.
"""

from __future__ import annotations

import hashlib
import json
import os
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from kernels import ISAS
from places import ROOT
from rich.console import Console

import edgedb
from edgedb.choose.sampling import Sampler, SamplingParams
from edgedb.convert.export import export
from edgedb.convert.sources import open_source
from edgedb.convert.storage import Options
from edgedb.ops import library

FOLDER = ROOT / "tests" / "golden"
DB2 = ROOT / "models" / "smollm2-135m-instruct-db2.dbb"
LENGTH = 200
WRITE = os.environ.get("EDGEDB_WRITE_GOLDEN") == "1"

GREEDY = SamplingParams(temperature=0, repetition_penalty=1.1)  # or small models run in circles
DRAWN = SamplingParams(temperature=0.8, seed=20240217)


class Way(NamedTuple):
    """A way to the same bits."""

    isa: str = ISAS[0]
    kernel: str = "lookup"
    threads: int = 1
    together: bool = True  # the prompt


KERNELS = [(isa, k) for isa in ISAS for k in library.kernels(isa) if k != "popcount4"]
WAYS = [Way(*k, *how) for k, *how in product(KERNELS, range(1, 9), (True, False))]


def written(
    path: Path,
    prompt: str | list[int],
    params: SamplingParams,
    way: Way,
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[list[int], list[str]]:
    """The ids of ``LENGTH`` tokens, and for each a digest of all logits up to it."""
    monkeypatch.setenv("EDGEDB_KERNEL", way.kernel)
    model = edgedb.load(path, isa=way.isa, threads=way.threads, context=256, verify=False)
    session, sampler = model.session(), Sampler(params)
    ids = model.tokenize(prompt) if isinstance(prompt, str) else prompt
    for part in [ids] if way.together else [[token] for token in ids]:
        session.prefill(part)
    tokens, digests, digest = [], [], hashlib.sha256()
    # Scalar code takes a tenth of a second for a token of a real model.
    for _ in range(12 if way.isa == "scalar" and path == DB2 else LENGTH):
        digest.update(session.logits().astype("<f4").tobytes())
        tokens.append(session.decode(sampler))
        digests.append(digest.hexdigest()[:16])
    return tokens, digests


def check(
    name: str,
    path: Path,
    prompt: str | list[int],
    ways: list[Way],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All ``ways`` against the first and the first against the file: text, or ids for ids."""
    found: dict[str, Any] = {"prompt": prompt}
    for choice, params in (("greedy", GREEDY), ("drawn", DRAWN)):
        tokens, digests = written(path, prompt, params, ways[0], monkeypatch)
        model = edgedb.load(path, verify=False)
        answer = model.detokenize(tokens) if isinstance(prompt, str) else tokens
        found[choice] = {"answer": answer, "logits": digests[-1]}
        for way in ways[1:] if choice == "greedy" else ways[1:3]:
            other = written(path, prompt, params, way, monkeypatch)
            assert other[0] == tokens[: len(other[0])], (choice, way)
            assert other[1] == digests[: len(other[1])], (choice, way)
    file = FOLDER / f"{name}.json"
    if WRITE:
        file.write_text(json.dumps(found, ensure_ascii=False) + "\n", encoding="utf-8")
    assert found == json.loads(file.read_text(encoding="utf-8"))


def test_random_weights(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = [7 * i * i % 320 for i in range(37)]  # ids: the tokenizer is trained on the spot
    check("tiny", tiny_model, prompt, WAYS, monkeypatch)


def test_stories260k(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "stories.dbb"
    source = open_source(shared / "models" / "stories260K")
    export(source, path, Options(method="int8"), console=Console(quiet=True))
    ways = [way for way in WAYS if way.kernel == "lookup"]  # there are no pairs
    check("stories260k", path, "Once upon a time", ways, monkeypatch)


def test_smollm2(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kernel, both ways to read the prompt, every number of threads: not all combinations."""
    rest = [Way(*kernel, 2 + i % 7, i % 2 == 1) for i, kernel in enumerate(KERNELS)]
    tried = {way.threads for way in rest}
    rest += [Way(threads=n, together=False) for n in range(2, 9) if n not in tried]
    check("smollm2-db2", DB2, "The history of the city", [Way(), *rest], monkeypatch)
