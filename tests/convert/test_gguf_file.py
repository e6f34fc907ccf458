"""The container of GGUF: what it says is compared with the file before anything is made of it."""

from __future__ import annotations

import resource
import struct
from collections.abc import Callable
from pathlib import Path

import gguf_bytes as raw
import numpy as np
import pytest
from checkpoints import write_gguf
from gguf import GGMLQuantizationType, quants
from gguf_bytes import ARRAY, BOOL, F32, I32, STRING, U32, U64, array, entry, tensor
from quick import within

from edgedb.convert.sources import open_source
from edgedb.convert.sources.gguf_file import GGUFFile, open_parts
from edgedb.errors import EdgeDBError, FormatError, UnsupportedModelError
from edgedb.model.families import program_of

HUGE = 1 << 40


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write_file(*args: object, name: str = "x.gguf", **options: object) -> Path:
        (tmp_path / name).write_bytes(raw.file(*args, **options))  # type: ignore[arg-type]
        return tmp_path / name

    return write_file


def test_values_and_tensors_are_read(write: Callable[..., Path]) -> None:
    weights = np.arange(64, dtype=np.float32).reshape(2, 32)
    norm = np.arange(6, dtype=np.float32)
    packed = quants.quantize(weights, GGMLQuantizationType.Q8_0)
    data = norm.tobytes() + bytes(8) + packed.tobytes()
    file = GGUFFile(
        write(
            [
                entry("a.text", STRING, "Grüße"),
                entry("a.bytes", STRING, b"\xff"),
                entry("a.number", I32, -5),
                entry("a.flag", BOOL, True),
                entry("a.float", F32, 0.5),
                entry("a.list", ARRAY, array(U64, [1, 1 << 63])),
                entry("a.words", ARRAY, array(STRING, ["x", "", "yz"])),
                entry("a.empty", ARRAY, array(U32, [])),
            ],
            [tensor("norm", (6,)), tensor("w", (2, 32), kind=8, offset=32)],
            data,
        )
    )
    assert file.metadata == {
        "a.text": "Grüße",
        "a.bytes": b"\xff",
        "a.number": -5,
        "a.flag": True,
        "a.float": 0.5,
        "a.list": [1, 1 << 63],
        "a.words": ["x", "", "yz"],
        "a.empty": [],
    }
    np.testing.assert_array_equal(file.tensors["norm"].read(2, 5), norm[2:5])
    want = quants.dequantize(packed, GGMLQuantizationType.Q8_0)
    np.testing.assert_array_equal(file.tensors["w"].read(1, 2), want[1:2])


def test_weights_at_odd_bytes_are_aligned(write: Callable[..., Path]) -> None:
    entries = [entry("general.alignment", U32, 1)]
    values = np.arange(3, dtype=np.float32)
    for n in range(4):  # one of the four begins at a multiple of four
        path = write(
            [*entries, entry("a" * n, BOOL, True)],
            [tensor("w", (3,))],
            values.tobytes(),
            alignment=1,
        )
        found = GGUFFile(path).tensors["w"].read(0, 3)
        np.testing.assert_array_equal(found, values)
        assert found.flags.aligned


@pytest.mark.filterwarnings("error")
def test_scales_that_are_no_numbers_are_read_without_a_word(write: Callable[..., Path]) -> None:
    infinite = np.full((1, 34), 0, np.uint8)
    infinite[0, :2] = np.array([np.inf], np.float16).view(np.uint8)
    file = GGUFFile(write([], [tensor("w", (1, 32), kind=8)], infinite.tobytes()))
    assert np.isnan(file.tensors["w"].read(0, 1)).all()


