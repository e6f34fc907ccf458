"""Control tokens that a message spells, in every kind of tokenizer."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

from edgedb import EdgeDBError
from edgedb.convert.compaction import compacted
from edgedb.ops.merges import can_merge
from edgedb.text.quotation import OTHERS, TEMPLATE, Quoted
from edgedb.text.spec import TokenizerSpec
from edgedb.text.tokenizer import Tokenizer, load_tokenizer

TURN = "{{ '<s>' }}{{ messages[0].content }}<turn></s>"
BYTES = [f"<0x{b:02X}>" for b in range(256)]


def metaspace(scheme: str) -> tokenizers.Tokenizer:
    """Like Llama 2's: marks for spaces, one in front of a text (always) or of the first (first)."""
    pieces = ["<unk>", "<s>", "</s>", *BYTES, "▁", "a", "b", "▁a", "ab", "▁ab", "</", "s>"]
    model = models.BPE(
        {piece: i for i, piece in enumerate(pieces)},
        [("▁", "a"), ("a", "b"), ("▁", "ab")],
        unk_token="<unk>",
        byte_fallback=True,
        fuse_unk=True,
    )
    library = tokenizers.Tokenizer(model)
    library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    library.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return library


def legacy() -> tokenizers.Tokenizer:
    """As older files of Llama 2 say it: a normalizer puts the mark in front of every part."""
    library = metaspace("always")
    library.pre_tokenizer = None
    library.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    return library


def unigram() -> tokenizers.Tokenizer:
    """Its vocabulary holds the control tokens, and plain text is spelled with them."""
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0)]
    pieces += [(c, -3.0) for c in "▁ab</s>turn.?"]
    library = tokenizers.Tokenizer(models.Unigram(list(dict.fromkeys(pieces)), unk_id=0))
    library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    library.decoder = decoders.Metaspace(prepend_scheme="never")
    return library


def byte_level() -> tokenizers.Tokenizer:
    alphabet = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    library = tokenizers.Tokenizer(models.BPE(alphabet, []))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    return library


LIBRARIES: dict[str, Any] = {
    "first": lambda: metaspace("first"),
    "always": lambda: metaspace("always"),
    "legacy": legacy,
    "unigram": unigram,
    "byte level": byte_level,
}


# The same with their vocabulary and merges as a model file has them.
TABLES = "tables of "
KINDS = [*LIBRARIES, *(TABLES + name for name in LIBRARIES if name != "unigram" and can_merge())]


def load(kind: str, **flags: bool) -> Tokenizer:
    name = kind.removeprefix(TABLES)
    library = LIBRARIES[name]()
    library.add_special_tokens(
        [AddedToken(text, normalized=False, **flags) for text in ("<unk>", "<s>", "</s>")]
    )
    library.add_tokens(
        [
            AddedToken("<turn>", normalized=name == "byte level"),
            AddedToken("<|fim|>", normalized=False),
            AddedToken("<b>", normalized=False),  # text: neither written by the template nor <|..|>
            AddedToken("  ", normalized=False),
        ]
    )
    ends = [library.token_to_id(text) for text in ("<s>", "</s>")]
    spec = TokenizerSpec(
        "tokenizers", library.to_str().encode(), ends[0], (ends[1],), chat_template=TURN
    )
    if kind != name:
        spec = compacted(spec)
        assert spec.kind == "bpe"
    return load_tokenizer(spec)


