"""What a shared library says of itself in its headers: ELF, Mach-O and PE, 64 bits.

Enough to tell where it runs (processor, oldest system), what it asks for and what it shows. For our
own wheels: nothing here is written for hostile files.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Image:
    """``machine`` is ``x86_64`` or ``arm64``; ``needs`` the libraries it asks for by name, and
    ``oldest`` the newest version of glibc or the oldest macOS it names, empty on Windows.
    """

    kind: str
    machine: str
    needs: frozenset[str]
    shows: frozenset[str]
    oldest: tuple[int, ...]
    signed: bool = False


def read_image(data: bytes) -> Image:
    """Raises ``ValueError`` for anything else."""
    if data[:4] == b"\x7fELF":
        return _read_elf(data)
    if data[:4] == b"\xcf\xfa\xed\xfe":
        return _read_macho(data)
    if data[:2] == b"MZ":
        return _read_pe(data)
    raise ValueError("neither ELF nor Mach-O nor PE")


def _text(data: bytes, at: int) -> str:
    return data[at : data.index(0, at)].decode("ascii")


# ---- ELF: System V ABI, and the symbol versions of the Linux Standard Base ----

_SHT_DYNAMIC, _SHT_DYNSYM, _SHT_VERNEED = 6, 11, 0x6FFFFFFE


def _read_elf(data: bytes) -> Image:
    machine = {62: "x86_64", 183: "arm64"}[struct.unpack_from("<H", data, 18)[0]]
    (start,) = struct.unpack_from("<Q", data, 40)
    size, count = struct.unpack_from("<HH", data, 58)
    # type, offset, size, link
    sections = []
    for i in range(count):
        _, kind, _, _, offset, length, link = struct.unpack_from("<IIQQQQI", data, start + i * size)
        sections.append((kind, offset, length, link))
    needs, shows, versions = set(), set(), [(0,)]
    for kind, offset, length, link in sections:
        names = sections[link][1] if link < count else 0
        if kind == _SHT_DYNAMIC:
            for at in range(offset, offset + length, 16):
                tag, value = struct.unpack_from("<QQ", data, at)
                if tag == 1:
                    needs.add(_text(data, names + value))
        elif kind == _SHT_DYNSYM:
            for at in range(offset, offset + length, 24):
                name, info, _, section = struct.unpack_from("<IBBH", data, at)
                if section and info >> 4:  # defined, and not local
                    shows.add(_text(data, names + name))
        elif kind == _SHT_VERNEED:
            versions += _glibc_versions(data, offset, names)
    return Image("ELF", machine, frozenset(needs), frozenset(shows), max(versions))


def _glibc_versions(data: bytes, at: int, names: int) -> Iterator[tuple[int, ...]]:
    while True:
        _, count, _, first, following = struct.unpack_from("<HHIII", data, at)
        entry = at + first
        for _ in range(count):
            _, _, _, name, step = struct.unpack_from("<IHHII", data, entry)
            version = _text(data, names + name)
            if version.startswith("GLIBC_"):
                yield tuple(int(part) for part in version[6:].split("."))
            entry += step
        if not following:
            return
        at += following


# ---- Mach-O: <mach-o/loader.h> ----


def _read_macho(data: bytes) -> Image:
    machine = {0x01000007: "x86_64", 0x0100000C: "arm64"}[struct.unpack_from("<I", data, 4)[0]]
    (count,) = struct.unpack_from("<I", data, 16)
    needs, shows, oldest, signed, at = set(), set(), (0,), False, 32
    for _ in range(count):
        command, size = struct.unpack_from("<II", data, at)
        if command in (0x0C, 0x80000018):  # LC_LOAD_DYLIB, LC_LOAD_WEAK_DYLIB
            needs.add(_text(data, at + struct.unpack_from("<I", data, at + 8)[0]))
        elif command in (0x24, 0x32):  # LC_VERSION_MIN_MACOSX, LC_BUILD_VERSION
            (version,) = struct.unpack_from("<I", data, at + (8 if command == 0x24 else 12))
            oldest = (version >> 16, version >> 8 & 255)
        elif command == 0x1D:  # LC_CODE_SIGNATURE
            signed = True
        elif command == 0x02:  # LC_SYMTAB
            symbols, n_symbols, names = struct.unpack_from("<III", data, at + 8)
            for i in range(n_symbols):
                name, kind = struct.unpack_from("<IB", data, symbols + 16 * i)
                # Not for debuggers, external and not private, defined in a section.
                if not kind & 0xE0 and kind & 0x11 == 0x01 and kind & 0x0E == 0x0E:
                    shows.add(_text(data, names + name).removeprefix("_"))
            shows -= {"_mh_dylib_header", "__dso_handle"}  # of every library, for the linker
        at += size
    return Image("Mach-O", machine, frozenset(needs), frozenset(shows), oldest, signed)


# ---- PE: Microsoft's PE format ----


def _read_pe(data: bytes) -> Image:
    (pe,) = struct.unpack_from("<I", data, 60)
    machine, count = struct.unpack_from("<HH", data, pe + 4)
    (optional_size,) = struct.unpack_from("<H", data, pe + 20)
    sections = []
    for i in range(count):
        at = pe + 24 + optional_size + 40 * i
        sections.append(struct.unpack_from("<IIII", data, at + 8))  # size, address, size, offset

    def place(address: int) -> int:
        for size, start, stored, offset in sections:
            if start <= address < start + max(size, stored):
                return int(address - start + offset)
        raise ValueError("an address outside of all sections")

    directories = pe + 24 + 112
    exports, _, imports, _ = struct.unpack_from("<IIII", data, directories)
    needs, shows = set(), set()
    if exports:
        at = place(exports)
        (n_names,) = struct.unpack_from("<I", data, at + 24)
        (table,) = struct.unpack_from("<I", data, at + 32)
        for i in range(n_names):
            (name,) = struct.unpack_from("<I", data, place(table) + 4 * i)
            shows.add(_text(data, place(name)))
    if imports:
        at = place(imports)
        while (name := struct.unpack_from("<I", data, at + 12)[0]) != 0:
            needs.add(_text(data, place(name)))
            at += 20
    known = {0x8664: "x86_64", 0xAA64: "arm64"}
    return Image("PE", known[machine], frozenset(needs), frozenset(shows), ())
