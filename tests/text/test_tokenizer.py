"""Tokenizers: ids as the libraries give them, text from bytes, streams of whole characters."""

from __future__ import annotations

import dataclasses
import json
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgedb import EdgeDBError, FormatError, UnsupportedModelError
from edgedb.text.spec import TokenizerSpec
from edgedb.text.tokenizer import Tokenizer, load_tokenizer

TEXTS = [
    "Hello world",
    "  two  spaces\n\tand a tab ",
    "Zwölf Boxkämpfer, 日本語 and 😀👩‍👩‍👧!",
    " ",
    "\n",
    "x",
    "a\0b",
    "<s></s><|im_start|><|im_end|>",
]


@pytest.fixture(scope="module", params=["sentencepiece", "tokenizers"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return load_tokenizer(spec_of(request.param, request))


def spec_of(kind: str, request: pytest.FixtureRequest) -> TokenizerSpec:
    if kind == "tokenizers":
        spec: TokenizerSpec = request.getfixturevalue("tiny_spec")
        return spec
    data: bytes = request.getfixturevalue("tiny_sentencepiece")
    return TokenizerSpec("sentencepiece", data, bos_id=1, eos_ids=(2,), add_bos=True)


def streamed(tokenizer: Tokenizer, ids: list[int], after: list[int] | None = None) -> str:
    stream = tokenizer.stream(after or [])
    pieces = [stream.push(i) for i in ids]
    for piece in pieces:
        piece.encode("utf-8")
    return "".join(pieces) + stream.finish()


@pytest.mark.parametrize("text", TEXTS)
def test_text_survives_the_round_trip(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert streamed(tokenizer, ids) == text


def test_random_ids_stream_to_the_decoded_text(tokenizer: Tokenizer) -> None:
    rng = np.random.default_rng(0)
    for length in (1, 2, 7, 50):
        for _ in range(50):
            ids = rng.integers(0, tokenizer.vocab_size + 3, length).tolist()
            assert streamed(tokenizer, ids) == tokenizer.decode(ids)


def test_a_continuation_joins_to_the_text_of_the_whole(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("Once upon a time there was a house", add_bos=False)
    for cut in range(len(ids)):
        head, tail = ids[:cut], ids[cut:]
        assert tokenizer.decode(head) + streamed(tokenizer, tail, head) == tokenizer.decode(ids)


def test_no_half_characters(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("日本語😀é", add_bos=False)
    stream = tokenizer.stream()
    text = ""
    for i in ids:
        text += stream.push(i)
        assert "日本語😀é".startswith(text)
    assert text + stream.finish() == "日本語😀é"


def test_a_character_that_never_ends_is_replaced(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("😀", add_bos=False)
    while tokenizer.decode(ids) == "😀":
        ids.pop()
    stream = tokenizer.stream()
    assert "".join(stream.push(i) for i in ids) == ""
    assert stream.finish() == "\ufffd"


def test_special_tokens_are_skipped_in_text_and_parsed_on_request(tokenizer: Tokenizer) -> None:
    bos, eos = (1, 2)
    spelled = tokenizer.decode([bos], skip_special=False)
    end = tokenizer.decode([eos], skip_special=False)
    assert spelled and end
    text = f"{spelled}hi{end}"
    ids = tokenizer.encode(text, add_bos=False, special=True)
    assert (ids[0], ids[-1]) == (bos, eos)
    assert tokenizer.decode(ids) == "hi"
    plain = tokenizer.encode(text, add_bos=False)
    assert bos not in plain and eos not in plain
    assert tokenizer.decode(plain) == text


def test_bos_as_the_model_wants_it_or_as_asked(tokenizer: Tokenizer) -> None:
    with_bos = tokenizer.encode("hi", add_bos=True)
    without = tokenizer.encode("hi", add_bos=False)
    assert with_bos == [1, *without]
    assert tokenizer.encode("", add_bos=False) == []
    assert tokenizer.encode("", add_bos=True) == [1]


def test_sentencepiece_adds_bos_by_default_if_the_model_does(tiny_sentencepiece: bytes) -> None:
    spec = TokenizerSpec("sentencepiece", tiny_sentencepiece, 1, (2,), add_bos=True)
    assert load_tokenizer(spec).encode("hi")[0] == 1
    plain = load_tokenizer(dataclasses.replace(spec, add_bos=False))
    assert plain.encode("hi")[0] != 1


def test_lone_surrogates_are_refused_in_one_line(tokenizer: Tokenizer) -> None:
    with pytest.raises(EdgeDBError, match="character 1") as error:
        tokenizer.encode("a\ud800b")
    assert "\n" not in str(error.value)


def test_threads_do_not_disturb_each_other(tokenizer: Tokenizer) -> None:
    text = "<s>hi</s><|im_start|>" * 20
    expected = {flag: tokenizer.encode(text, special=flag) for flag in (False, True)}
    wrong: list[int] = []

    def run(flag: bool) -> None:
        wrong.extend(1 for _ in range(50) if tokenizer.encode(text, special=flag) != expected[flag])

    threads = [threading.Thread(target=run, args=(n % 2 == 0,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=40))
def test_any_text_survives(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_bos=False)
    assert tokenizer.decode(ids) == text
    assert streamed(tokenizer, ids) == text


@pytest.mark.parametrize("kind", ["sentencepiece", "tokenizers"])
@pytest.mark.parametrize("data", [b"", b"garbage", b"\0" * 200, b"{}", b'{"version":"1.0"}'])
def test_a_damaged_tokenizer_is_one_line(kind: str, data: bytes) -> None:
    with pytest.raises(FormatError, match=r"tokenizer\.file") as error:
        load_tokenizer(TokenizerSpec(kind, data))  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_a_truncated_tokenizer_is_refused(tiny_bpe: bytes, tiny_sentencepiece: bytes) -> None:
    with pytest.raises(FormatError):
        load_tokenizer(TokenizerSpec("tokenizers", tiny_bpe[: len(tiny_bpe) // 2]))
    with pytest.raises(FormatError):
        load_tokenizer(TokenizerSpec("sentencepiece", tiny_sentencepiece[:3000]))


def test_special_ids_outside_the_vocabulary(tiny_bpe: bytes) -> None:
    with pytest.raises(FormatError, match="bos_id 320"):
        load_tokenizer(TokenizerSpec("tokenizers", tiny_bpe, bos_id=320))
    with pytest.raises(FormatError, match="eos_ids 999"):
        load_tokenizer(TokenizerSpec("tokenizers", tiny_bpe, eos_ids=(0, 999)))


def test_a_decoder_that_is_not_known_is_named(tiny_bpe: bytes) -> None:
    document = json.loads(tiny_bpe)
    document["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    with pytest.raises(UnsupportedModelError, match="WordPiece"):
        load_tokenizer(TokenizerSpec("tokenizers", json.dumps(document).encode()))


def test_limits_carried_over_from_training_do_not_apply(tiny_bpe: bytes) -> None:
    from tokenizers import Tokenizer as Library

    library = Library.from_buffer(tiny_bpe)
    library.enable_truncation(4)
    library.enable_padding(length=50)
    spec = TokenizerSpec("tokenizers", library.to_str().encode())
    text = "There was a little girl named Lily"
    tokenizer = load_tokenizer(spec)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_llama_style_tokenizer_json() -> None:
    """Byte fallback, spaces as marks and a prefix space, as in Llama 2."""
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, normalizers

    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁", "a", "▁a"]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    library = Library(
        models.BPE(vocabulary, [("▁", "a")], unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    library.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    library.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    library.add_special_tokens(["<s>", "</s>"])
    tokenizer = load_tokenizer(TokenizerSpec("tokenizers", library.to_str().encode(), 1, (2,)))
    for text in ("a a", " a", "é😀", "a é a"):
        ids = tokenizer.encode(text, add_bos=True)
        assert tokenizer.decode(ids) == text == library.decode(ids)
        assert streamed(tokenizer, ids) == text


def test_metadata_round_trip(tiny_spec: TokenizerSpec) -> None:
    raw = json.loads(json.dumps(tiny_spec.to_metadata()))
    assert TokenizerSpec.from_metadata(raw, tiny_spec.data) == tiny_spec
    assert "prefix" not in raw  # an older edgedb reads the file
    first = dataclasses.replace(tiny_spec, prefix="first")
    assert TokenizerSpec.from_metadata(first.to_metadata(), tiny_spec.data) == first


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "words"}, "kind"),
        ({"bos_id": -1}, "bos_id"),
        ({"bos_id": "1"}, "bos_id"),
        ({"bos_id": True}, "bos_id"),
        ({"eos_ids": 2}, "eos_ids"),
        ({"eos_ids": [2, None]}, "eos_ids"),
        ({"add_bos": 1}, "add_bos"),
        ({"add_bos": True, "bos_id": None}, "add_bos"),
        ({"chat_template": 3}, "chat_template"),
        ({"chat_template": "x" * (1 << 21)}, "chat_template"),
        ({"special_tokens": ["<s>"]}, "special_tokens"),
        ({"special_tokens": {"bos_token": 1}}, "special_tokens"),
        ({"prefix": "never"}, "prefix"),
        ({"prefix": []}, "prefix"),
        ({"merges": []}, "merges"),
    ],
)
def test_metadata_that_is_wrong(
    tiny_spec: TokenizerSpec, change: dict[str, object], message: str
) -> None:
    with pytest.raises(FormatError, match=message) as error:
        TokenizerSpec.from_metadata({**tiny_spec.to_metadata(), **change}, b"")
    assert len(str(error.value)) < 200


def test_metadata_must_be_an_object() -> None:
    with pytest.raises(FormatError, match="object"):
        TokenizerSpec.from_metadata([], b"")


def test_ids_and_text_equal_the_library_on_a_real_model(shared: Path) -> None:
    import sentencepiece

    data = (shared / "models/stories260K/tokenizer.model").read_bytes()
    library = sentencepiece.SentencePieceProcessor(model_proto=data)
    tokenizer = load_tokenizer(TokenizerSpec("sentencepiece", data, 1, (2,), True))
    for text in [*TEXTS, "Once upon a time, there was a little girl."]:
        ids = tokenizer.encode(text, add_bos=False)
        assert ids == library.encode(text)
        assert tokenizer.decode(ids) == library.decode(ids)
    rng = np.random.default_rng(1)
    for _ in range(500):
        # Without raw bytes: where they are no UTF-8, the libraries differ in how they say so.
        ids = rng.integers(259, 512, 8).tolist()
        assert tokenizer.decode(ids) == library.decode(ids)
    ids = np.load(shared / "ref/stories260K_ref.npz")["ids"].tolist()
    assert tokenizer.encode(tokenizer.decode(ids)) == ids
