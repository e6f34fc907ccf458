"""Which file of a Hugging Face directory is its tokenizer, and that its ids are the library's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
from checkpoints import write_hf
from tiny_tokenizers import like_sentencepiece

from edgedb.convert.sources import open_source
from edgedb.text.tokenizer import Tokenizer, load_tokenizer

TRICKY = [
    "<s>Hello</s>there",
    "Hello </s> there",
    "<s><s> Hello\n</s>\n",
    "Hello",
    " Hello",
    "<s>  two  spaces</s>Zwölf é",
]


def opened(folder: Path, **settings: object) -> Tokenizer:
    known = {"bos_token": "<s>", "eos_token": "</s>", **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(known))
    spec = open_source(folder).tokenizer_spec
    assert spec is not None
    return load_tokenizer(spec)


@pytest.mark.parametrize("scheme", ["first", "always"])
def test_a_tokenizer_json_counts_before_a_sentencepiece_model(
    tmp_path: Path, tiny_sentencepiece: bytes, scheme: str
) -> None:
    fast = like_sentencepiece(tiny_sentencepiece, scheme)
    folder = write_hf(tmp_path / "m", fast, vocab_size=400)
    (folder / "tokenizer.model").write_bytes(tiny_sentencepiece)
    tokenizer = opened(folder, legacy=scheme == "always")
    library = tokenizers.Tokenizer.from_buffer(fast)
    for text in TRICKY:
        ids = tokenizer.encode(text, add_bos=False, special=True)
        assert ids == library.encode(text, add_special_tokens=False).ids
    behind = tokenizer.encode("<s>the", add_bos=False, special=True)
    spelled = "".join(map(library.id_to_token, behind))
    assert spelled == ("<s>the" if scheme == "first" else "<s>▁the")


@pytest.mark.parametrize("legacy", [False, True])
def test_a_sentencepiece_model_alone_splits_as_its_settings_say(
    tmp_path: Path, tiny_sentencepiece: bytes, legacy: bool
) -> None:
    folder = write_hf(tmp_path / "m", b"", vocab_size=400)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(tiny_sentencepiece)
    tokenizer = opened(folder, legacy=legacy)
    scheme = "always" if legacy else "first"
    library = tokenizers.Tokenizer.from_buffer(like_sentencepiece(tiny_sentencepiece, scheme))
    for text in TRICKY:
        if not legacy and text.startswith(" "):
            continue  # the model's own encoder keeps a space there, Metaspace takes it for its own
        ids = tokenizer.encode(text, add_bos=False, special=True)
        assert ids == library.encode(text, add_special_tokens=False).ids
