"""Vocabularies of a ``tokenizer.json`` against the library's own encoder and decoder."""

from __future__ import annotations

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

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
