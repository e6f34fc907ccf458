"""Tokenizers of published models through the whole chain: a checkpoint, the exporter, a ``.dbb``.

The ids are those of the packages that the models' makers use.
"""

from __future__ import annotations

import hashlib
import json
import os
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
from checkpoints import CONFIG, weights, write_gguf, write_hf
from places import ROOT
from real_tokenizers import real
from texts import TRICKY, random_texts

import edgedb
from edgedb.convert.compaction import compacted
from edgedb.convert.export import export
from edgedb.convert.sources import open_source
from edgedb.convert.sources.gguf_file import open_parts
from edgedb.convert.sources.gguf_tokenizer import tokenizer_spec
from edgedb.convert.storage import Options
from edgedb.errors import EdgeDBError
from edgedb.text.spec import TokenizerSpec
from edgedb.text.tokenizer import Tokenizer, load_tokenizer
from edgedb.text.tokenizer_json import with_tables

GOLDEN = ROOT / "tests" / "golden" / "tekken.json"
TEXTS = (*TRICKY, *random_texts(11, 150))
SMALL = {
    **CONFIG,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "tie_word_embeddings": True,
}


def exported(checkpoint: Path) -> edgedb.Model:
    """The model that a user gets of ``checkpoint``."""
    out = checkpoint.with_name("out.dbb")
    export(open_source(checkpoint), out, Options(method="int8"))
    return edgedb.load(out)


def folder_of(folder: Path, vocab_size: int, *files: Path, **changes: Any) -> Path:
    """A checkpoint with these files of a tokenizer."""
    config = {**SMALL, "vocab_size": vocab_size, **changes}
    write_hf(folder, b"", tensors=weights(config), **config)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    for file in files:
        name = "tokenizer.model" if ".model." in file.name else file.name.replace("_240911", "")
        (folder / name).write_bytes(file.read_bytes())
    return folder


def gguf_metadata(data: bytes, pre: str, **more: Any) -> dict[str, Any]:
    """A tokenizer.json as llama.cpp's converter writes it: calls of a GGUF writer."""
    document = json.loads(data)
    token_of = {i: text for text, i in document["model"]["vocab"].items()}
    added = {token["id"]: token for token in document["added_tokens"]}
    token_of |= {i: token["content"] for i, token in added.items()}
    ids = range(len(token_of))
    return {
        "tokenizer_model": "gpt2",
        "tokenizer_pre": pre,
        "token_list": [token_of[i] for i in ids],
        "token_types": [1 if i not in added else 3 if added[i]["special"] else 4 for i in ids],
        "token_merges": [
            merge if isinstance(merge, str) else " ".join(merge)
            for merge in document["model"]["merges"]
        ],
        **more,
    }


def read_back(path: Path, metadata: dict[str, Any]) -> TokenizerSpec:
    """The tokenizer of a GGUF file that holds nothing else."""
    write_gguf(path, metadata, tensors={})
    return tokenizer_spec(path.name, open_parts(path)[0].metadata)


def same_ids(tokenizer: Tokenizer, library: tokenizers.Tokenizer, form: str | None = None) -> None:
    """With special tokens and without; and what they decode to, at once and piece by piece."""
    for text in TEXTS:
        marked = tokenizer.encode(text, add_bos=False, special=True)
        assert marked == library.encode(text, add_special_tokens=False).ids, repr(text)
        library.encode_special_tokens = True
        plain = tokenizer.encode(text, add_bos=False)
        assert plain == library.encode(text, add_special_tokens=False).ids, repr(text)
        library.encode_special_tokens = False
        normal = unicodedata.normalize(form, text) if form else text
        stream = tokenizer.stream()
        assert "".join(map(stream.push, plain)) + stream.finish() == normal
        assert tokenizer.decode(plain) == tokenizer.decode(marked, skip_special=False) == normal
        assert tokenizer.decode(marked) == library.decode(marked, skip_special_tokens=True)


