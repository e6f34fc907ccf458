"""Cycles that llvm-mca predicts for the inner loops of the NEON kernels, per weight or code.

    python bench/mca_arm.py [--mca llvm-mca-19]

Compiles the NEON kernels for 64-bit Arm and takes every innermost loop of the kernels
below: from the label that a branch goes back to, to that branch. It needs gcc-aarch64-linux-gnu
and llvm-mca. Figures are a model's: perfect caches, no misprediction.
"""

from __future__ import annotations

import argparse
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

SOURCES = Path(__file__).resolve().parent.parent / "native" / "src"
COMPILE = ["aarch64-linux-gnu-gcc", "-std=c11", "-O3", "-ffp-contract=off", "-fno-math-errno", "-S"]
CPUS = ("neoverse-n1", "cortex-a72")  # LLVM models the Cortex-A76 (Raspberry Pi 5) as Neoverse N1
# What one turn of a kernel's loops works on: an instruction to count, and weights for each.
KERNELS = {
    ("lookup_neon.c", "tile"): ("tbl", 64 * 64 / 256),
    ("lookup_neon.c", "half_tile"): ("tbl", 64 * 64 / 128),
    ("popcount_neon.c", "tile8"): ("cnt", 8),
    ("popcount_neon.c", "tile4"): ("cnt", 16),
    ("popcount_neon.c", "half_tile8"): ("cnt", 16),
    ("popcount_neon.c", "half_tile4"): ("cnt", 32),
    ("kernels_neon_int8.c", "edb_int8_tile_neon"): ("sadalp", 16),
    ("kernels_neon_int8.c", "edb_int8_tile_dotprod"): ("sdot", 16),
    ("kernels_i8mm.c", "edb_int8_tile_i8mm"): ("smmla", 32),
    ("kernels_neon_int8.c", "edb_expand_block_neon"): ("cmtst", 8),
}


def function_body(assembly: str, name: str) -> list[str]:
    match = re.search(rf"^{name}:\n(.*?)^\t\.size\t{name},", assembly, re.MULTILINE | re.DOTALL)
    assert match, f"no {name} in the assembly"
    lines = (line.split("//")[0].rstrip() for line in match[1].splitlines())
    return [line for line in lines if line and not re.match(r"\s+\.", line)]


def innermost_loops(body: list[str]) -> Iterator[list[str]]:
    labels: dict[str, int] = {}
    last_end = -1
    for at, line in enumerate(body):
        if line.endswith(":"):
            labels[line[:-1]] = at
            continue
        branch = re.match(r"\s+(?:b\.?\w*|cbn?z|tbn?z)\s.*?(\.L\d+)$", line)
        if branch and branch[1] in labels and labels[branch[1]] > last_end:
            yield body[labels[branch[1]] : at + 1]
            last_end = at


def cycles(loop: list[str], mca: str, cpu: str) -> float:
    command = [mca, "-mtriple=aarch64", "-mattr=+dotprod,+i8mm", f"-mcpu={cpu}", "-iterations=100"]
    report = subprocess.run(
        command, input="\n".join(loop), capture_output=True, text=True, check=True
    ).stdout
    total = re.search(r"Total Cycles:\s+(\d+)", report)
    assert total
    return int(total[1]) / 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mca", default="llvm-mca-19")
    mca = parser.parse_args().mca
    print(f"{'kernel':24}{'instructions':>13}" + "".join(f"{cpu:>14}" for cpu in CPUS))
    for (source, name), (counted, weights_each) in KERNELS.items():
        compiled = subprocess.run(
            [*COMPILE, "-o", "-", str(SOURCES / source)], capture_output=True, text=True, check=True
        ).stdout
        for loop in innermost_loops(function_body(compiled, name)):
            weights = sum(line.split()[0] == counted for line in loop) * weights_each
            if weights == 0:
                continue  # not the loop that does the work
            instructions = sum(not line.endswith(":") for line in loop)
            columns = [f"{instructions / weights:13.3f}"]
            for cpu in CPUS:
                no_sdot = counted == "sdot" and cpu == "cortex-a72"
                value = "-" if no_sdot else f"{cycles(loop, mca, cpu) / weights:.4f}"
                columns.append(f"{value:>14}")
            print(f"{name:24}{''.join(columns)}   {int(weights)} a turn")


if __name__ == "__main__":
    main()
