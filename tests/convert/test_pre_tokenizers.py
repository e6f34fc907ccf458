"""The splits behind GGUF's names: what each does to one text that tells them apart."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from checkpoints import CONFIG, weights, write_gguf
from places import ROOT
from tokenizers import Tokenizer

from edgedb.convert.sources import open_source
from edgedb.convert.sources.pre_tokenizers import KNOWN, PreTokenizer
from edgedb.errors import CheckpointWarning, UnsupportedModelError
from edgedb.text.tokenizer import load_tokenizer

TEXT = "I'LL don't aBC 1234567 x²  +=;\n\n\tx/\n日本語かな。नमस्ते"

# The ids of the models' own tokenizers agree (tests/test_real_tokenizers.py). Falcon's digits are
# those among bytes spelled as characters, of which ² has one.
WORDS = [
    ("gpt-2 mpt olmo",
     "I|'|LL| don|'t| aBC| 1234567| x|²| | +=;|\n\n|\t|x|/|\n|日本語かな|。|नमस|्|त|े"),
    ("smollm starcoder refact command-r minerva-7b exaone",
     "I|'|LL| don|'t| aBC| |1|2|3|4|5|6|7| x|²| | +=;|\n\n|\t|x|/|\n|日本語かな|。|नमस|्|त|े"),
    ("llama-bpe llama3 llama-v3 falcon3 smaug-bpe dbrx chatglm-bpe glm4",
     "I|'LL| don|'t| aBC| |123|456|7| x|²| | +=;\n\n|\tx|/\n|日本語かな|。नमस|्त|े"),
    ("qwen2 deepseek-r1-qwen megrez stablelm2 hunyuan bailingmoe",
     "I|'LL| don|'t| aBC| |1|2|3|4|5|6|7| x|²| | +=;\n\n|\tx|/\n|日本語かな|。नमस|्त|े"),
    ("qwen35", "I|'LL| don|'t| aBC| |1|2|3|4|5|6|7| x|²| | +=;\n\n|\tx|/\n|日本語かな|。नमस्ते"),
    ("gpt-4o llama4", "I'LL| don't| a|BC| |123|456|7| x|²| | +=;\n\n|\tx|/\n|日本語かな|。नमस्ते"),
    ("tiny_aya", "I'LL| don't| a|BC| |1|234|567| x|²| | +=;\n\n|\tx|/\n|日本語かな|。नमस्ते"),
    ("tekken pixtral",
     "I|'LL| don|'t| a|BC| |1|2|3|4|5|6|7| x|²| | +=;\n\n|\tx|/\n|日本語かな|。नमस्ते"),
    ("kimi-k2", "I'LL| don't| a|BC| |123|456|7| x|²| | +=;\n\n|\tx|/\n|日本語|かな|。नमस्ते"),
    ("seed-coder",
     "I|'LL| don|'t| aBC| |1|2|3|4|5|6|7| x|²| | +=;|\n\n|\tx|/|\n|日本語かな|。नमस|्त|े"),
    ("deepseek-llm",
     "I|'|LL| don|'|t| aBC| |1|2|3|4|5|6|7| x|²| | +=;|\n|\n|\tx|/|\n|日本語かな|。|नमस्ते"),
    ("deepseek-coder",
     "I|'|LL| don|'|t| aBC| |1|2|3|4|5|6|7| x|²|  +=|;|\n|\n|\tx|/|\n|日本語かな|。|नमस|्|त|े"),
    ("deepseek-v3 joyai-llm",
     "I|'LL| don|'t| aBC| |123|456|7| x|²| | +=;\n\n|\tx|/\n|日本語かな|。|नमस्ते"),
    ("falcon",
     "I|'|LL| don|'|t| aBC| |123|456|7| x|²|²|  |+=;|\n\n|\t|x|/|\n|日本語かな|。|नमस|्|त|े"),
    ("bloom poro-chat", "I'LL| don't| aBC| 1234567| x²| | +=;|\n\n\t|x/|\n|日本語かな|。|नमस्ते"),
    ("viking", "I'LL| don't| aBC| |1|2|3|4|5|6|7| x|²| | +=;|\n\n\t|x/|\n|日本語かな|。|नमस्ते"),
    ("superbpe", "I'LL don't aBC |1|234|567| x|²|  +=;\n\n\tx/\n日本語かな。नमस्ते"),
]  # fmt: skip


def words(pre: PreTokenizer) -> str:
    """``TEXT`` with a bar where it is split."""
    empty = {"type": "BPE", "vocab": {}, "merges": []}
    library = Tokenizer.from_str(json.dumps({**pre.parts(), "model": empty}))
    return "|".join(TEXT[a:b] for _, (a, b) in library.pre_tokenizer.pre_tokenize_str(TEXT))


@pytest.mark.parametrize(("names", "split"), WORDS, ids=[names for names, _ in WORDS])
def test_each_name_is_split_as_its_model_does(names: str, split: str) -> None:
    for name in names.split():
        assert words(KNOWN[name]) == split, name


def open_with(folder: Path, bpe_metadata: dict, pre: str, **more: object) -> tuple:
    """The spec and the tokenizer of a GGUF file with this name."""
    metadata = {**bpe_metadata, "tokenizer_pre": pre, **more}
    tensors = weights({**CONFIG, "vocab_size": len(metadata["token_list"])})
    path = write_gguf(folder / f"{pre}.gguf", metadata, tensors=tensors)
    spec = open_source(path).tokenizer_spec
    return spec, load_tokenizer(spec)


def test_every_name_is_opened_by_the_runtime(tmp_path: Path, bpe_metadata: dict) -> None:
    """Which accepts no regular expression that could take for ever."""
    for name in KNOWN:
        _, tokenizer = open_with(tmp_path, bpe_metadata, name)
        assert tokenizer.decode(tokenizer.encode(TEXT, add_bos=False)) == TEXT, name


def test_qwen_reads_text_in_normal_form(tmp_path: Path, bpe_metadata: dict) -> None:
    _, qwen = open_with(tmp_path, bpe_metadata, "qwen2")
    _, llama = open_with(tmp_path, bpe_metadata, "smaug-bpe")
    assert qwen.encode("e\u0301") == qwen.encode("\u00e9") == llama.encode("\u00e9")
    assert llama.encode("e\u0301") != llama.encode("\u00e9")


@pytest.mark.parametrize(
    ("name", "whole"), [("llama-bpe", True), ("tekken", True), ("qwen2", False)]
)
def test_a_word_that_merges_do_not_reach(
    tmp_path: Path, bpe_metadata: dict, name: str, whole: bool
) -> None:
    bpe_metadata["token_list"] += ["Qzjx"]
    bpe_metadata["token_types"] += [1]
    _, tokenizer = open_with(tmp_path, bpe_metadata, name)
    assert (tokenizer.encode("Qzjx", add_bos=False) == [320]) is whole


@pytest.mark.parametrize(
    ("name", "begins"), [("llama-v3", True), ("pixtral", True), ("qwen2", False)]
)
def test_bos_where_the_file_does_not_say(
    tmp_path: Path, bpe_metadata: dict, name: str, begins: bool
) -> None:
    assert open_with(tmp_path, bpe_metadata, name)[0].add_bos is begins
    said = open_with(tmp_path, bpe_metadata, name, add_bos_token=not begins)[0]
    assert said.add_bos is not begins


def test_a_name_that_is_not_known_is_refused(tmp_path: Path, bpe_metadata: dict) -> None:
    with pytest.raises(
        UnsupportedModelError,
        match=r"^unheard-of\.gguf: pre-tokenizer 'unheard-of' is not known.*; convert",
    ):
        open_with(tmp_path, bpe_metadata, "unheard-of")


def test_a_name_that_says_nothing_is_met_with_a_word(tmp_path: Path, bpe_metadata: dict) -> None:
    with pytest.warns(CheckpointWarning, match=r"pre is default: .*GPT-2's way is assumed"):
        spec, _ = open_with(tmp_path, bpe_metadata, "default")
    assert spec == open_with(tmp_path, bpe_metadata, "gpt-2")[0]


def test_the_page_has_all_names() -> None:
    page = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    table = page.split("| split | names |")[1].split("\n\n")[0]
    assert sorted(re.findall(r"`([^`]+)`", table)) == sorted(KNOWN)
