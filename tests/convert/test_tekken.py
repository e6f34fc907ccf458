"""tekken.json against its own rules: the pair of the lowest rank is joined, until there is none."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from checkpoints import write_hf
from texts import TRICKY, random_texts
from tiny_tokenizers import tekken

import edgedb
from edgedb.convert.export import export
from edgedb.convert.sources import open_source
from edgedb.convert.sources.tekken import tokenizer_json
from edgedb.convert.storage import Options
from edgedb.errors import CheckpointWarning, FormatError, UnsupportedModelError
from edgedb.text.spec import TokenizerSpec
from edgedb.text.tokenizer import load_tokenizer

N_SPECIAL = 20


def converted(document: Any) -> bytes:
    return tokenizer_json(json.dumps(document).encode())


def joined_by_rank(document: dict[str, Any], text: str) -> list[int]:
    """Ids of ``text`` by the file alone."""
    ranks = {base64.b64decode(token["token_bytes"]): token["rank"] for token in document["vocab"]}
    split = tokenizers.pre_tokenizers.Split(
        tokenizers.Regex(document["config"]["pattern"]), behavior="isolated"
    )
    ids: list[int] = []
    for _, (start, end) in split.pre_tokenize_str(text):
        word = text[start:end].encode()
        parts = [word] if word in ranks else [bytes([byte]) for byte in word]
        while len(parts) > 1:
            pairs = [ranks.get(a + b, 1 << 30) for a, b in pairwise(parts)]
            best = min(pairs)
            if best == 1 << 30:
                break
            at = pairs.index(best)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        ids += [N_SPECIAL + ranks[part] for part in parts]
    return ids


def test_ids_are_those_of_the_ranks() -> None:
    document = tekken()
    tokenizer = load_tokenizer(TokenizerSpec("tokenizers", converted(document)))
    for text in (*TRICKY, *random_texts(1, 200)):
        ids = tokenizer.encode(text)
        assert ids == joined_by_rank(document, text), repr(text)
        assert tokenizer.decode(ids) == text


def test_a_word_is_its_token_where_no_pairs_lead_to_it() -> None:
    document = tekken()
    rank = len(document["vocab"])
    word = base64.b64encode("Ωmega".encode()).decode()
    document["vocab"].append({"rank": rank, "token_bytes": word, "token_str": "Ωmega"})
    document["config"]["default_vocab_size"] += 1
    tokenizer = load_tokenizer(TokenizerSpec("tokenizers", converted(document)))
    assert tokenizer.encode("Ωmega") == [N_SPECIAL + rank] == joined_by_rank(document, "Ωmega")


def test_tokens_beyond_the_default_size_are_none() -> None:
    document = tekken()
    document["config"]["default_vocab_size"] -= 40
    tokenizer = load_tokenizer(TokenizerSpec("tokenizers", converted(document)))
    assert tokenizer.vocab_size == document["config"]["default_vocab_size"]


def test_a_folder_with_nothing_else_is_exported(tmp_path: Path) -> None:
    document = tekken()
    size = document["config"]["default_vocab_size"]
    folder = write_hf(tmp_path / "m", b"", vocab_size=size)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    (folder / "tekken.json").write_text(json.dumps(document))
    export(open_source(folder), tmp_path / "m.dbb", Options(method="int8"))
    model = edgedb.load(tmp_path / "m.dbb")
    spec = model.tokenizer_spec
    assert (spec.bos_id, spec.eos_ids, spec.add_bos) == (1, (2,), True)
    assert spec.special_tokens["eos_token"] == "</s>"
    text = "[INST] Once upon a time[/INST]"
    assert model.tokenizer.encode(text) == [1, *joined_by_rank(document, text)]
    marked = model.tokenizer.encode(text, special=True, add_bos=False)
    assert (marked[0], marked[-1]) == (3, 4)
    assert marked[1:-1] == joined_by_rank(document, " Once upon a time")


def test_special_tokens_of_the_file_count() -> None:
    named = [
        {"rank": 0, "token_str": "<unk>", "is_control": True},
        {"rank": 1, "token_str": "<s>", "is_control": True},
        {"rank": 2, "token_str": "[THINK]", "is_control": False},
    ]
    data = converted({**tekken(version="v13"), "special_tokens": named})
    tokenizer = load_tokenizer(TokenizerSpec("tokenizers", data))
    assert tokenizer.encode("[THINK]<s><SPECIAL_19>", special=True) == [2, 1, 19]
    assert tokenizer.decode([2, 1, 19]) == "[THINK]"


def vocab(number: int, **values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: document["vocab"][number].update(values)


def config(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: document["config"].update(values)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda document: document.clear(), "config is no JSON object"),
        (vocab(300, rank=7), "token 300 is not of this rank"),
        (vocab(300, token_bytes="?"), "token 300: token_bytes is no base64"),
        (vocab(300, token_bytes=None), "token 300: token_bytes is no base64"),
        (vocab(300, token_bytes=""), "token 300 is not of this rank, or empty"),
        (vocab(300, token_bytes="QUFB" * 100), "or too long"),
        (vocab(300, token_bytes="AA=="), "a token is there twice"),
        (vocab(65, token_bytes="QUFBQQ=="), "a byte is no token"),
        (vocab(300, token_bytes="PHM+"), "special token is spelled like another"),
        (lambda document: document.update(vocab={}), "vocab is no list"),
        (lambda document: document["vocab"].insert(0, 5), "token 0 is no JSON object"),
        (config(default_vocab_size=1 << 20), "fewer tokens than"),
        (config(default_vocab_size="many"), "default_vocab_size is no number"),
        (config(default_num_special_tokens=1 << 20), "default_num_special_tokens is no number"),
        (config(default_num_special_tokens=5), "more than 5 special tokens"),
        (config(version="v99"), "no special_tokens"),
        (config(pattern=5), "pattern is no text"),
        (lambda document: document.update(special_tokens=[{"rank": 0}]), "special token 0 without"),
    ],
)
def test_a_damaged_file_is_named(change: Callable[[dict[str, Any]], None], reason: str) -> None:
    document = tekken()
    change(document)
    with pytest.raises(FormatError, match=rf"^tekken\.json: .*{reason}"):
        converted(document)


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"\xff", b"[" * 9999, b"[0" + b",0" * (1 << 21)]
)
def test_what_is_no_such_file(data: bytes) -> None:
    with pytest.raises(FormatError, match=r"^tekken\.json: "):
        tokenizer_json(data)


def test_a_pattern_that_could_take_for_ever_is_refused(tmp_path: Path) -> None:
    document = tekken(pattern=r"(\w+\s?)+$")
    folder = write_hf(tmp_path / "m", b"", vocab_size=document["config"]["default_vocab_size"])
    (folder / "tokenizer.json").unlink()
    (folder / "tekken.json").write_text(json.dumps(document))
    with pytest.raises(UnsupportedModelError, match=r"^m: tekken\.json.* regular expression"):
        open_source(folder)


def test_beside_a_tokenizer_json_it_says_how_text_is_split(tmp_path: Path) -> None:
    """Mistral Small 3.1's tokenizer.json has the split of Llama 3."""
    document = tekken()
    right = converted(document)
    wrong = json.loads(right)
    wrong["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\p{L}|\s+"
    size = document["config"]["default_vocab_size"]
    specs = []
    for name, data in (("right", right), ("wrong", json.dumps(wrong).encode())):
        folder = write_hf(tmp_path / name, data, vocab_size=size, bos_token_id=1)
        (folder / "tokenizer_config.json").unlink()
        (folder / "tekken.json").write_text(json.dumps(document))
        if name == "wrong":
            with pytest.warns(
                CheckpointWarning, match=r"^wrong: .*than tekken\.json, which counts"
            ):
                specs.append(open_source(folder).tokenizer_spec)
        else:
            specs.append(open_source(folder).tokenizer_spec)
    text = "Once upon a time 12"
    for spec in specs:
        assert load_tokenizer(spec).encode(text, add_bos=False) == joined_by_rank(document, text)
    (folder / "tekken.json").write_text("{}")
    with pytest.raises(FormatError, match=r"^wrong: tekken\.json: config"):
        open_source(folder)
