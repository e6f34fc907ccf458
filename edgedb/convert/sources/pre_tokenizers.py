"""How text is split into words before it is encoded, by GGUF's names (``tokenizer.ggml.pre``).

llama.cpp calls a split after the model that had it first, so one split has many names. What stands
here is the split of the model's own tokenizer.json or tiktoken file where that is known; some of
llama.cpp's patterns come close to it only (it knows no Unicode normalization and no ``\\p{Lu}``).
A name that is missing is refused: with the wrong split a model answers a little worse, and nobody
sees why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

Step = Mapping[str, Any]


@dataclass(frozen=True)
class PreTokenizer:
    """A split, and what else of a tokenizer goes with its name.

    ``steps`` are pre-tokenizers of a ``tokenizer.json``, in order. ``normal_form``: text is first
    brought into Unicode's form C. ``whole_words``: a word that is a token is that token, also where
    merges would not make it (``ignore_merges``). ``begins``: a text begins with BOS where the file
    does not say.
    """

    steps: tuple[Step, ...]
    normal_form: bool = False
    whole_words: bool = False
    begins: bool = False

    def parts(self) -> dict[str, Any]:
        """The entries ``normalizer`` and ``pre_tokenizer`` of a ``tokenizer.json``."""
        return {
            "normalizer": {"type": "NFC"} if self.normal_form else None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": list(self.steps)},
        }


def _bytes(use_regex: bool) -> Step:
    """Bytes as characters; with ``use_regex`` behind GPT-2's split."""
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


def _split(*alternatives: str) -> Step:
    pattern = {"Regex": "|".join(alternatives)}
    return {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}


def split_by(*alternatives: str, **more: bool) -> PreTokenizer:
    """Words that match one of the ``alternatives``, the first that does; ``more`` of its fields."""
    return PreTokenizer((_split(*alternatives), _bytes(False)), **more)


_DIGIT: Step = {"type": "Digits", "individual_digits": True}

_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_ONE, _THREE = r"\p{N}", r"\p{N}{1,3}"

_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"


def _cased(ending: str = "", without: str = "") -> tuple[str, str]:
    """Words of capitals, then of small letters, with an ``ending``."""
    upper, lower = f"[{_UPPER}{without}]", f"[{_LOWER}{without}]"
    start = r"[^\r\n\p{L}\p{N}]?"
    return f"{start}{upper}*{lower}+{ending}", f"{start}{upper}+{lower}*{ending}"


_SIGNS_OF_CODE = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_HAN = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_NO_HAN = r"&&[^\p{Han}]"
# Bloom: all but a few signs.
_SENTENCE = r" ?[^(\s|[.,!?" "\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c" "])]+"