@pytest.mark.parametrize(
    "content",
    [
        raw.file([entry("a", ARRAY, array(STRING, [], count=HUGE))]),
        raw.file([entry("a", ARRAY, array(STRING, [], count=4_000_000))]),
        raw.file([entry("a", ARRAY, array(BOOL, [], count=HUGE))]),
        raw.file([entry("a", ARRAY, array(ARRAY, [], count=3))]),
        raw.file([entry("a", ARRAY, array(13, [], count=3))]),
        raw.file([entry("a", 13, b"")]),
        raw.file([entry("a", STRING, "")[:-8] + struct.pack("<Q", HUGE)]),
        raw.file([], counts=(0, HUGE)),
        raw.file([], counts=(0, 100_000)),
        raw.file([], counts=(HUGE, 0)),
        raw.file([entry("a", U32, 1), entry("a", U32, 2)]),
        raw.file([entry(b"\xff", U32, 1)]),
        raw.file([entry("general.alignment", U32, 0)]),
        raw.file([entry("general.alignment", U32, 48)]),
        raw.file([entry("general.alignment", STRING, "x")]),
        raw.file([], [tensor("w", (8,))], bytes(31)),
        raw.file([], [tensor("w", (1 << 62, 1 << 62))], bytes(32)),
        raw.file([], [tensor("w", (8,)), tensor("w", (8,), offset=32)], bytes(64)),
        raw.file([], [tensor("w", (8,)), tensor("v", (8,), offset=0)], bytes(64)),
        raw.file([], [tensor("w", (8,), offset=1 << 63)], bytes(64)),
        raw.file([], [tensor("w", (33,), kind=8)], bytes(64)),
        raw.file([], [tensor("w", (0, 1 << 62))]),
        raw.file([], [tensor("w", ())]),
        raw.file([], [tensor("w", (1,) * 5)], bytes(64)),
        raw.file([], [tensor(b"\xff", (8,))], bytes(64)),
        raw.file([], version=1),
        raw.file([])[:9],
        b"GGUF",
    ],
)
def test_false_lengths_are_refused_at_once(tmp_path: Path, content: bytes) -> None:
    """The first was seen to take all time and memory; it has 56 bytes."""
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm", encoding="ascii") as file:
        pages = int(file.read().split()[0])

    def refused() -> None:
        with pytest.raises(FormatError, match=r"^x\.gguf: [^\n]*$"):
            open_source(path)

    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (64 << 20), limits[1]))
    try:
        within(2, refused)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def test_every_cut_of_a_file_is_refused(tmp_path: Path, bpe_metadata: dict) -> None:
    whole = write_gguf(tmp_path / "whole.gguf", bpe_metadata).read_bytes()
    path = tmp_path / "x.gguf"
    for size in [*range(1, 400, 7), *range(400, len(whole), len(whole) // 50)]:
        path.write_bytes(whole[:size])
        with pytest.raises(FormatError, match=r"^x\.gguf: |neither"):
            open_source(path)


def test_a_big_endian_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + struct.pack(">IQQ", 3, 0, 0))
    with pytest.raises(UnsupportedModelError, match="big-endian"):
        open_source(tmp_path / "x.gguf")


def test_unknown_types_are_named(write: Callable[..., Path]) -> None:
    with pytest.raises(UnsupportedModelError, match="tensor w has type 99"):
        GGUFFile(write([], [tensor("w", (8,), kind=99)], bytes(64)))
    file = GGUFFile(write([], [tensor("w", (8,), kind=24)], bytes(64)))
    with pytest.raises(UnsupportedModelError, match="I8"):
        file.tensors["w"].read(0, 8)


@pytest.fixture
def parts(write: Callable[..., Path]) -> Callable[..., list[Path]]:
    """A model split into three files with a tensor each; ``changes`` of what part 2 says."""

    def write_parts(**changes: int) -> list[Path]:
        paths = []
        for i in range(3):
            says = {"no": i, "count": 3, "tensors": 3} | (changes if i == 1 else {})
            entries = [
                entry("split.no", U32, says["no"]),
                entry("split.count", U32, says["count"]),
                entry("split.tensors.count", I32, says["tensors"]),
            ]
            name = f"x-{i + 1:05}-of-00003.gguf"
            infos = [tensor(f"w{says.get('name', i)}", (8,))]
            paths.append(write(entries, infos, bytes([i] * 32), name=name))
        return paths

    return write_parts


def test_parts_are_one_model(parts: Callable[..., list[Path]]) -> None:
    paths = parts()
    for path in paths:  # whichever is named
        found = open_parts(path)
        assert [part.path for part in found] == paths
    assert [part.tensors[f"w{i}"].raw[0, 0] for i, part in enumerate(found)] == [0, 1, 2]


def test_parts_that_do_not_fit_are_named(parts: Callable[..., list[Path]]) -> None:
    for changes, what in (
        ({"no": 2}, "x-00002-of-00003.gguf: says it is part 2 of 3"),
        ({"count": 4}, "x-00002-of-00003.gguf: says it is part 1 of 4"),
        ({"name": 0}, "x-00002-of-00003.gguf: tensor w0 is in an earlier part"),
    ):
        with pytest.raises(FormatError, match=what):
            open_parts(parts(**changes)[0])
    paths = parts()
    paths[1].unlink()
    with pytest.raises(FormatError, match=r"x-00002-of-00003.gguf is missing: .* 3 files"):
        open_source(paths[0])
    paths[0].rename(paths[0].with_name("y.gguf"))
    with pytest.raises(FormatError, match=r"y.gguf: one of 3 parts"):
        open_source(paths[0].with_name("y.gguf"))


def test_a_split_model_equals_the_whole(tmp_path: Path, bpe_metadata: dict) -> None:
    whole = open_source(write_gguf(tmp_path / "whole.gguf", bpe_metadata))
    first = write_gguf(tmp_path / "m.gguf", bpe_metadata, parts=3)
    assert first.name == "m-00001-of-00003.gguf"
    split = open_source(first)
    assert [file.name for file in split.files()] == [f"m-{i:05}-of-00003.gguf" for i in (1, 2, 3)]
    assert split.config == whole.config and split.tokenizer_spec == whole.tokenizer_spec
    for name in [*program_of(whole.config).matrices(), *program_of(whole.config).vectors()]:
        np.testing.assert_array_equal(split.tensor(name), whole.tensor(name))
    last = tmp_path / "m-00003-of-00003.gguf"
    assert open_source(last).fingerprint() == split.fingerprint()
    last.unlink()
    with pytest.raises(EdgeDBError, match=r"m-00003-of-00003\.gguf is missing"):
        open_source(first)
