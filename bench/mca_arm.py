"""Cycles that llvm-mca predicts for a block of weights on 64-bit Arm, by kernel and tokens.

    python bench/mca_arm.py [--sets neon,neon-dotprod,neon-i8mm] [--kinds pair,half,int8]
        [--tokens 1,2,4,8,16] [--kernel popcount] [--cpus neoverse-n1,cortex-a72]

Compiles the library of this checkout (``--source`` names another) for 64-bit Arm, lets qemu note
every instruction of a product of 64 rows, and gives those of the kernel, loops and ends of groups
included, to llvm-mca: a block is 64 rows by 64 columns, its cycles half of what two more groups
add. It needs gcc-aarch64-linux-gnu, qemu-user and llvm-19. Figures are a model's: perfect caches,
no misprediction.
"""

from __future__ import annotations

import argparse
import bisect
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMPILE = ["aarch64-linux-gnu-gcc", "-std=c11", "-O3", "-ffp-contract=off", "-fno-math-errno"]
FEATURES = "+dotprod,+i8mm"
# LLVM models the Cortex-A76 (Raspberry Pi 5) as Neoverse N1, the Cortex-A72 as A57.
NO_DOT_PRODUCTS = "cortex-a72"
# The functions that hand tiles to kernels, and the one that calls them.
TASKS = {"edb_pairs_one_by_one", "edb_pairs_by_expansion", "int8_tiles"}
CALLER = "edb_pool_run_stages"


class Program:
    """``one_product.c`` with the library, and the text of each of its instructions."""

    def __init__(self, source: Path, folder: Path, llvm: str) -> None:
        self.path = folder / "one_product"
        self.log = folder / "executed.txt"
        files = sorted((source / "native" / "src").glob("*.c"))
        command = [*COMPILE, "-static", str(ROOT / "bench" / "one_product.c"), *map(str, files)]
        subprocess.run([*command, "-lm", "-pthread", "-o", str(self.path)], check=True)
        listing = subprocess.run(
            [f"llvm-objdump-{llvm}", "-d", f"--mattr={FEATURES}", "--no-show-raw-insn", self.path],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        self.text: dict[int, str] = {}
        self.starts: list[int] = []
        self.names: list[str] = []
        for line in listing.splitlines():
            if function := re.match(r"([0-9a-f]+) <(\S+)>:$", line):
                self.starts.append(int(function[1], 16))
                self.names.append(function[2])
            elif instruction := re.match(r"\s*([0-9a-f]+):\s+(.*)$", line):
                self.text[int(instruction[1], 16)] = _assembly(instruction[2])

    def _name(self, address: int) -> str:
        return self.names[bisect.bisect_right(self.starts, address) - 1]

    def kernel(self, *arguments: str) -> list[str]:
        """The instructions that a kernel runs for a product."""
        qemu = ["qemu-aarch64", "-cpu", "max", "-singlestep", "-d", "exec,nochain"]
        subprocess.run([*qemu, "-D", self.log, self.path, *arguments], check=True)
        return list(self._follow())

    def _follow(self) -> Iterator[str]:
        inside = False
        with self.log.open() as log:
            for line in log:
                executed = re.match(r"Trace \d+: \S+ \[\w+/(\w+)/", line)
                if executed is None:
                    continue
                address = int(executed[1], 16)
                name = self._name(address)
                if name in TASKS or name == CALLER:
                    inside = name in TASKS
                elif inside:
                    yield self.text[address]


def _assembly(instruction: str) -> str:
    """An instruction as llvm-mca takes it: no comments, and branches that lead anywhere near."""
    text = instruction.split("//")[0].strip()
    if re.match(r"(b|bl|b\.\w+|cbn?z|tbn?z)\s", text):
        return re.sub(r"0x[0-9a-f]+( <[^>]*>)?$", "#16", text)
    if text.startswith("adr"):
        return re.sub(r"0x[0-9a-f]+( <[^>]*>)?$", "#0", text)
    return re.sub(r"\s*<[^>]*>", "", text)


def cycles(instructions: list[str], llvm: str, cpu: str) -> int:
    command = [f"llvm-mca-{llvm}", "-mtriple=aarch64", f"-mattr={FEATURES}", f"-mcpu={cpu}"]
    report = subprocess.run(
        [*command, "-iterations=1", "-call-latency=1", "-instruction-info=false"],
        input="\n".join(instructions),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    total = re.search(r"Total Cycles:\s+(\d+)", report)
    assert total
    return int(total[1])


def is_vector(instruction: str) -> bool:
    return re.search(r"\bv\d+\.", instruction) is not None


def _list(text: str) -> list[str]:
    return text.split(",")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, default=ROOT)
    parser.add_argument("--llvm", default="19")
    parser.add_argument("--sets", type=_list, default=["neon", "neon-dotprod", "neon-i8mm"])
    parser.add_argument("--kinds", type=_list, default=["pair", "half", "int8"])
    parser.add_argument("--tokens", type=_list, default=["1", "2", "4", "8", "16"])
    parser.add_argument("--kernel", default="lookup", help="for pairs and halves")
    parser.add_argument(
        "--cpus", type=_list, default=["cortex-a72", "neoverse-n1", "neoverse-n2", "neoverse-v2"]
    )
    options = parser.parse_args()
    heads = "".join(f"{cpu:>13}" for cpu in options.cpus)
    print(f"{'cycles a block':14}{'':6}{'tokens':>8}{'instructions':>14}{'vector':>8}{heads}")
    with tempfile.TemporaryDirectory() as folder:
        program = Program(options.source, Path(folder), options.llvm)
        for isa in options.sets:
            for kind in options.kinds:
                for tokens in options.tokens:
                    arguments = (isa, options.kernel, kind)
                    few = program.kernel(*arguments, str(2 * 64), tokens)
                    more = program.kernel(*arguments, str(4 * 64), tokens)
                    total = (len(more) - len(few)) / 2
                    vector = (sum(map(is_vector, more)) - sum(map(is_vector, few))) / 2
                    row = f"{isa:14}{kind:6}{tokens:>8}{total:14.0f}{vector:8.0f}"
                    for cpu in options.cpus:
                        if cpu == NO_DOT_PRODUCTS and isa != "neon":
                            row += f"{'-':>13}"
                            continue
                        after, before = (cycles(x, options.llvm, cpu) for x in (more, few))
                        row += f"{(after - before) / 2:13.0f}"
                    print(row, flush=True)


if __name__ == "__main__":
    main()
