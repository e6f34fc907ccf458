"""``tokenizer.json``: its parts put together at random, some of them hostile, and mutated."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from random import Random
from typing import Any

from edgedb.convert.compaction import compacted
from edgedb.text.spec import TokenizerSpec
from edgedb.text.tokenizer import load_tokenizer

from ...tiny_tokenizers import replaced_characters
from .. import mutators
from . import models
from .kind import Files, Kind

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_REGEXES = (
    _LLAMA3, r"\s+", r" {2,}", r"\p{N}{1,3}", r"[\p{L}]", "", "(a*)*b", r"(\w+\s?)+$", r"(a|aa)+$",
    "(?:a{1,1000}){1,1000}", r"(.*)(.*)(.*)(.*)x", r"(?<=a)b", r"(a)\1+", "((((((((((a))))))))))",
    "[", "(?", r"\p{Nope}", "a{99999}", "x*", r"^", r"$", r"\b", r".|\n", r"(?=.)", r"[^\s\S]",
    r"(?<n>a\g<n>?b)", "a?" * 30 + "a" * 30, "\ud800", "(" * 500,
)  # fmt: skip
_ATOMS = ("a", "b", ".", r"\s", r"\p{L}", "[ab]", "[^b]", r"\w", r"\S", r"\b", "$", r"\s+(?!\S)")
_QUANTIFIERS = ("", "", "", "*", "+", "?", "{2,}", "{1,3}", "{0,9}", "*+", "+?", "{3}", "{60}")
_WORDS = ("\u2581", " ", "", "a", "ab", "\n", "\u2581" * 64, "x" * 5000, "\U0001f600", "\0")


def _regex(rng: Random, depth: int = 0) -> str:
    """A random regular expression; if one that is accepted is slow, the rule is wrong."""
    branches = []
    for _ in range(rng.choice((1, 1, 2, 3))):
        branch = ""
        for _ in range(rng.choice((1, 2, 2, 3))):
            atom = rng.choice(_ATOMS)
            if depth < 3 and rng.random() < 0.3:
                atom = rng.choice(("(?:", "(", "(?=", "(?!", "(?>")) + _regex(rng, depth + 1) + ")"
            branch += atom + rng.choice(_QUANTIFIERS)
        branches.append(branch)
    return "|".join(branches)


def _pattern(rng: Random) -> dict[str, str]:
    if rng.random() < 0.5:
        return {"Regex": _regex(rng) if rng.random() < 0.6 else rng.choice(_REGEXES)}
    return {"String": rng.choice(_WORDS)}


def _charsmap(rng: Random) -> str:
    size = rng.choice((0, 4, 8, 1024, 4096, (1 << 32) - 4, (1 << 31)))
    trie = rng.randbytes(rng.choice((0, 3, 8, 1024)))
    return base64.b64encode(size.to_bytes(4, "little") + trie + b"abc\0def\0").decode()


def _part(rng: Random, kind: str, **fields: Any) -> dict[str, Any]:
    """A part with its fields, of which now and then one is missing or another value."""
    part = {"type": kind, **fields}
    if fields and rng.random() < 0.05:
        key = rng.choice(list(fields))
        part[key] = mutators.value(rng)
        if rng.random() < 0.3:
            del part[key]
    return part


def _normalizer(rng: Random) -> dict[str, Any]:
    growth = "a" * rng.choice((2, 16, 999))
    forms = ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Nmt", "ByteLevel")
    word, chance = rng.choice(_WORDS), rng.random() < 0.5
    return rng.choice(
        (
            _part(rng, rng.choice(forms)),
            _part(rng, "Strip", strip_left=True, strip_right=chance),
            _part(rng, "Prepend", prepend=word),
            _part(rng, "Replace", pattern=_pattern(rng), content=word),
            _part(rng, "Replace", pattern={"String": "a"}, content=growth),
            _part(rng, "Precompiled", precompiled_charsmap=_charsmap(rng)),
            _part(rng, "BertNormalizer", clean_text=True, lowercase=True, strip_accents=None),
        )
    )


def _pre_tokenizer(rng: Random) -> dict[str, Any]:
    behaviors = ("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous")
    schemes = ("always", "first", "never", "x")
    others = ("Whitespace", "WhitespaceSplit", "BertPreTokenizer", "UnicodeScripts")
    mark, behavior = rng.choice(_WORDS)[:1] or "\u2581", rng.choice(behaviors)
    chance, scheme = rng.random() < 0.5, rng.choice(schemes)
    return rng.choice(
        (
            _part(rng, "ByteLevel", add_prefix_space=chance, trim_offsets=True, use_regex=chance),
            _part(rng, "Metaspace", replacement=mark, prepend_scheme=scheme, split=chance),
            _part(rng, "Split", pattern=_pattern(rng), invert=chance, behavior=behavior),
            _part(rng, "Digits", individual_digits=chance),
            _part(rng, "Punctuation", behavior=behavior),
            _part(rng, rng.choice(others)),
            _part(rng, "CharDelimiterSplit", delimiter="a"),
            _part(rng, "FixedLength", length=rng.choice((0, 1, 5, 1 << 40))),
        )
    )


def _decoder(rng: Random) -> dict[str, Any]:
    start = rng.choice((0, 1, 1 << 40))
    word = rng.choice(_WORDS)
    return rng.choice(
        (
            _part(rng, "ByteLevel", add_prefix_space=True, trim_offsets=True, use_regex=True),
            _part(rng, "Metaspace", replacement="\u2581", prepend_scheme="always", split=True),
            _part(rng, "ByteFallback"),
            _part(rng, "Fuse"),
            _part(rng, "Strip", content=" ", start=start, stop=0),
            _part(rng, "Replace", pattern=_pattern(rng), content=word),
            _part(rng, "WordPiece", prefix="##", cleanup=True),
            _part(rng, "CTC", pad_token="a", word_delimiter_token="b", cleanup=True),
        )
    )


_PARTS = {
    "normalizer": (_normalizer, "normalizers"),
    "pre_tokenizer": (_pre_tokenizer, "pretokenizers"),
    "decoder": (_decoder, "decoders"),
}


def _sequence(rng: Random, key: str) -> Any:
    make, plural = _PARTS[key]
    length = rng.choice((1, 1, 2, 3, 8, 40))
    part: Any = make(rng)
    if length > 1 or rng.random() < 0.3:
        part = {"type": "Sequence", plural: [make(rng) for _ in range(length)]}
    for _ in range(rng.choice((0, 0, 0, 0, 1, 130))):
        part = {"type": "Sequence", plural: [part]}
    return part


def _added(number: int, content: str) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": content, **flags, "special": True}


def _llama2() -> dict[str, Any]:
    """Byte fallback, spaces as marks and a prefix space, as in Llama 2."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
    pieces += ["\u2581", "a", "\u2581a"]
    mark, text = {"String": "\u2581"}, {"Sequence": {"id": "A", "type_id": 0}}
    normalizers = [
        {"type": "Prepend", "prepend": "\u2581"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
    ]
    decoders = [
        {"type": "Replace", "pattern": mark, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(i, pieces[i]) for i in range(3)],
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, text],
            "pair": [text, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {piece: i for i, piece in enumerate(pieces)},
            "merges": [["\u2581", "a"]],
        },
    }