_GPT2 = PreTokenizer((_bytes(True),))
_STARCODER = PreTokenizer((_DIGIT, _bytes(True)))
_CL100K = split_by(_CONTRACTION, _WORD, _THREE, _SIGNS, _SPACES)
_LLAMA3 = replace(_CL100K, whole_words=True, begins=True)
_QWEN = split_by(_CONTRACTION, _WORD, _ONE, _SIGNS, _SPACES)
_QWEN2 = replace(_QWEN, normal_form=True)
_QWEN35 = split_by(
    _CONTRACTION,
    r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+",
    _ONE,
    r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",
    _SPACES,
    normal_form=True,
)
_O200K = split_by(*_cased(f"{_CONTRACTION}?"), _THREE, _SIGNS_OF_CODE, _SPACES, whole_words=True)
_TEKKEN = split_by(*_cased(), _ONE, _SIGNS_OF_CODE, _SPACES, whole_words=True, begins=True)
_KIMI = split_by(
    r"[\p{Han}]+",
    *_cased(f"{_CONTRACTION}?", _NO_HAN),
    _THREE,
    _SIGNS,
    _SPACES,
    whole_words=True,
)
_AYA = PreTokenizer((_split(r"\d{1,3}(?=(?:\d{3})*\b)"), *_O200K.steps))
_MINICPM5 = PreTokenizer(
    (_split(_THREE), *split_by(_CONTRACTION, _WORD, r"\p{N}+", _SIGNS, _SPACES).steps),
    whole_words=True,
)
_BAILING = split_by(
    r"'(?i:[sdmt]|ll|ve|re)",
    r"[^\r\n\p{L}\p{N}]?+\p{L}+",
    _ONE,
    r" ?[^\s\p{L}\p{N}]++[\r\n]*",
    r"\s*[\r\n]|\s+(?!\S)|\s+",
)
_SEED = split_by(_CONTRACTION, _WORD, r"\p{N}{1}", r" ?[^\s\p{L}\p{N}\r\n]+", _SPACES)
_DEEPSEEK3 = PreTokenizer(
    (
        _split(_THREE),
        _split(_HAN),
        _split(
            r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+""",
            r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+",
            r" ?[\p{P}\p{S}]+[\r\n]*",
            _SPACES,
        ),
        _bytes(False),
    )
)
_DEEPSEEK_CODER = PreTokenizer(
    (
        _split(r"[\r\n]"),
        _split(r"\s?\p{L}+"),
        _split(r"\s?\p{P}+"),
        _split(_CJK),
        _DIGIT,
        _bytes(False),
    )
)
# Cased letters: those of the scripts that have two cases.
_DEEPSEEK_LETTERS = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-"
    "\u02af\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-"
    "\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5"
    "\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-"
    "\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-"
    "\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-"
    "\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-"
    "\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149"
    "\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d"
    "\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-"
    "\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-"
    "\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-"
    "\U0001e943"
)
_DEEPSEEK_LLM = PreTokenizer(
    (
        _split(r"[\r\n]"),
        _split(rf"\s?[{_DEEPSEEK_LETTERS}]+"),
        _split(r"\s?[!-/:-~" "\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002" "]+"),
        _split(r"\s+$"),
        _split(_CJK),
        _DIGIT,
        _bytes(False),
    )
)
_FALCON = PreTokenizer(
    (
        {"type": "Punctuation", "behavior": "Contiguous"},
        _bytes(True),
        {"type": "Digits", "individual_digits": False},
        _split("[0-9][0-9][0-9]"),
    )
)
_BLOOM = split_by(_SENTENCE)
_VIKING = PreTokenizer((_split(_SENTENCE), _DIGIT, _bytes(False)))
_SUPERBPE = PreTokenizer((_split(r"\p{N}+"), _split(r"(?=(\d{3})+(?!\d))"), _bytes(False)))

_ROWS: tuple[tuple[PreTokenizer, str], ...] = (
    (_GPT2, "gpt-2 gpt2 phi-2 jais trillion granite-docling gigachat a.x-4.0 mellum exaone4"),
    (replace(_GPT2, normal_form=True), "mpt olmo"),
    (_STARCODER, "starcoder refact smollm codeshell exaone minerva-7b mellum2"),
    (replace(_STARCODER, normal_form=True), "command-r"),
    (_LLAMA3, "llama3 llama-v3 llama-bpe falcon3 falcon-h1 midm-2.0 lfm2"),
    (replace(_CL100K, whole_words=True), "smaug-bpe"),  # Llama 3 without BOS
    (_CL100K, "dbrx chatglm-bpe glm4"),
    (_QWEN2, "qwen2 deepseek-r1-qwen megrez kormo f2llmv2"),
    (_QWEN, "stablelm2 hunyuan grok-2 solar-open"),
    (_QWEN35, "qwen35"),
    (_O200K, "gpt-4o llama4 kanana2 minimax-m2 talkie"),
    (_AYA, "tiny_aya cohere2moe"),
    # Pixtral has Tekken's vocabulary; llama.cpp splits its text as Llama 3 does, by mistake.
    (_TEKKEN, "tekken pixtral"),
    (_KIMI, "kimi-k2"),
    (_MINICPM5, "minicpm5"),
    (_BAILING, "bailingmoe bailingmoe2 llada-moe"),
    (_SEED, "seed-coder"),
    (_DEEPSEEK_LLM, "deepseek-llm"),
    (_DEEPSEEK_CODER, "deepseek-coder"),
    (_DEEPSEEK3, "deepseek-v3 hunyuan-dense joyai-llm hy_v4"),
    (_FALCON, "falcon"),
    (_BLOOM, "bloom poro-chat gpt3-finnish"),
    (_VIKING, "viking"),
    (_SUPERBPE, "superbpe"),
)

KNOWN: dict[str, PreTokenizer] = {
    name: pre_tokenizer for pre_tokenizer, names in _ROWS for name in names.split()
}
