"""Vocabularies of a ``tokenizer.json`` against the library's own encoder and decoder."""

from __future__ import annotations

import json
from random import Random

import pytest
import tokenizers
from texts import random_texts
from tiny_tokenizers import like_sentencepiece
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

from edgedb.convert.sources.pre_tokenizers import KNOWN
from edgedb.text.spec import TokenizerSpec
from edgedb.text.tokenizer import load_tokenizer


def gemma_like() -> tokenizers.Tokenizer:
    """Runs of the mark for a space are added tokens, and so are line breaks and a tag."""
    pieces = ["<pad>", "<eos>", *(f"<0x{b:02X}>" for b in range(256)), *"▁ab\n", "▁▁", "▁▁▁▁"]
    merges = [("▁", "▁"), ("▁▁", "▁▁")]
    model = models.BPE({p: i for i, p in enumerate(pieces)}, merges, byte_fallback=True)
    library = tokenizers.Tokenizer(model)
    library.normalizer = normalizers.Replace(" ", "▁")
    library.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    library.add_special_tokens([AddedToken("<eos>", normalized=False)])
    added = ("▁▁", "▁▁▁▁", "\n", "<b▁>")
    library.add_tokens([AddedToken(text, normalized=False) for text in added])
    return library


def test_added_tokens_that_are_runs_of_the_mark_are_spaces() -> None:
    library = gemma_like()
    tokenizer = load_tokenizer(TokenizerSpec("tokenizers", library.to_str().encode(), None, (1,)))
    for text in ("a\n    b", "  ab", "      a", " a  b\n\n"):
        ids = tokenizer.encode(text)
        assert ids == library.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids) == library.decode(ids) == text
    ids = tokenizer.encode("<b▁>")
    assert len(ids) == 1 and tokenizer.decode(ids) == library.decode(ids) == "<b >"


def test_a_marker_keeps_the_spelling_that_the_template_writes() -> None:
    library = gemma_like()
    spec = TokenizerSpec("tokenizers", library.to_str().encode(), None, (1,), chat_template="<b▁>")
    tokenizer = load_tokenizer(spec)
    assert tokenizer.decode(tokenizer.encode("<b▁>")) == "<b▁>"


def random_byte_level(rng: Random, data: bytes) -> tokenizers.Tokenizer:
    """A tokenizer of byte-level BPE, split and normalized in one of the ways that models do."""
    document = {**json.loads(data), **KNOWN[rng.choice(sorted(KNOWN))].parts(), "added_tokens": []}
    document["model"]["ignore_merges"] = rng.random() < 0.5
    library = tokenizers.Tokenizer.from_str(json.dumps(document))
    if rng.random() < 0.3:
        chances = rng.random() < 0.5, rng.random() < 0.5
        library.pre_tokenizer = pre_tokenizers.ByteLevel(
            add_prefix_space=chances[0], use_regex=chances[1]
        )
    folded = normalizers.Sequence([normalizers.NFD(), normalizers.Lowercase()])
    library.normalizer = rng.choice((None, normalizers.NFC(), normalizers.NFKC(), folded))
    return library


def random_byte_fallback(rng: Random, data: bytes) -> tokenizers.Tokenizer:
    """A tokenizer like SentencePiece's, with the space before a text put in one of four ways."""
    scheme = rng.choice(("prepended", "always", "first", "never"))
    document = {**json.loads(like_sentencepiece(data, "always")), "added_tokens": []}
    library = tokenizers.Tokenizer.from_str(json.dumps(document))
    if scheme != "prepended":
        library.normalizer = None
        library.pre_tokenizer = pre_tokenizers.Metaspace(
            prepend_scheme=scheme, split=rng.random() < 0.5
        )
    if scheme == "never":
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        library.decoder = decoders.Sequence(steps)
    return library


def add_tokens(rng: Random, library: tokenizers.Tokenizer) -> None:
    """A few, special or not, that take spaces with them, stand alone, or are looked for late."""
    texts = ("<|im_start|>", "<|im_end|>", "<think>", "[INST]", "<s>", "\n\n", " " * 8, "été", "12")
    for text in rng.sample(texts, rng.randrange(1, 6)):
        special = rng.random() < 0.5
        names = ("lstrip", "rstrip", "single_word", "normalized")
        flags = {name: rng.random() < 0.2 for name in names}
        token = AddedToken(text, special=special, **flags)
        (library.add_special_tokens if special else library.add_tokens)([token])


@pytest.mark.parametrize("seed", range(40))
def test_any_tokenizer_gives_the_ids_of_the_library(
    seed: int, tiny_bpe: bytes, tiny_sentencepiece: bytes
) -> None:
    rng = Random(seed)
    library = (
        random_byte_level(rng, tiny_bpe)
        if seed % 2
        else random_byte_fallback(rng, tiny_sentencepiece)
    )
    add_tokens(rng, library)
    tokenizer = load_tokenizer(TokenizerSpec("tokenizers", library.to_str().encode()))
    # Where one is to be normalized, the library's decoder writes "[inst]" for "[INST]".
    respelled = any(token.normalized for token in library.get_added_tokens_decoder().values())
    for text in random_texts(seed, 40):
        marked = tokenizer.encode(text, special=True)
        assert marked == library.encode(text, add_special_tokens=False).ids, repr(text)
        library.encode_special_tokens = True
        assert tokenizer.encode(text) == library.encode(text, add_special_tokens=False).ids
        library.encode_special_tokens = False
        if not respelled:
            assert tokenizer.decode(marked) == library.decode(marked, skip_special_tokens=True)
            whole = tokenizer.decode(marked, skip_special=False)
            assert whole == library.decode(marked, skip_special_tokens=False)
        stream = tokenizer.stream()
        assert "".join(map(stream.push, marked)) + stream.finish() == tokenizer.decode(marked)
