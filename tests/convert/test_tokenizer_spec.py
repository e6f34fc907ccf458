"""What the exporter writes, ``edgedb`` loads: excess is left out with a word, the rest refused
before a weight is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from checkpoints import CONFIG, weights, write_gguf, write_hf

import edgedb
from edgedb.convert.export import export
from edgedb.convert.sources import Source, open_source
from edgedb.convert.storage import Options
from edgedb.errors import CheckpointWarning, FormatError, TemplateError
from edgedb.text.spec import MAX_TEMPLATE_CHARS


def loaded(source: Source, out: Path) -> edgedb.Model:
    """The model that the exporter makes of ``source``, as a user opens it."""
    export(source, out, Options(method="int8"))
    return edgedb.load(out)


def companion(folder: Path, file: str, **values: Any) -> None:
    """Add ``values`` to a JSON file of a checkpoint."""
    path = folder / file
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**known, **values}))


@pytest.mark.parametrize(
    ("file", "values", "warning"),
    [
        ("generation_config.json", {"eos_token_id": [2, 99999]}, "EOS token 99999"),
        ("config.json", {"eos_token_id": 4294967295}, "EOS token 4294967295"),
        ("config.json", {"eos_token_id": "</s>"}, "EOS token </s>"),
        ("config.json", {"eos_token_id": "\x1b[2J\n"}, r"EOS token \\x1b\[2J\\n is"),
        ("generation_config.json", {"eos_token_id": [-1, None]}, "EOS token -1"),
        ("tokenizer_config.json", {"chat_template": 5}, "chat template is no text"),
        ("tokenizer_config.json", {"chat_template": "\ud800"}, "chat template is no text"),
        (
            "tokenizer_config.json",
            {"chat_template": "x" * (MAX_TEMPLATE_CHARS + 1)},
            f"chat template has {MAX_TEMPLATE_CHARS + 1} characters",
        ),
    ],
)
def test_harmless_excess_is_left_out(
    tmp_path: Path, tiny_bpe: bytes, file: str, values: dict, warning: str
) -> None:
    folder = write_hf(tmp_path / "m", tiny_bpe)
    companion(folder, file, **values)
    with pytest.warns(CheckpointWarning, match=rf"^m: .*{warning}"):
        source = open_source(folder)
    model = loaded(source, tmp_path / "m.dbb")
    assert model.tokenizer_spec.eos_ids == (2,) and model.tokenizer_spec.chat_template is None


def test_a_bos_token_outside_the_vocabulary(tmp_path: Path, tiny_bpe: bytes) -> None:
    folder = write_hf(tmp_path / "m", tiny_bpe, bos_token_id=4294967295)
    companion(folder, "tokenizer_config.json", bos_token=None, add_bos_token=True)
    with pytest.warns(CheckpointWarning, match="BOS token 4294967295"):
        source = open_source(folder)
    assert loaded(source, tmp_path / "m.dbb").tokenizer_spec.bos_id is None


def test_texts_that_are_none_are_no_special_tokens(tmp_path: Path, tiny_bpe: bytes) -> None:
    folder = write_hf(tmp_path / "m", tiny_bpe)
    companion(
        folder, "tokenizer_config.json", unk_token=5, pad_token={"content": [1]}, bos_token="\ud800"
    )
    special = loaded(open_source(folder), tmp_path / "m.dbb").tokenizer_spec.special_tokens
    assert special == {"eos_token": "<|im_end|>"}


def test_a_padding_token_without_a_row_is_left_out(tmp_path: Path, tiny_bpe: bytes) -> None:
    document = json.loads(tiny_bpe)
    pad = document["added_tokens"][0] | {"id": 320, "content": "<pad>"}
    document["added_tokens"].append(pad)
    folder = write_hf(tmp_path / "m", json.dumps(document).encode())
    with pytest.warns(CheckpointWarning, match="no row for are left out: '<pad>'$"):
        source = open_source(folder)
    model = loaded(source, tmp_path / "m.dbb")
    assert model.detokenize(model.tokenize("<pad>")) == "<pad>"


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(
    tmp_path: Path, tiny_bpe: bytes, tiny_sentencepiece: bytes, bpe_metadata: dict
) -> None:
    tensors = weights({**CONFIG, "vocab_size": 300})
    folder = write_hf(tmp_path / "m", tiny_bpe, tensors=tensors, vocab_size=300)
    with pytest.raises(FormatError, match="m: the tokenizer has 320 tokens, the model only 300"):
        open_source(folder)
    path = write_gguf(tmp_path / "m.gguf", bpe_metadata, tensors=tensors)
    with pytest.raises(FormatError, match="has 320 tokens, the model only 300"):
        open_source(path)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(tiny_sentencepiece)
    with pytest.raises(FormatError, match="has 400 tokens, the model only 300"):
        open_source(folder)


def test_a_template_that_fails_is_kept_with_a_word(tmp_path: Path, tiny_bpe: bytes) -> None:
    folder = write_hf(tmp_path / "m", tiny_bpe)
    companion(folder, "tokenizer_config.json", chat_template="{% for x in %}")
    with pytest.warns(CheckpointWarning, match="chats with this model will fail: .* line 1"):
        source = open_source(folder)
    model = loaded(source, tmp_path / "m.dbb")
    with pytest.raises(TemplateError, match="line 1"):
        model.chat_text([{"role": "user", "content": "Hi"}])


@pytest.mark.parametrize("where", ["added_tokens.json", "tokenizer_config.json"])
def test_tokens_that_were_added_to_a_sentencepiece_model(
    tmp_path: Path, tiny_bpe: bytes, tiny_sentencepiece: bytes, where: str
) -> None:
    folder = write_hf(tmp_path / "m", tiny_bpe, vocab_size=404)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(tiny_sentencepiece)
    companion(folder, "tokenizer_config.json", bos_token="<s>")  # eos_token is <|im_end|>
    if where == "added_tokens.json":
        companion(folder, where, **{"<|im_end|>": 400, "<call>": 403})
    else:
        added = {"400": {"content": "<|im_end|>", "special": True}, "403": {"content": "<call>"}}
        companion(folder, where, added_tokens_decoder=added)
    model = loaded(open_source(folder), tmp_path / "m.dbb")
    assert model.tokenizer_spec.eos_ids == (2, 400)
    ids = model.tokenizer.encode("Hi<|im_end|><call>x", add_bos=False, special=True)
    assert 400 in ids and 403 in ids
    assert model.detokenize([400, 403]) == "<call>"
    assert 400 not in model.tokenize("Hi<|im_end|>"), "in a user's text it is only text"


def test_added_tokens_that_fit_nowhere(
    tmp_path: Path, tiny_bpe: bytes, tiny_sentencepiece: bytes
) -> None:
    folder = write_hf(tmp_path / "m", tiny_bpe, vocab_size=400)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(tiny_sentencepiece)
    companion(folder, "added_tokens.json", **{"<pad>": 400, "x": 1 << 40})
    with pytest.warns(CheckpointWarning, match="no row for are left out: '<pad>', 'x'"):
        source = open_source(folder)
    assert loaded(source, tmp_path / "m.dbb").tokenizer.vocab_size == 400
    (folder / "added_tokens.json").write_text('{"x": []}')
    with pytest.raises(FormatError, match="without ids"):
        open_source(folder)


def test_an_unusable_sentencepiece_model_is_refused(
    tmp_path: Path, tiny_bpe: bytes, tiny_sentencepiece: bytes
) -> None:
    folder = write_hf(tmp_path / "m", tiny_bpe)
    (folder / "tokenizer.json").unlink()
    first = tiny_sentencepiece.index(b"<unk>")
    twice = tiny_sentencepiece + b"\n\x07\n\x05<unk>"
    no_text = tiny_sentencepiece + b"\n\x04\n\x02\xff\xfe"
    cut = tiny_sentencepiece[: first + 20]
    for content in (b"\n", b"\nand no more", b"\n\x00", cut, twice, no_text):
        (folder / "tokenizer.model").write_bytes(content)
        with pytest.raises(FormatError, match=r"^m: tokenizer\.model is damaged"):
            open_source(folder)
