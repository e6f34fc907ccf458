"""The platforms that there are wheels for, and what builds the library for each of them on Linux.

gcc's code is the faster one on x86-64 (prompts 12%, tokens 5%, against the clang of zig 0.17), so
it compiles where it can. zig links for Linux, since it knows the symbols of every glibc, and does
all of what gcc cannot: macOS, whose headers and library stubs it brings, and Windows on Arm.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Target:
    """A platform to build for; ``tag`` is the wheel's, ``system`` is ``sys.platform`` there."""

    tag: str
    compiler: tuple[str, ...]
    system: str
    compile_args: tuple[str, ...] = ()
    linker: tuple[str, ...] = ()  # default: the compiler
    debian: str = field(default="", compare=False)  # the package that has the compiler

    @property
    def library_name(self) -> str:
        return {"win32": "edgedb.dll", "darwin": "libedgedb.dylib"}.get(self.system, "libedgedb.so")

    @property
    def link_args(self) -> tuple[str, ...]:
        return {
            # -static: without gcc's own library beside ours. zig would make an archive of it.
            "win32": ("-shared",) if "ziglang" in self.compiler else ("-shared", "-static"),
            "darwin": ("-dynamiclib", f"-Wl,-install_name,@rpath/{self.library_name}"),
        }.get(self.system, ("-shared", "-pthread"))

    @property
    def libraries(self) -> tuple[str, ...]:
        return () if self.system in ("win32", "darwin") else ("-lm",)


def _zig(triple: str) -> tuple[str, ...]:
    # -mcpu=baseline: zig otherwise compiles for this very CPU.
    command = (sys.executable, "-m", "ziglang", "cc", "-target", triple, "-mcpu=baseline")
    return (*command, "-fno-sanitize=undefined")


_POSITION_INDEPENDENT = ("-fPIC",)

# gcc puts 32-byte registers on the stack of Windows by moves that want 32-byte boundaries, and the
# stack of Windows has 16 (its bug 54412). The assembler turns those into moves that want none.
UNALIGNED_MOVES = ("-Wa,-muse-unaligned-vector-move",)

_ALL = [
    Target(
        tag="manylinux_2_28_x86_64",
        compiler=("x86_64-linux-gnu-gcc",),
        system="linux",
        compile_args=_POSITION_INDEPENDENT,
        linker=_zig("x86_64-linux-gnu.2.28"),
        debian="gcc",
    ),
    Target(
        tag="manylinux_2_28_aarch64",
        compiler=("aarch64-linux-gnu-gcc",),
        system="linux",
        compile_args=_POSITION_INDEPENDENT,
        linker=_zig("aarch64-linux-gnu.2.28"),
        debian="gcc-aarch64-linux-gnu",
    ),
    Target("macosx_11_0_arm64", _zig("aarch64-macos.11.0"), "darwin"),
    Target("macosx_10_15_x86_64", _zig("x86_64-macos.10.15"), "darwin"),
    Target(
        tag="win_amd64",
        compiler=("x86_64-w64-mingw32-gcc",),
        system="win32",
        compile_args=UNALIGNED_MOVES,
        debian="gcc-mingw-w64-x86-64",
    ),
    Target("win_arm64", _zig("aarch64-windows-gnu"), "win32"),
]
TARGETS = {target.tag: target for target in _ALL}
