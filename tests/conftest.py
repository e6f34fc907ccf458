"""Fixtures: a tiny model with a real tokenizer, and the reference data where it is there."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fake_hub import FakeHub, serving
from hypothesis import settings
from places import NOT_HERE, SHARED
from tiny_tokenizers import CHATML, byte_level_bpe, sentencepiece_bpe

from edgedb.format.packing import pack_int8, pack_planes, quantize_int8
from edgedb.format.tensors import Kind, PairTensor
from edgedb.model.config import ModelConfig
from edgedb.model.dbb_writer import DbbWriter
from edgedb.model.families import program_of
from edgedb.text.spec import TokenizerSpec

# A busy machine is no failure: speed belongs in benchmarks.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# A shell in the background lets what it starts ignore Ctrl-C, and so would every command in here.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference models and texts beside the repository; the test skips without it."""
    if not SHARED.is_dir():
        pytest.skip(NOT_HERE)
    return SHARED


@pytest.fixture(scope="session")
def tiny_bpe() -> bytes:
    """A byte-level BPE ``tokenizer.json`` of 320 tokens; ids 0 to 2 are special."""
    return byte_level_bpe()


@pytest.fixture
def bpe_metadata(tiny_bpe: bytes) -> dict:
    """The tiny BPE tokenizer as GGUF writer calls."""
    raw = json.loads(tiny_bpe)
    tokens = sorted(raw["model"]["vocab"], key=raw["model"]["vocab"].get)
    return {
        "tokenizer_model": "gpt2",
        "tokenizer_pre": "gpt-2",
        "token_list": tokens,
        "token_types": [3] * 3 + [1] * (len(tokens) - 3),
        "token_merges": [m if isinstance(m, str) else " ".join(m) for m in raw["model"]["merges"]],
        "bos_token_id": 1,
        "eos_token_id": 0,
        "chat_template": "{{ messages[0]['content'] }}",
    }


@pytest.fixture(scope="session")
def tiny_sentencepiece() -> bytes:
    """A SentencePiece model of 400 pieces with byte fallback: <unk>, <s>, </s>, then the bytes."""
    return sentencepiece_bpe()


@pytest.fixture(scope="session")
def tiny_spec(tiny_bpe: bytes) -> TokenizerSpec:
    """The tokenizer of the tiny model, with a chat template."""
    return TokenizerSpec(
        kind="tokenizers",
        data=tiny_bpe,
        bos_id=1,
        eos_ids=(2,),
        chat_template=CHATML,
        special_tokens={"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"},
    )


@pytest.fixture(scope="session")
def tiny_model(tiny_spec: TokenizerSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ``.dbb`` of two layers with random weights; no size is a multiple of 64."""
    path = tmp_path_factory.mktemp("model") / "tiny.dbb"
    _write_tiny(path, tiny_spec, 512)
    return path


@pytest.fixture(scope="session")
def long_model(tiny_spec: TokenizerSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``tiny_model`` for contexts of up to 8,192 tokens."""
    path = tmp_path_factory.mktemp("model") / "long.dbb"
    _write_tiny(path, tiny_spec, 8192)
    return path


@pytest.fixture(scope="session")
def other_model(tiny_spec: TokenizerSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another one of the same vocabulary, which hardly ever writes the same."""
    path = tmp_path_factory.mktemp("model") / "other.dbb"
    _write_tiny(path, tiny_spec, 8192, seed=8)
    return path


@pytest.fixture(scope="session")
def sentencepiece_model(
    tiny_sentencepiece: bytes, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """``tiny_model`` with a SentencePiece tokenizer, which puts a space before a text."""
    path = tmp_path_factory.mktemp("model") / "sentencepiece.dbb"
    _write_tiny(path, TokenizerSpec("sentencepiece", tiny_sentencepiece, 1, (2,), True), 512, 400)
    return path


def _write_tiny(
    path: Path, spec: TokenizerSpec, max_positions: int, vocab_size: int = 320, seed: int = 7
) -> None:
    config = ModelConfig(
        model_type="llama",
        vocab_size=vocab_size,
        hidden_size=72,
        intermediate_size=100,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        head_dim=18,
        max_position_embeddings=max_positions,
    )
    kinds: dict[str, Kind] = dict.fromkeys(program_of(config).matrices(), 2)
    kinds.update(embedding="int8", head="int8")
    rng = np.random.Generator(np.random.PCG64(seed))
    norms = program_of(config).vectors()
    with DbbWriter(path, config, spec, kinds) as writer:
        for name in list(writer.remaining):
            if name in norms:
                writer.put(name, np.ones(norms[name], np.float32))
                continue
            rows, cols = program_of(config).matrices()[name]
            if kinds[name] == "int8":
                weight = rng.standard_normal((rows, cols), np.float32)
                if name == "head":
                    weight[:3] = 0  # an average logit: answers rarely end by a special token
                writer.put(name, pack_int8(*quantize_int8(weight)))
            else:
                writer.put(name, _random_pair(rows, cols, rng))
        writer.finish({"group": 64, "method": "random weights"})


def _random_pair(rows: int, cols: int, rng: np.random.Generator) -> PairTensor:
    groups = -(-cols // 64)
    c2 = rng.integers(-63, 64, (rows, groups)).astype(np.int8)
    b1, b2 = rng.random((2, rows, cols)) < 0.4
    scale = np.full((1, rows), 1 / (32 * cols**0.5), np.float32)
    return PairTensor(pack_planes(b1, b2, -2 * c2, c2)[None], scale, rows, cols)


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of training text for the model of ``tiny``; see ``training.write_text``."""
    pytest.importorskip("torch", reason="needs PyTorch: pip install '.[train]'")
    from training import write_text

    folder = tmp_path_factory.mktemp("text")
    write_text(folder)
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    """A hub on loopback, in the place of the real one; cache and models in ``tmp_path``."""
    constants = pytest.importorskip("huggingface_hub.constants")
    file_download = pytest.importorskip("huggingface_hub.file_download")
    for name in ("HF_TOKEN", "EDGEDB_MODELS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("EDGEDB_BACKEND", "numpy")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 12)  # of 10 MB
    # A dropped connection is waited for a second each time.
    monkeypatch.setattr(file_download.time, "sleep", lambda seconds: None)
    with serving() as fake:
        monkeypatch.setattr(constants, "ENDPOINT", fake.address)
        template = fake.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield fake