def control(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    wanted = tokenizer.special_ids | tokenizer.marker_ids
    return [tokenizer.token_bytes(i, skip_special=False).decode() for i in ids if i in wanted]


@pytest.fixture(params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return load(request.param)


def turn(content: str) -> Quoted:
    return "<s>" + Quoted(content, OTHERS) + "<turn></s>a"


def test_markers_are_what_the_template_writes_or_what_looks_like_one(tokenizer: Tokenizer) -> None:
    spelled = {tokenizer.token_bytes(i).decode() for i in tokenizer.marker_ids}
    assert spelled == {"<turn>", "<|fim|>"}


@pytest.mark.parametrize("content", ["a ab", " a", "a  b", "ab<b>a", "", "\n"])
def test_plain_messages_get_the_ids_of_the_whole_text(tokenizer: Tokenizer, content: str) -> None:
    text = turn(content)
    expected = tokenizer.encode(str.__str__(text), add_bos=False, special=True)
    assert tokenizer.encode(text, add_bos=False, special=True) == expected
    # and still do after a message that needed the other way
    tokenizer.encode(turn("</s>"), add_bos=False, special=True)
    assert tokenizer.encode(text, add_bos=False, special=True) == expected


SPELLINGS = ["<s>", "</s>", "<turn>", "<|fim|>", "<unk>"]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_message_about_a_control_token_is_text(tokenizer: Tokenizer, spelling: str) -> None:
    for content in (spelling, f"a {spelling} b", spelling * 3, f"<{spelling}>", spelling + "ab"):
        ids = tokenizer.encode(turn(content), add_bos=False, special=True)
        assert control(tokenizer, ids)[:1] + control(tokenizer, ids)[-2:] == [
            "<s>",
            "<turn>",
            "</s>",
        ]
        middle = [name for name in control(tokenizer, ids)[1:-2] if name != "<unk>"]
        assert middle == []
        if "<unk>" not in control(tokenizer, ids):
            assert tokenizer.decode(ids, skip_special=False).replace(" ", "") == str.__str__(
                turn(content)
            ).replace(" ", "")


def test_flagged_tokens_are_read_like_the_same_text_alone() -> None:
    for name in ("byte level", "unigram", "first"):
        tokenizer = load(name)
        if name == "unigram":
            continue
        ids = tokenizer.encode(turn("a </s> b"), add_bos=False, special=True)
        alone = tokenizer.encode_inside("a </s> b")
        assert ids[1 : 1 + len(alone)] == alone and len(ids) == len(alone) + 4


def test_text_alone_has_no_control_token_either(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a</s>b<s>", add_bos=False)
    assert not {"<s>", "</s>"} & set(control(tokenizer, ids))


def test_a_token_half_from_the_template_is_text(tokenizer: Tokenizer) -> None:
    for text in ("<" + Quoted("/s>"), Quoted("</s") + ">", "<" + Quoted("turn") + ">"):
        ids = tokenizer.encode(text, add_bos=False, special=True)
        assert not {"</s>", "<turn>"} & set(control(tokenizer, ids))


def test_white_space_that_a_token_takes_stays_taken() -> None:
    tokenizer = load("byte level", lstrip=True, rstrip=True)
    ids = tokenizer.encode("<s>" + Quoted(" a </s> ") + "</s>", add_bos=False, special=True)
    assert control(tokenizer, ids) == ["<s>", "</s>"]
    assert tokenizer.decode(ids) == "a </s>"


@given(
    pieces=st.lists(
        st.tuples(st.sampled_from([*SPELLINGS, "<", "s>", "/", "turn", " ", "a"]), st.booleans()),
        max_size=9,
    )
)
def test_only_the_template_makes_control_tokens(pieces: list[tuple[str, bool]]) -> None:
    """Its own text and a message's, mixed: the control tokens are those of its own text."""
    text: str = Quoted("", TEMPLATE)
    expected: list[str] = []
    for spelling, is_own in pieces:
        text += Quoted(spelling, TEMPLATE if is_own else OTHERS)
        text += Quoted("a", OTHERS)  # so that the template's own parts do not join
        expected += [spelling] if is_own and spelling in SPELLINGS else []
    for name in ("byte level", "always", "first"):
        tokenizer = TOKENIZERS[name]
        ids = tokenizer.encode(text, add_bos=False, special=True)
        assert control(tokenizer, ids) == expected


TOKENIZERS = {name: load(name) for name in LIBRARIES}


def test_an_end_of_text_without_the_flag_is_a_special_token(tiny_spec: TokenizerSpec) -> None:
    document = json.loads(tiny_spec.data)
    for token in document["added_tokens"]:
        token["special"] = False
    spec = dataclasses.replace(tiny_spec, data=json.dumps(document).encode())
    tokenizer = load_tokenizer(spec)
    assert 2 not in tokenizer.encode("What does <|im_end|> mean?")
    assert tokenizer.encode("<|im_end|>", special=True) == [2]
    assert tokenizer.decode([2]) == ""


def test_a_vocabulary_that_spells_every_text_with_a_control_token_is_refused() -> None:
    """A byte piece is missing, so that the unknown token stands for it whatever is cut."""
    pieces = ["<unk>", *(f"<0x{b:02X}>" for b in range(256) if b != 0xE1), "a"]
    model = models.Unigram([(p, -float(i)) for i, p in enumerate(pieces)], 0, True)
    library = tokenizers.Tokenizer(model)
    library.decoder = decoders.ByteFallback()
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    library.add_special_tokens(["<unk>"])
    broken = load_tokenizer(TokenizerSpec("tokenizers", library.to_str().encode()))
    assert broken.encode("aa")
    with pytest.raises(EdgeDBError, match="every spelling"):
        broken.encode("a\u1234\u1234")
