"""Texts that tokenizers get wrong: one by one, and put together at random."""

# ruff: noqa: RUF001 - signs that look like others are what is tried

from __future__ import annotations

from collections.abc import Iterator
from random import Random

SPECIAL = (
    *("<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|eot_id|>"),
    *("<|begin_of_text|>", "<think>", "</think>", "<tool_call>", "[INST]", "[/INST]"),
)
FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467"

# A word each, a sign, or a character; between them only what is written.
PIECES = (
    *("Hello", " world", "the", " don't", " WE'LL", "'S", " it's", "’s", "aAbB", "HTTPServer", "ǅ"),
    *("1", "12", "123", "1234567", "１２３", "½²³", "٣٤٥", " 3.14", "Ⅷ", "㊗"),
    *("\n", "\r\n", "\r", "\t", " ", "  ", " " * 8, " " * 37, "\u00a0", "\u3000", "\u2009"),
    *("\u200b", "\u200d", "\ufeff", "\x00", "\x7f", "\x85", "\u2028", "\u0378", "\U0010fffe"),
    *(
        "\u00e9",
        "e\u0301",
        "\u212b",
        "A\u030a",
        "ﬁ",
        "\u1100\u1161",
        "\uac00",
        "ß",
        "İ",
        "ſ",
        "ª",
        "ʰ",
        "ёЖ",
    ),
    *("日本語かな", "中文，。", "한국어", "العربية", "עברית", "हिन्दी", "ไทย", "Ωω"),
    *(FAMILY, "\U0001f3f3\ufe0f\u200d\U0001f308", "\U0001f1eb\U0001f1f7", "\U0001f44d\U0001f3fd"),
    *("!", "...", "—", "//", "\n/", "__init__", "(x)", "<0x41>", "\ue000"),
    *SPECIAL,
)

TRICKY = (
    "Hello world",
    "I'll, we'VE, it’s 1234567.89 and x²+½",
    "  two  spaces\n\n\tand\r\n a tab \n \n  ",
    " " * 300 + "x" + "\n" * 300,
    "e\u0301 A\u030a \u1100\u1161 ﬁ \u0344 \u1e9b\u0323",
    "Zwölf 日本語かな中文，。한국어 العربية 12٣٤ עברית हिन्दी नमस्ते ไทย",
    f"{FAMILY} \U0001f44d\U0001f3fd \u200d\u200b\ufeff \ufffd\u0e33\U0001f1eb\U0001f1f7",
    "def f(x):\n\treturn __init__ // 2  # HTTPServer aBC\n\n/path/\n",
    "<|im_start|>user\nHi<|im_end|>\n<think>\n\n</think> <|eot_id|>[INST] a [/INST]</s>",
    "<s> a </s> b<unk>\n<s><s>",
    "\x00\x01\x7f\x85\u2028\u2029\ue000\u0378\U0010fffe",
)


def random_texts(seed: int, count: int, most: int = 12) -> Iterator[str]:
    """``count`` texts of up to ``most`` pieces or other characters; of one seed, the same."""
    rng = Random(seed)
    for _ in range(count):
        yield "".join(_piece(rng) for _ in range(rng.randrange(1, most)))


def _piece(rng: Random) -> str:
    if rng.random() < 0.9:
        return rng.choice(PIECES)
    low, high = rng.choice(((0x20, 0x3000), (0x3000, 0xD800), (0xE000, 0x110000)))
    return chr(rng.randrange(low, high))
