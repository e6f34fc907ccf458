"""Tokenizers out of GGUF metadata."""

from __future__ import annotations

from pathlib import Path

import pytest
from checkpoints import CONFIG, weights, write_gguf

from edgedb.convert.sources import open_source
from edgedb.convert.sources.gguf_tokenizer import tokenizer_spec
from edgedb.errors import CheckpointWarning, FormatError
from edgedb.text.spec import TokenizerSpec
from edgedb.text.tokenizer import load_tokenizer


@pytest.fixture
def sentencepiece_metadata(tiny_sentencepiece: bytes) -> dict:
    """The tiny SentencePiece tokenizer as GGUF writer calls."""
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_proto=tiny_sentencepiece)
    n = model.vocab_size()
    kinds = [
        2 if model.is_unknown(i) else 3 if model.is_control(i) else 6 if model.is_byte(i) else 1
        for i in range(n)
    ]
    return {
        "tokenizer_model": "llama",
        "token_list": [model.id_to_piece(i) for i in range(n)],
        "token_scores": [model.get_score(i) for i in range(n)],
        "token_types": kinds,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def open_with(path: Path, metadata: dict) -> TokenizerSpec:
    """The tokenizer of a GGUF model with these metadata."""
    tensors = weights({**CONFIG, "vocab_size": len(metadata["token_list"])})
    return open_source(write_gguf(path, metadata, tensors=tensors)).tokenizer_spec


def test_gguf_sentencepiece_gives_the_same_ids(
    tmp_path: Path, tiny_sentencepiece: bytes, sentencepiece_metadata: dict
) -> None:
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_proto=tiny_sentencepiece)
    spec = open_with(tmp_path / "m.gguf", sentencepiece_metadata)
    assert spec.kind == "sentencepiece" and spec.add_bos and spec.eos_ids == (2,)
    tokenizer = load_tokenizer(spec)
    for text in ("What is 12 + 3? The café's answer:\n\tfifteen — 日本語.", " two  spaces ", ""):
        assert tokenizer.encode(text, add_bos=False) == model.encode(text)
        assert tokenizer.decode(model.encode(text)) == model.decode(model.encode(text))


def test_tokens_without_a_piece_that_are_typed_as_unknown(
    tmp_path: Path, tiny_sentencepiece: bytes, sentencepiece_metadata: dict
) -> None:
    """Phi 3's file: paddings are unknown tokens and <unk> is a control token."""
    import sentencepiece

    for n in range(2):
        for key, value in (("list", f"[PAD{n}]"), ("scores", -1000.0), ("types", 2)):
            sentencepiece_metadata[f"token_{key}"].append(value)
    sentencepiece_metadata["token_types"][0] = 3
    tokenizer = load_tokenizer(open_with(tmp_path / "m.gguf", sentencepiece_metadata))
    model = sentencepiece.SentencePieceProcessor(model_proto=tiny_sentencepiece)
    text = "What is [PAD0]? <unk>"
    assert tokenizer.encode(text, add_bos=False) == model.encode(text)


def test_ids_that_a_sentencepiece_model_does_not_say(
    tmp_path: Path, sentencepiece_metadata: dict
) -> None:
    for key in ("bos_token_id", "eos_token_id"):
        del sentencepiece_metadata[key]
    spec = open_with(tmp_path / "m.gguf", sentencepiece_metadata)
    assert (spec.bos_id, spec.eos_ids, spec.add_bos) == (1, (2,), True)  # as in llama.cpp


def test_ids_outside_the_vocabulary_are_left_out(tmp_path: Path, bpe_metadata: dict) -> None:
    nothing = 0xFFFFFFFF
    metadata = bpe_metadata | {"bos_token_id": nothing, "eos_token_id": nothing}
    with pytest.warns(CheckpointWarning) as warned:
        spec = open_with(tmp_path / "m.gguf", metadata | {"add_bos_token": True})
    assert [str(warning.message)[:31] for warning in warned] == [
        "m.gguf: BOS token 4294967295 is",
        "m.gguf: EOS token 4294967295 is",
    ]
    assert (spec.bos_id, spec.eos_ids, spec.add_bos) == (None, (2,), False)


def test_a_token_without_text_gets_a_name(tmp_path: Path, bpe_metadata: dict) -> None:
    unused = len(bpe_metadata["token_list"])
    bpe_metadata["token_list"].append("")
    bpe_metadata["token_types"].append(5)
    with pytest.warns(
        CheckpointWarning, match=r"token 320 has no text; it is called \[EMPTY_320\]"
    ):
        spec = open_with(tmp_path / "m.gguf", bpe_metadata)
    assert load_tokenizer(spec).vocab_size == unused + 1