def _unigram() -> dict[str, Any]:
    document = _llama2()
    pieces = list(document["model"]["vocab"])
    document["model"] = {
        "type": "Unigram", "unk_id": 0, "byte_fallback": True,
        "vocab": [[piece, -float(i)] for i, piece in enumerate(pieces)],
    }  # fmt: skip
    document["normalizer"] = {"type": "NFKC"}
    document["pre_tokenizer"] = {
        "type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True
    }  # fmt: skip
    document["decoder"] = {
        "type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True
    }  # fmt: skip
    return document


class TokenizerJsonKind(Kind):
    name = "tokenizer.json"
    share = 4

    def prepare(self, folder: Path) -> None:
        self.table = replaced_characters()
        self.documents = [json.loads(models.specs()[0].data), _llama2(), _unigram()]

    def make(self, rng: Random) -> Files:
        document = dict(rng.choice(self.documents))
        for key in _PARTS:
            if rng.random() < (0.4 if key != "decoder" else 0.1):
                document[key] = _sequence(rng, key)
        if rng.random() < 0.02:
            table = base64.b64encode(mutators.data(rng, self.table)).decode()
            document["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": table}
        chance = rng.random()
        if chance < 0.25:
            key = rng.choice(list(document))
            document[key] = mutators.document(rng, document[key])
        elif chance < 0.4:
            document = mutators.document(rng, document)
        elif chance < 0.5:
            document["model"] = self._model(rng, dict(document["model"]))
        written = mutators.encoded(mutators.dumps(rng, document))
        return {"tokenizer.json": mutators.data(rng, written) if chance > 0.97 else written}

    def _model(self, rng: Random, model: dict[str, Any]) -> dict[str, Any]:
        changes: dict[str, Any] = {
            "dropout": rng.choice((0.0, 0.1, 1.0, 2.0, -1)),
            "continuing_subword_prefix": rng.choice(("", "##", "x" * 100, "é")),
            "end_of_word_suffix": rng.choice(("", "</w>", "é" * 50)),
            "unk_token": rng.choice((None, "a", "nope", "")),
            "unk_id": rng.choice((None, 0, 5, 1 << 40, -1)),
            "type": rng.choice(("BPE", "Unigram", "WordPiece", "WordLevel", "X", None)),
            "byte_fallback": rng.random() < 0.5,
            "ignore_merges": rng.random() < 0.5,
            "fuse_unk": rng.random() < 0.5,
        }
        for key in rng.sample(list(changes), rng.choice((1, 2, 4))):
            model[key] = changes[key]
        if rng.random() < 0.3:
            del model[rng.choice(list(model))]
        return model

    def use(self, files: Files, folder: Path) -> None:
        spec = TokenizerSpec("tokenizers", files["tokenizer.json"])
        tokenizer = load_tokenizer(spec)
        tables = compacted(spec)
        other = tokenizer if tables is spec else load_tokenizer(tables)
        for text in models.TEXTS:
            for special in (False, True):
                ids = tokenizer.encode(text, special=special)
                tokenizer.decode(ids)
                if any(i >= tokenizer.vocab_size for i in ids):
                    raise ValueError("an id outside the vocabulary")
                if other.encode(text, special=special) != ids:
                    raise ValueError("tables that give other ids")
