"""Cases beside the usual: long contexts, several rows at once, weights in both kinds of pages."""

from __future__ import annotations

from dataclasses import replace

from .cases import (
    AVX2_PAIR,
    LLAMA_1B,
    LLAMA_7B,
    ONE_PAIR,
    SMOLLM2,
    SMOLLM2_FILES,
    Case,
    Contestant,
    Paths,
    Trial,
    edgedb,
    has_avx2_below_the_best,
    llama_cpp,
    peer,
    plain_read,
    random_files,
    requantized,
)

INT8_CACHE, COPIED = f"{ONE_PAIR}, int8 cache", f"{ONE_PAIR}, copied"
THEIR_CACHES = {peer("Q4_0"): "f16", f"{peer('Q4_0')}, q8_0 cache": "q8_0"}
SMOLLM2_DEPTH, LLAMA_1B_DEPTH = f"{SMOLLM2}, long contexts", f"{LLAMA_1B}, long contexts"
LLAMA_1B_ROWS, LLAMA_7B_ROWS = f"{LLAMA_1B}, rows at once", f"{LLAMA_7B}, rows at once"
LLAMA_1B_PAGES, LLAMA_7B_PAGES = f"{LLAMA_1B}, kinds of pages", f"{LLAMA_7B}, kinds of pages"
ROWS = (1, 2, 4, 8, 16, 32)
# Positions behind which SmolLM2 and the shape of 1.1B decode, and prompts that they read.
DEPTHS = {SMOLLM2: (4096, 1024, 16), LLAMA_1B: (4096, 1024, 64)}
PROMPTS = {SMOLLM2: (512, 2048, 4096, 8000), LLAMA_1B: (512, 4096)}
# How often those are read: SmolLM2's by four engines takes a minute and a half.
_READINGS = {SMOLLM2: 2, LLAMA_1B: 1}
_BATCH = 512  # tokens of a pass of llama.cpp in long contexts: its default

VARIANTS = {
    "smollm2-depth": SMOLLM2_DEPTH,
    "1.1b-depth": LLAMA_1B_DEPTH,
    "1.1b-batch": LLAMA_1B_ROWS,
    "7b-batch": LLAMA_7B_ROWS,
    "1.1b-pages": LLAMA_1B_PAGES,
    "7b-pages": LLAMA_7B_PAGES,
}
GROUPS = {
    "depth": ("smollm2-depth", "1.1b-depth"),
    "batch": ("1.1b-batch", "7b-batch"),
    "pages": ("1.1b-pages", "7b-pages"),
}


def variant(model: str, paths: Paths) -> Case:
    """The comparison for one of ``VARIANTS``' values, its files made if they are not there."""
    if model in (SMOLLM2_DEPTH, LLAMA_1B_DEPTH):
        return _depth(model, SMOLLM2 if model == SMOLLM2_DEPTH else LLAMA_1B, paths)
    shape = LLAMA_7B if model in (LLAMA_7B_ROWS, LLAMA_7B_PAGES) else LLAMA_1B
    if model in (LLAMA_1B_PAGES, LLAMA_7B_PAGES):
        return _pages(model, shape, paths)
    return _rows(model, shape, paths)


def decode_label(depth: int) -> str:
    """What decoding behind so many positions is called."""
    return f"decode at {depth:,}"


def prompt_label(n: int) -> str:
    """What reading a prompt of so many tokens is called."""
    return f"prompt of {n:,}"


def rows_label(n: int) -> str:
    """What reading so many rows at once is called."""
    return f"{n} row" + "s" * (n > 1)


def _depth(model: str, of: str, paths: Paths) -> Case:
    if of == SMOLLM2:
        ours = paths.root / "models" / SMOLLM2_FILES[1]
        theirs = requantized("Q4_0", paths)
    else:
        made = random_files(of, (1,), ("Q4_0",), paths)
        ours, theirs = made[0][1], made[1]["Q4_0"]
    prompts, depths = PROMPTS[of], DEPTHS[of]
    size = ("--context", str(max(*prompts, *depths) + 80), "--threads", "2")
    contestants = [
        edgedb(ONE_PAIR, ours, *size),
        edgedb(INT8_CACHE, ours, *size, "--kv-dtype", "int8"),
    ]
    contestants += [
        llama_cpp(name, theirs, paths, *size, "--cache", cache, "--batch", str(_BATCH))
        for name, cache in THEIR_CACHES.items()
    ]
    # Its 8-bit cache reads SmolLM2's 8,000 tokens in two minutes, a fourth of the other's speed.
    contestants[-1] = replace(contestants[-1], tests=("decode",))
    # Shorter prompts are beginnings of the longest, and depths fall: so it is read once a round,
    # and what its last reading left is there for all decoding.
    stops = tuple((n, prompt_label(n)) for n in prompts)
    plan = [Trial("prompts", "prompt", prompts[-1], 2, stops=stops, most_rounds=_READINGS[of])]
    plan += [Trial(decode_label(depth), "decode", 64, 2, depth) for depth in depths]
    return Case(
        model,
        tuple(contestants),
        32,
        decode_seconds=1.0,
        rounds=5,
        threads=(2,),
        plan=tuple(plan),
        one_by_one=True,
    )


def _rows(model: str, shape: str, paths: Paths) -> Case:
    ours, theirs = random_files(shape, (1,), ("TQ2_0", "Q4_0"), paths)
    size = ("--context", "64")
    contestants = [edgedb(ONE_PAIR, ours[1], *size)]
    if has_avx2_below_the_best():
        contestants.append(edgedb(AVX2_PAIR, ours[1], *size, EDGEDB_ISA="avx2"))
    contestants += [llama_cpp(peer(name), path, paths, *size) for name, path in theirs.items()]
    plan = [Trial(rows_label(n), "rows", n, threads) for threads in (1, 2) for n in ROWS]
    return Case(model, tuple(contestants), 32, decode_seconds=0.5, rounds=3, plan=tuple(plan))


def _pages(model: str, shape: str, paths: Paths) -> Case:
    """Decoding alone; nothing else takes memory beside a file and two copies."""
    path = random_files(shape, (1,), (), paths)[0][1]
    size = ("--context", "160")
    contestants: list[Contestant] = [
        plain_read(path, paths),
        edgedb(ONE_PAIR, path, *size),
        edgedb(COPIED, path, *size, "--memory", "copy"),
    ]
    plan = tuple(Trial("decode", "decode", 64, threads) for threads in (1, 2))
    return Case(model, tuple(contestants), 32, rounds=7, plan=plan)