@pytest.mark.parametrize(
    ("name", "end", "bos", "form"),
    [("qwen3", "<|im_end|>", None, "NFC"), ("llama3_1", "<|eot_id|>", 128000, None)],
)
def test_a_folder_with_a_tokenizer_json(
    tmp_path: Path, name: str, end: str, bos: int | None, form: str | None
) -> None:
    files = [real(name, file) for file in ("tokenizer.json", "tokenizer_config.json")]
    library = tokenizers.Tokenizer.from_file(str(files[0]))
    size, eos = library.get_vocab_size(), library.token_to_id(end)
    ids = {"bos_token_id": None, "eos_token_id": None}  # the tokenizer's own files say them
    model = exported(folder_of(tmp_path / "m", size, *files, **ids))
    spec = model.tokenizer_spec
    assert (spec.kind, spec.bos_id, spec.eos_ids) == ("bpe", bos, (eos,))
    assert spec.add_bos == (bos is not None)
    assert model.tokenizer.encode("Hello") == library.encode("Hello").ids
    same_ids(model.tokenizer, library, form)
    with pytest.raises(EdgeDBError, match="lone surrogate at character 1"):
        model.tokenizer.encode("a\udcffb")


def test_a_vocabulary_of_262_144_opens_without_the_package_reading_it() -> None:
    """Gemma 3, through the tables alone: the way of a checkpoint is that of the others."""
    data = real("gemma3", "tokenizer.json").read_bytes()
    spec = compacted(TokenizerSpec("tokenizers", data, 2, (1, 106), True))
    assert spec.tables is not None
    assert sum(array.nbytes for array in spec.arrays().values()) < len(data) / 2
    tokenizer = load_tokenizer(spec)
    library = tokenizers.Tokenizer.from_buffer(data)
    assert (tokenizer.vocab_size, len(spec.tables)) == (262145, 262144)
    assert tokenizer.encode("Hello") == library.encode("Hello").ids
    same_ids(tokenizer, library)


def test_the_same_from_gguf(tmp_path: Path) -> None:
    """Qwen 3; Llama 3 is among the vocabularies of llama.cpp."""
    data = real("qwen3", "tokenizer.json").read_bytes()
    spec = read_back(tmp_path / "m.gguf", gguf_metadata(data, "qwen2", eos_token_id=151645))
    assert (spec.bos_id, spec.eos_ids[0], spec.add_bos) == (None, 151645, False)
    assert compacted(spec).kind == "bpe"
    same_ids(load_tokenizer(spec), tokenizers.Tokenizer.from_buffer(data), "NFC")


def golden_ids(file: Path) -> dict[str, Any]:
    """What mistral-common itself gives, without BOS and EOS: a digest, and some ids to look at.

    ``EDGEDB_WRITE_GOLDEN=1`` writes it anew where that package is installed; 1.13.1 was.
    """
    if "EDGEDB_WRITE_GOLDEN" in os.environ:
        tekken = pytest.importorskip("mistral_common.tokens.tokenizers.tekken")
        library = tekken.Tekkenizer.from_file(file)
        ids = [library.encode(text, bos=False, eos=False) for text in TEXTS]
        rows = [f"{json.dumps(text)}: {found}" for text, found in zip(TRICKY, ids, strict=False)]
        digest = hashlib.sha256(str(ids).encode()).hexdigest()
        GOLDEN.write_text(
            '{"ids": {\n  ' + ",\n  ".join(rows) + f'\n}},\n"sha256": "{digest}"}}\n',
            encoding="utf-8",
        )
    found: dict[str, Any] = json.loads(GOLDEN.read_text(encoding="utf-8"))
    return found


