"""The project's speed targets, each compared with what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from .cases import (
    AVX2_PAIR,
    LLAMA_1B,
    LLAMA_7B,
    NUMBA,
    ONE_PAIR,
    QWEN_30B,
    SMALL,
    SMOLLM2,
    peer,
)
from .results import Key, Results, Spread
from .variants import (
    COPIED,
    INT8_CACHE,
    LLAMA_1B_DEPTH,
    LLAMA_7B_PAGES,
    LLAMA_7B_ROWS,
    SMOLLM2_DEPTH,
    THEIR_CACHES,
    decode_label,
    prompt_label,
    rows_label,
)

EXTRAS = "other"  # the "model" of figures that are no race
BUSY, IDLE = "decode beside a busy process", "idle"
FIRST_TOKEN_NAMES = ("edgedb generate, 1 pair", "edgedb generate, 2 pairs")
_Bounds = tuple[float, ...]


@dataclass(frozen=True)
class Target:
    """One line: the measured figure has to be at least, or at most, ``bound``."""

    what: str
    bound: float
    found: Spread | None  # None: not measured in this run
    unit: str = "x"  # "x" a ratio, "%" of 1, "s" seconds
    at_most: bool = False
    ceiling: Spread | None = None  # the ratio if ours read at the memory's limit

    @property
    def met(self) -> bool | None:
        """By the median; ``None`` when it was not measured."""
        if self.found is None:
            return None
        median = self.found.median
        return median <= self.bound if self.at_most else median >= self.bound


def targets(results: Mapping[str, Results]) -> list[Target]:
    """Every target, in the order of the models; ``results`` by model."""
    empty = Results("", [])
    big, small = results.get(LLAMA_7B, empty), results.get(LLAMA_1B, empty)
    return [
        *_seven_billion(big),
        *_one_billion(small),
        *[
            line
            for model, share in (*((model, 0.90) for model in SMALL), (QWEN_30B, 0.85))
            for line in _of_the_limit(model, results.get(model, empty), share)
        ],
        *_smollm2(results.get(SMOLLM2, empty)),
        *_rows(results.get(LLAMA_7B_ROWS, empty)),
        *_depth(results.get(SMOLLM2_DEPTH, empty), results.get(LLAMA_1B_DEPTH, empty)),
        *_pages(results.get(LLAMA_7B_PAGES, empty)),
        *_extras(results.get(EXTRAS, empty)),
    ]


def _against(
    found: Results, ours: str, theirs: str, test: str, threads: int, bound: float
) -> Target:
    keys = Key(ours, test, threads), Key(theirs, test, threads)
    what = f"{test}, {ours}, {_threads(threads)}: over {theirs}"
    return Target(what, bound, found.ratio(*keys), ceiling=found.ceiling(*keys))


def _threads(count: int) -> str:
    return f"{count} thread" + "s" * (count > 1)


def _limit(found: Results, threads: int, bound: float) -> Target:
    share = found.share_of_limit(Key(ONE_PAIR, "decode", threads))
    what = f"decode, {ONE_PAIR}, {_threads(threads)}: share of the read limit"
    return Target(what, bound, share, "%")


def _named(model: str, lines: list[Target]) -> list[Target]:
    return [replace(target, what=f"{model}: {target.what}") for target in lines]


def _formats(found: Results) -> list[str]:
    return [name for name in found.names if name.startswith(peer(""))]


def _by_set(found: Results, wide: _Bounds, avx2: _Bounds) -> list[tuple[str, _Bounds]]:
    """The series of AVX-512 and of AVX2 with their bounds; only the last where AVX2 is the best."""
    if AVX2_PAIR in found.names:
        return [(ONE_PAIR, wide), (AVX2_PAIR, avx2)]
    isa = found.described.get(ONE_PAIR, {}).get("isa", "")
    return [(ONE_PAIR, avx2 if "avx2" in isa.split() else wide)]


def _seven_billion(found: Results) -> list[Target]:
    tq2, q4 = peer("TQ2_0"), peer("Q4_0")
    lines = [
        *[
            _against(found, name, tq2, "decode", threads, bound)
            for name, bounds in _by_set(found, (1.9, 1.6), (1.4, 1.5))
            for threads, bound in zip((1, 2), bounds, strict=True)
        ],
        _against(found, ONE_PAIR, q4, "decode", 1, 2.8),
        _limit(found, 1, 0.92),
        _against(found, ONE_PAIR, q4, "decode", 2, 1.9),
        _limit(found, 2, 0.90),
        _against(found, ONE_PAIR, tq2, "prompt", 1, 3.5),
        Target(
            f"prompt, {ONE_PAIR}, 1 thread: over the best of llama.cpp's formats",
            2.0,
            found.ratio_of_best([ONE_PAIR], _formats(found), "prompt", [1]),
        ),
    ]
    return _named(LLAMA_7B, lines)


def _one_billion(found: Results) -> list[Target]:
    tq2 = peer("TQ2_0")
    lines = [
        _against(found, ONE_PAIR, tq2, "decode", 1, 1.8),
        _against(found, ONE_PAIR, tq2, "decode", 2, 1.7),
    ]
    return _named(LLAMA_1B, lines)


def _of_the_limit(model: str, found: Results, share: float) -> list[Target]:
    return _named(model, [_limit(found, threads, share) for threads in (1, 2)])


def _smollm2(found: Results) -> list[Target]:
    avx2 = AVX2_PAIR if AVX2_PAIR in found.names else ONE_PAIR
    lines = [
        Target(
            f"decode, {ONE_PAIR}, best of 1 and 2 threads: over the best of llama.cpp's formats",
            2.3,
            found.ratio_of_best([ONE_PAIR], _formats(found), "decode", [1, 2]),
        ),
        Target(
            f"prompt, {ONE_PAIR}, 2 threads: over the best of llama.cpp's formats",
            1.5,
            found.ratio_of_best([ONE_PAIR], _formats(found), "prompt", [2]),
        ),
        Target(
            "decode, numba, best of 1 and 2 threads: over native AVX2",
            0.10,
            found.ratio_of_best([NUMBA], [avx2], "decode", [1, 2]),
            "%",
        ),
    ]
    return _named(SMOLLM2, lines)


def _rows(found: Results) -> list[Target]:
    return _named(
        LLAMA_7B_ROWS,
        [
            Target(
                f"{rows_label(n)}, {name}, 2 threads: over one row",
                bound,
                found.ratio(Key(name, rows_label(n), 2), Key(name, rows_label(1), 2)),
            )
            for name, bounds in _by_set(found, (2.4, 3.0, 3.4), (2.2, 2.6, 2.6))
            for n, bound in zip((4, 8, 16), bounds, strict=True)
        ],
    )


def _depth(small: Results, large: Results) -> list[Target]:
    deep = decode_label(4096)
    best = "the better of llama.cpp's caches"

    def over_theirs(found: Results, test: str, bound: float) -> Target:
        ratio = found.ratio_of_best([INT8_CACHE], list(THEIR_CACHES), test, [2])
        return Target(f"{test}, {INT8_CACHE}, 2 threads: over {best}", bound, ratio)

    def over_float16(test: str, bound: float) -> Target:
        ratio = small.ratio(Key(INT8_CACHE, test, 2), Key(ONE_PAIR, test, 2))
        return Target(f"{test}, {INT8_CACHE}, 2 threads: over float16", bound, ratio)

    shallow = Key(INT8_CACHE, decode_label(64), 2)
    return [
        *_named(
            SMOLLM2_DEPTH,
            [
                over_float16(deep, 1.3),
                over_theirs(small, deep, 3.0),
                over_float16(prompt_label(4096), 1.6),
                over_float16(prompt_label(8000), 2.0),
                over_theirs(small, prompt_label(4096), 2.5),
            ],
        ),
        *_named(
            LLAMA_1B_DEPTH,
            [
                Target(
                    f"{deep}, {INT8_CACHE}, 2 threads: over its speed at 64",
                    0.85,
                    large.ratio(replace(shallow, test=deep), shallow),
                ),
                over_theirs(large, deep, 1.8),
            ],
        ),
    ]


def _pages(found: Results) -> list[Target]:
    copied = Key(COPIED, "decode", 1)
    return _named(
        LLAMA_7B_PAGES,
        [
            Target(
                f"decode, {COPIED}, 1 thread: share of a plain read from huge pages",
                0.95,
                found.share_of_limit(copied, "huge"),
                "%",
            ),
        ],
    )


def _extras(found: Results) -> list[Target]:
    busy = found.ratio(Key(ONE_PAIR, BUSY, 2), Key(ONE_PAIR, BUSY, 1))
    first = [found.value(Key(name, "first token", 0)) for name in FIRST_TOKEN_NAMES]
    slower = max((s for s in first if s), key=lambda s: s.median, default=None)
    chat = found.value(Key("edgedb chat", IDLE, 0))
    lines = [
        Target(f"{BUSY}: 2 threads over 1 thread", 0.9, busy),
        Target("first token of `edgedb generate`, whole process, warm", 0.6, slower, "s", True),
        Target("a waiting `edgedb chat`, share of a core", 0.01, chat, "%", True),
        Target(
            "numba: start with cached code over the first start",
            0.5,
            found.ratio(Key(NUMBA, "start, cached", 0), Key(NUMBA, "start, compiling", 0)),
            at_most=True,
        ),
    ]
    return _named(SMOLLM2, lines)