@pytest.mark.parametrize("kind", [1, 4])
def test_an_end_of_turn_typed_as_text_is_none(
    tmp_path: Path, bpe_metadata: dict, kind: int
) -> None:
    """eos_token_id is another one: answers went on behind <|im_end|> and printed it."""
    bpe_metadata["token_types"][2] = kind
    with pytest.warns(CheckpointWarning, match=r"^m\.gguf: token <\|im_end\|> is typed as text"):
        spec = open_with(tmp_path / "m.gguf", bpe_metadata)
    assert spec.eos_ids == (0, 2)
    tokenizer = load_tokenizer(spec)
    assert tokenizer.decode([2]) == "" and 2 in tokenizer.special_ids
    assert tokenizer.encode("<|im_end|>", special=True) == [2]
    assert 2 not in tokenizer.encode("<|im_end|>")


def test_an_end_of_turn_of_a_sentencepiece_model_typed_as_text(
    tmp_path: Path, sentencepiece_metadata: dict
) -> None:
    for key, value in (("list", "<|im_end|>"), ("scores", 0.0), ("types", 4)):
        sentencepiece_metadata[f"token_{key}"].append(value)
    with pytest.warns(CheckpointWarning, match="is typed as text"):
        spec = open_with(tmp_path / "m.gguf", sentencepiece_metadata)
    tokenizer = load_tokenizer(spec)
    assert spec.eos_ids == (2, 400) and tokenizer.decode([400]) == ""
    assert tokenizer.encode("a<|im_end|>", add_bos=False, special=True)[-1] == 400
    assert 400 not in tokenizer.encode("a<|im_end|>")


def test_what_is_assumed_of_a_missing_pre_tokenizer_is_said(
    tmp_path: Path, bpe_metadata: dict, recwarn: pytest.WarningsRecorder
) -> None:
    known = open_with(tmp_path / "k.gguf", bpe_metadata)
    assert not recwarn
    del bpe_metadata["tokenizer_pre"]
    with pytest.warns(
        CheckpointWarning, match=r"m\.gguf: tokenizer\.ggml\.pre is missing: .*GPT-2"
    ):
        assert open_with(tmp_path / "m.gguf", bpe_metadata) == known


_PLAIN = {
    "model": "llama",
    "tokens": ["<unk>", "<s>", "</s>", "a"],
    "token_type": [2, 3, 3, 1],
    "scores": [0.0, 0.0, 0.0, -1.0],
}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("precompiled_charsmap", 1 << 40),
        ("precompiled_charsmap", [256]),
        ("token_type", [2, 3, 3, -1]),
        ("token_type", [2, 3, 3, 7]),
        ("token_type", [2, 3, 3, 1.0]),
        ("token_type", 3),
        ("tokens", ["<unk>", "<s>", "</s>", b"\xff"]),
        ("tokens", ["<unk>", "<s>", "</s>", 5]),
        ("tokens", ["<unk>", "<s>", "</s>", "<s>"]),
        ("tokens", "abcd"),
        ("scores", [0.0, 0.0, 0.0, float("nan")]),
        ("scores", [0.0, 0.0, 0.0, 1e300]),
        ("scores", 1.0),
        ("model", ["llama"]),
        ("add_space_prefix", "yes"),
        ("add_bos_token", 1 << 40),
    ],
)
def test_metadata_of_the_wrong_kind_are_named(key: str, value: object) -> None:
    metadata = {f"tokenizer.ggml.{k}": v for k, v in {**_PLAIN, key: value}.items()}
    with pytest.raises(FormatError, match=rf"^x\.gguf: tokenizer\.ggml\.{key}: "):
        tokenizer_spec("x.gguf", metadata)


def test_a_merge_of_one_token_is_named(tmp_path: Path, bpe_metadata: dict) -> None:
    bpe_metadata["token_merges"][3] = "alone"
    with pytest.raises(FormatError, match=r"m\.gguf: BPE merge 'alone'"):
        open_source(write_gguf(tmp_path / "m.gguf", bpe_metadata))
    bpe_metadata["token_merges"][3] = "no-such token"
    with pytest.raises(FormatError, match=r"m\.gguf: BPE merges: .*no-such"):
        open_source(write_gguf(tmp_path / "m.gguf", bpe_metadata))
