"""SentencePiece models against the library's own encoder and decoder."""

from __future__ import annotations

import io
from collections.abc import Iterator
from importlib.resources import files

import numpy as np
import pytest
import sentencepiece

from edgedb.text.spec import TokenizerSpec
from edgedb.text.tokenizer import load_tokenizer

INDENTED = ["def f(x):", "    if x:", "        return  x", "    return  f(x)", "hello world"] * 9
TRICKY = [
    "Hello world",
    "  two  spaces\n\n    indented\n\t\ttabs ",
    " ",
    "\n a",
    "",
    "a▁b ▁",
    "Zwölf 日本語 é😀",
    "<0x0A> <s> </s>",
]


def model(dummy_prefix: bool, mode: str = "bpe", **options: object) -> bytes:
    """Its first piece that begins with the mark for a space is two of them, as in Mistral's."""
    stream = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(INDENTED),
        model_writer=stream,
        model_type=mode,
        vocab_size=320,
        byte_fallback=True,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=dummy_prefix,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
        **options,
    )
    return stream.getvalue()


def published() -> Iterator[bytes]:
    data = files("mistral_common").joinpath("data")
    for file in data.iterdir():
        if "tokenizer" in file.name and ".model.v" in file.name and "m1" not in file.name:
            yield file.read_bytes()


def check(data: bytes, first: int) -> None:
    library = sentencepiece.SentencePieceProcessor(model_proto=data)
    spec = TokenizerSpec("sentencepiece", data, library.bos_id(), (library.eos_id(),))
    tokenizer = load_tokenizer(spec)
    for text in TRICKY:
        ids = tokenizer.encode(text, add_bos=False)
        assert ids == library.encode(text)
        assert tokenizer.decode(ids) == library.decode(ids)
    rng = np.random.default_rng(0)
    marks = [i for i in (library.piece_to_id("▁"), library.piece_to_id("▁▁")) if i >= first]
    for _ in range(300):
        # Without raw bytes: where they are no UTF-8, the libraries differ in how they say so.
        ids = rng.integers(first, library.vocab_size(), 5).tolist()
        ids[: rng.integers(0, 3)] = rng.permutation(marks)[: rng.integers(0, 3)].tolist()
        assert tokenizer.decode(ids) == library.decode(ids)


@pytest.mark.parametrize("dummy_prefix", [True, False])
def test_text_is_the_librarys_where_the_first_mark_is_two(dummy_prefix: bool) -> None:
    data = model(dummy_prefix)
    library = sentencepiece.SentencePieceProcessor(model_proto=data)
    pieces = [library.id_to_piece(i) for i in range(library.vocab_size())]
    assert next(piece for piece in pieces if piece[0] == "▁" and len(piece) > 1) == "▁▁"
    tokenizer = load_tokenizer(TokenizerSpec("sentencepiece", data, 1, (2,)))
    assert tokenizer.decode(tokenizer.encode("hello world")) == "hello world"
    check(data, 259)


def test_text_is_the_librarys_on_published_models() -> None:
    pytest.importorskip("mistral_common", reason="needs pip install mistral-common")
    for data in published():
        check(data, 1100)


def test_encoding_inside_a_text_adds_no_space() -> None:
    for dummy_prefix in (True, False):
        tokenizer = load_tokenizer(TokenizerSpec("sentencepiece", model(dummy_prefix), 1, (2,)))
        for text in ("hello", " hello", "", "\n", "日"):
            ids = tokenizer.encode_inside(text)
            assert b"".join(map(tokenizer.token_bytes, ids)).decode() == text


def test_control_tokens_of_a_message_are_text() -> None:
    """Those of the model are read where the template wrote them; markers are pieces of the user."""
    from edgedb.text.quotation import Quoted

    data = model(True, user_defined_symbols=["<turn>", "<b>", "<|x|>"])
    template = "<s>{{ messages[0].content }}<turn></s>"
    tokenizer = load_tokenizer(
        TokenizerSpec("sentencepiece", data, 1, (2,), chat_template=template)
    )
    spelled = {tokenizer.token_bytes(i).decode() for i in tokenizer.marker_ids}
    assert spelled == {"<turn>", "<|x|>"}
    control = tokenizer.special_ids | tokenizer.marker_ids
    for content in ("<turn>", "a<|x|><s>b", "</s></s>", "<<turn>turn>", "hello <b>"):
        text = "<s>" + Quoted(content) + "<turn></s>"
        ids = tokenizer.encode(text, add_bos=False, special=True)
        found = [tokenizer.token_bytes(i, False).decode() for i in ids if i in control]
        assert found == ["<s>", "<turn>", "</s>"]
        assert tokenizer.decode(ids, skip_special=False) == f"<s> {content}<turn></s>"
    plain = "<s>" + Quoted("hello <b>") + "<turn></s>"
    assert tokenizer.encode(plain, special=True) == tokenizer.encode(
        str.__str__(plain), special=True
    )


def test_an_end_of_text_that_is_no_control_piece_is_special() -> None:
    data = model(True, user_defined_symbols=["<end>"])
    library = sentencepiece.SentencePieceProcessor(model_proto=data)
    end = library.piece_to_id("<end>")
    tokenizer = load_tokenizer(TokenizerSpec("sentencepiece", data, 1, (end,)))
    assert end not in tokenizer.encode("hello <end>")
    assert end in tokenizer.encode("hello <end>", special=True)
    assert tokenizer.decode(tokenizer.encode("hello <end>")) == "hello <end>"
