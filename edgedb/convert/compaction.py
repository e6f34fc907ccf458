"""A ``tokenizer.json`` made into what opens at once: its vocabulary and merges as tables."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ..ops.merges import can_merge
from ..text.merging import MergingTokenizer
from ..text.piece_tables import PieceTables, tables_of
from ..text.spec import TokenizerSpec
from ..text.tokenizer import Tokenizer, load_tokenizer
from ..text.tokenizer_json import read_model
from ..text.tokenizers_vocabulary import BYTE_OF_CHARACTER

# Pieces whose texts are encoded both ways before the tables count.
_TRIED = 4096


def compacted(spec: TokenizerSpec) -> TokenizerSpec:
    """``spec`` with its vocabulary and merges in tables; as it is where they would not say all.

    So stay a SentencePiece model, a Unigram model, one that knows an unknown token which a text can
    reach, and one whose merges spell a control token. What is made is tried, too.
    """
    if spec.kind != "tokenizers" or not can_merge():
        return spec
    document, model = read_model(spec.data)
    if model.get("type") != "BPE":
        return spec
    tables = tables_of(model)
    if tables is None or not _says_all(document, model, tables):
        return spec
    data = _without_tables(document, model)
    if model.get("ignore_merges"):
        joined = MergingTokenizer(data, tables).pieces(dict.fromkeys(tables.texts()))
        whole = [number for number, found in enumerate(joined.values()) if found != [number]]
        tables = replace(tables, whole=np.array(whole, np.int32))
    found = replace(spec, kind="bpe", data=data, tables=tables)
    return found if _agree(load_tokenizer(spec), load_tokenizer(found), tables) else spec


def _says_all(document: Mapping[str, Any], model: Mapping[str, Any], tables: PieceTables) -> bool:
    """Whether every character becomes pieces or, without a token for the unknown, nothing."""
    if model.get("byte_fallback"):
        return tables.of_bytes() is not None
    return model.get("unk_token") is None or _knows_all_bytes(document, tables)


def _knows_all_bytes(document: Mapping[str, Any], tables: PieceTables) -> bool:
    """Whether all that words are made of is the spelling of bytes, and each has a piece."""
    last = document.get("pre_tokenizer") or {}
    while last.get("type") == "Sequence":
        last = (last["pretokenizers"] or [{}])[-1]
    characters = tables.of_characters()
    known = all(ord(c) < len(characters) and characters[ord(c)] >= 0 for c in BYTE_OF_CHARACTER)
    return last.get("type") == "ByteLevel" and known


def _without_tables(document: Mapping[str, Any], model: Mapping[str, Any]) -> bytes:
    """The file without vocabulary and merges. An added token has the id of the piece of the same
    text, or the next that is free, as the package counts."""
    added = [token for token in document.get("added_tokens") or [] if token["content"]]
    id_of = dict(model["vocab"])
    for token in added:
        id_of.setdefault(token["content"], len(id_of))
    settings = {key: value for key, value in model.items() if key not in ("vocab", "merges")}
    kept = {key: value for key, value in document.items() if key not in ("truncation", "padding")}
    numbered = [{**token, "id": id_of[token["content"]]} for token in added]
    return json.dumps({**kept, "added_tokens": numbered, "model": settings}).encode()


def _agree(one: Tokenizer, other: Tokenizer, tables: PieceTables) -> bool:
    """Whether ``other``, with ``tables``, gives the same ids as ``one``."""
    control = one.special_ids | one.marker_ids
    if (one.vocab_size, one.leading, control) != (
        other.vocab_size,
        other.leading,
        other.special_ids | other.marker_ids,
    ):
        return False
    some = np.linspace(0, one.vocab_size - 1, min(one.vocab_size, _TRIED)).astype(int).tolist()
    spelled = [one.token_bytes(number, skip_special=False) for number in (*some, *control)]
    if spelled != [other.token_bytes(number, skip_special=False) for number in (*some, *control)]:
        return False
    texts = [data.decode("utf-8", "replace") for data in spelled]
    return not control & set(np.flatnonzero(tables.made()).tolist()) and all(
        one.encode(text, special=special) == other.encode(text, special=special)
        for text in ("".join(texts), " ".join(texts))
        for special in (False, True)
    )