def test_tekken(tmp_path: Path) -> None:
    file = real("mistral", "tekken_240911.json")
    golden = golden_ids(file)
    model = exported(folder_of(tmp_path / "m", 131072, file))
    spec = model.tokenizer_spec
    assert (spec.kind, spec.bos_id, spec.eos_ids, spec.add_bos) == ("bpe", 1, (2,), True)
    whole = with_tables(spec.data, spec.tables)
    data = gguf_metadata(whole, "tekken", bos_token_id=1, eos_token_id=2)
    again = read_back(tmp_path / "m.gguf", data)
    assert (again.bos_id, again.eos_ids, again.add_bos) == (1, (2,), True)
    for tokenizer in (model.tokenizer, load_tokenizer(again)):
        ids = [tokenizer.encode(text, add_bos=False) for text in TEXTS]
        assert dict(zip(TRICKY, ids, strict=False)) == golden["ids"]
        assert hashlib.sha256(str(ids).encode()).hexdigest() == golden["sha256"]
        assert [tokenizer.decode(found) for found in ids] == list(TEXTS)
        assert tokenizer.encode("[INST]a[/INST]", special=True)[:2] == [1, 3]


@pytest.mark.parametrize(
    ("file", "size", "inst"),
    [("tokenizer.model.v1", 32000, 0), ("mistral_instruct_tokenizer_240323.model.v3", 32768, 3)],
)
def test_sentencepiece_models_of_mistral(tmp_path: Path, file: str, size: int, inst: int) -> None:
    path = real("mistral", file)
    folder = folder_of(tmp_path / "m", size, path)
    library = sentencepiece.SentencePieceProcessor(model_file=str(path))
    gguf = write_gguf(
        tmp_path / "m.gguf",
        sentencepiece_metadata(library),
        tensors=weights({**SMALL, "vocab_size": size}),
        config=SMALL,
    )
    for checkpoint in (folder, gguf):
        model = exported(checkpoint)
        tokenizer, spec = model.tokenizer, model.tokenizer_spec
        assert (spec.bos_id, spec.eos_ids, spec.add_bos) == (1, (2,), True)
        for text in TEXTS:
            ids = tokenizer.encode(text)
            assert ids == [1, *library.encode(text)], repr(text)
            # The mark for a space is one in every decoder.
            assert tokenizer.decode(ids) == library.decode(ids) == text.replace("\u2581", " ")
        if inst:
            marked = tokenizer.encode("[INST] a [/INST]", special=True)
            assert (marked[1], marked[-1]) == (inst, inst + 1)
            assert inst not in tokenizer.encode("[INST] a [/INST]")


def sentencepiece_metadata(library: Any) -> dict[str, Any]:
    """A SentencePiece model as llama.cpp's converter writes it."""
    ids = range(library.vocab_size())

    def kind(i: int) -> int:
        if library.is_unknown(i):
            return 2
        return 3 if library.is_control(i) else 6 if library.is_byte(i) else 1

    return {
        "tokenizer_model": "llama",
        "tokenizer_pre": "default",
        "token_list": [library.id_to_piece(i) for i in ids],
        "token_scores": [library.get_score(i) for i in ids],
        "token_types": [kind(i) for i in ids],
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


@pytest.mark.parametrize(
    "name",
    [
        *("deepseek-coder", "deepseek-llm", "falcon", "gpt-2", "llama-bpe", "llama-spm", "mpt"),
        *("phi-3", "starcoder"),
    ],
)
def test_vocabularies_of_llama_cpp(name: str) -> None:
    """Against the ids that transformers gave for its texts; they lie beside each vocabulary."""
    path = real("llama.cpp", f"ggml-vocab-{name}.gguf")
    texts = path.with_suffix(".gguf.inp").read_bytes().decode()
    lines = path.with_suffix(".gguf.out").read_text().splitlines()
    spec = compacted(tokenizer_spec(path.name, open_parts(path)[0].metadata))
    assert spec.kind == ("sentencepiece" if name in ("llama-spm", "phi-3") else "bpe")
    tokenizer = load_tokenizer(spec)
    cases = zip(texts.split("\n__ggml_vocab_test__\n"), lines, strict=False)
    for number, (text, line) in enumerate(cases):
        ids = tokenizer.encode(text, add_bos=False)
        assert ids == [int(i) for i in line.split()], (number, text)
        assert tokenizer.decode(ids) == text
    assert number > 40
