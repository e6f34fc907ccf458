"""The forward pass against logits and texts of a reference implementation, on real models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from places import ROOT
from rich.console import Console

import edgedb
from edgedb import ops
from edgedb.convert.export import export
from edgedb.convert.sources import open_source
from edgedb.convert.storage import Options
from edgedb.ops.sequences import MAX_ROWS

SMOLLM2_GGUF = ROOT / ".cache" / "SmolLM2-135M-Instruct.Q4_1.gguf"
TOLERANCE = 2e-3  # of a logit

Convert = Callable[[Path, str], Path]


@pytest.fixture(scope="module")
def convert(tmp_path_factory: pytest.TempPathFactory) -> Convert:
    """Export a checkpoint once per method."""
    folder = tmp_path_factory.mktemp("dense")

    def run(source: Path, method: str) -> Path:
        out = folder / f"{source.stem}-{method}.dbb"
        if not out.exists():
            export(open_source(source), out, Options(method=method), console=Console(quiet=True))
        return out

    return run


@pytest.fixture(params=ops.BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    status = next(s for s in ops.statuses() if s.name == name)
    if not status.available:
        pytest.skip(f"backend {name}: {status.reason}")
    return name


@pytest.fixture(scope="module")
def smollm2(convert: Convert) -> Path:
    if not SMOLLM2_GGUF.exists():
        pytest.skip("SmolLM2's GGUF is not here; `make test` fetches it")
    # The reference rounded the GGUF's weights to float16.
    return convert(SMOLLM2_GGUF, "dense16")


def test_stories260k(shared: Path, convert: Convert, backend: str) -> None:
    path = convert(shared / "models" / "stories260K", "dense32")
    reference = np.load(shared / "ref" / "stories260K_ref.npz")
    model = edgedb.load(path, backend=backend, kv_dtype="float32")
    logits = model.logits(reference["ids"].tolist())
    assert np.abs(logits - reference["logits"]).max() < TOLERANCE
    first, *rest = reference["greedy_from_bos"].tolist()
    assert model.generate([first], max_tokens=len(rest), temperature=0).tokens == rest


def test_smollm2(shared: Path, smollm2: Path, backend: str) -> None:
    reference = np.load(shared / "ref" / "smollm2_ref.npz")
    model = edgedb.load(smollm2, backend=backend, kv_dtype="float32")
    ids = reference["ids"].tolist()
    logits = model.logits(ids)
    assert np.abs(logits[-1] - reference["logits_last"]).max() < TOLERANCE
    assert (np.argsort(-logits, axis=1)[:, :5] == reference["top5_ids"]).all()
    greedy = reference["greedy"].tolist()
    answer = model.generate(ids, max_tokens=len(greedy) - len(ids), temperature=0)
    assert ids + answer.tokens == greedy


def test_smollm2_chat_ids(shared: Path, smollm2: Path) -> None:
    reference = np.load(shared / "ref" / "smollm2_ref.npz")
    model = edgedb.load(smollm2)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    assert model.chat_tokens(question) == reference["chat_ids"].tolist()


def test_float16_cache_costs_little(shared: Path, convert: Convert) -> None:
    path = convert(shared / "models" / "stories260K", "dense32")
    reference = np.load(shared / "ref" / "stories260K_ref.npz")
    logits = edgedb.load(path, kv_dtype="float16").logits(reference["ids"].tolist())
    assert 0 < np.abs(logits - reference["logits"]).max() < 0.05


def test_a_prompt_longer_than_a_batch(tiny_model: Path) -> None:
    model = edgedb.load(tiny_model)
    if model.ops.name != "native":
        pytest.skip("only the native backend promises bits")
    vocab_size = model.config.vocab_size
    ids = [(7 * i + i * i) % vocab_size for i in range(2 * MAX_ROWS + 3)]
    whole = model.logits(ids)
    session = model.session()
    for i, token in enumerate(ids):
        session.prefill([token])
        if i in (0, 1, MAX_ROWS - 1, MAX_ROWS, len(ids) - 1):
            assert session.logits().tobytes() == whole[i].tobytes()
