"""The decoder printed in docs/format.md works, and is as short as the page says."""

import re

import numpy as np
import pytest
from dbb_files import CONFIG, EXPERTS, write_experts, write_model
from places import ROOT

from edgedb.format import container, tensors
from edgedb.format.packing import dequantize
from edgedb.model.dbb import read_dbb
from edgedb.model.families import FAMILIES, program_of

PAGE = ROOT / "docs" / "format.md"


@pytest.fixture(scope="module")
def source() -> str:
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return block


def test_decoder_reads_every_matrix(source, tmp_path):
    path = write_model(tmp_path / "model.dbb")
    namespace: dict = {}
    exec(source, namespace)
    for name, tensor in read_dbb(path).linears.items():
        decoded = namespace["decode"](path, name, *program_of(CONFIG).matrices()[name])
        assert decoded.dtype == np.float32
        np.testing.assert_array_equal(decoded, dequantize(tensor))


def test_decoder_reads_every_expert(source, tmp_path):
    path = write_experts(tmp_path / "model.dbb")
    namespace: dict = {}
    exec(source, namespace)
    for name, count in program_of(EXPERTS).stacks().items():
        stack = dequantize(read_dbb(path).linears[name])
        for i in range(count):
            decoded = namespace["decode"](path, name, *stack.shape[1:], i)
            np.testing.assert_array_equal(decoded, stack[i])


def test_decoder_is_short(source):
    lines = source.strip().splitlines()
    body = lines[next(i for i, line in enumerate(lines) if line.startswith("def ")) :]
    assert len(body) <= 21
    assert all(len(line) <= 100 for line in lines)
    assert set(re.findall(r"^(?:import|from) (\w+)", source, re.MULTILINE)) == {"json", "numpy"}


def test_page_names_every_family():
    (row,) = re.findall(r"\| `model_type` \|.*", PAGE.read_text(encoding="utf-8"))
    assert all(f"`{name}`" in row for name in FAMILIES)


def test_page_states_the_constants_of_the_code():
    page = PAGE.read_text(encoding="utf-8")
    prefix = container.PREFIX.decode()
    assert f"{len(prefix)} bytes `{prefix}`" in page
    assert f"at offset {container.CRC_START}." in page
    assert f"{container.MAX_HEADER_BYTES:,}" in page
    assert f"pairs 1 to {tensors.MAX_PLANES // 2}" in page
    assert f"pairs 1 to {(tensors.MAX_PLANES - 1) // 2}; `NAME.half`" in page
    assert f"`U8 [tiles, groups, {tensors.HALF_BYTES}]`" in page
    assert f"[pairs, tiles, groups, {tensors.BLOCK_BYTES}]" in page
    first, second, third = container.VERSIONS
    assert f"| `version` | `{first}`; or `{second}`, which" in page
    assert f"; or `{third}`, which" in page
