"""Tokenizers out of GGUF metadata."""

from __future__ import annotations

from pathlib import Path

import pytest
from checkpoints import CONFIG, weights, write_gguf

from edgedb.errors import FormatError
from edgedb.tokenizer import load_tokenizer
from tools.sources import open_source


def test_gguf_sentencepiece_gives_the_same_ids(tmp_path: Path, tiny_sentencepiece: bytes) -> None:
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_proto=tiny_sentencepiece)
    n = model.vocab_size()
    kinds = [
        2 if model.is_unknown(i) else 3 if model.is_control(i) else 6 if model.is_byte(i) else 1
        for i in range(n)
    ]
    metadata = {
        "tokenizer_model": "llama",
        "token_list": [model.id_to_piece(i) for i in range(n)],
        "token_scores": [model.get_score(i) for i in range(n)],
        "token_types": kinds,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    tensors = weights({**CONFIG, "vocab_size": n})
    spec = open_source(write_gguf(tmp_path / "m.gguf", metadata, tensors=tensors)).tokenizer_spec
    assert spec.kind == "sentencepiece" and spec.add_bos and spec.eos_ids == (2,)
    tokenizer = load_tokenizer(spec)
    for text in ("What is 12 + 3? The café's answer:\n\tfifteen — 日本語.", " two  spaces ", ""):
        assert tokenizer.encode(text, add_bos=False) == model.encode(text)
        assert tokenizer.decode(model.encode(text)) == model.decode(model.encode(text))


def test_a_merge_of_one_token_is_named(tmp_path: Path, bpe_metadata: dict) -> None:
    bpe_metadata["token_merges"][3] = "alone"
    with pytest.raises(FormatError, match=r"m\.gguf: BPE merge 'alone'"):
        open_source(write_gguf(tmp_path / "m.gguf", bpe_metadata))
    bpe_metadata["token_merges"][3] = "no-such token"
    with pytest.raises(FormatError, match=r"m\.gguf: BPE merges: .*no-such"):
        open_source(write_gguf(tmp_path / "m.gguf", bpe_metadata))
