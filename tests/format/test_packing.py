import numpy as np
import pytest
from dbb_files import random_linear, random_planes
from hypothesis import given, settings
from hypothesis import strategies as st

from edgedb.format import packing
from edgedb.format.tensors import DenseTensor, PairTensor

ODD = (1, 7, 63, 64, 65, 172)
SHAPES = [(rows, cols) for rows in ODD for cols in ODD] + [(1100, 300)]


@pytest.mark.parametrize(("rows", "cols"), SHAPES)
def test_planes_round_trip(rows, cols):
    planes = random_planes(rows, cols, np.random.default_rng(rows * 1000 + cols))
    blocks = packing.pack_planes(*planes)
    assert blocks.shape == (-(-rows // 64), -(-cols // 64), 1152)
    for expected, found in zip(planes, packing.unpack_planes(blocks, rows, cols), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_one_bit_lies_where_the_format_says():
    b1 = np.zeros((70, 130), bool)
    b2 = np.zeros_like(b1)
    b1[66, 64 + 4 * 5 + 3] = True  # tile 1, lane 2; group 1, quad 5, column 3 of the quad
    b2[66, 64 + 4 * 5 + 1] = True
    c1 = np.zeros((70, 3), np.int8)
    c2 = np.zeros_like(c1)
    c1[66, 1], c2[66, 1] = -7, 9
    blocks = packing.pack_planes(b1, b2, c1, c2)
    expected = np.zeros((2, 3, 1152), np.uint8)
    expected[1, 1, 64 * 5 + 2] = 1 << 3 | 1 << 1 << 4
    expected[1, 1, 1024 + 2] = 256 - 7
    expected[1, 1, 1088 + 2] = 9
    np.testing.assert_array_equal(blocks, expected)


def test_one_bit_of_a_half_lies_where_the_format_says():
    b = np.zeros((70, 130), bool)
    b[66, 64 + 4 * 5 + 3] = True  # tile 1, lane 2; group 1, quad 5 (the second of two), column 3
    b[66, 64 + 4 * 4 + 1] = True  # quad 4, column 1
    c = np.zeros((70, 3), np.int8)
    c[66, 1] = -7
    expected = np.zeros((2, 3, 576), np.uint8)
    expected[1, 1, 64 * 2 + 2] = 1 << 3 << 4 | 1 << 1
    expected[1, 1, 512 + 2] = 256 - 7
    np.testing.assert_array_equal(packing.pack_half(b, c), expected)


@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (65, 172), (130, 64)])
@pytest.mark.parametrize("planes", [2, 3, 4, 5, 6])
def test_dequantize_pairs(rows, cols, planes):
    tensor = random_linear(planes, rows, cols)
    expected = np.zeros((rows, cols), np.float32)
    for blocks, scale in tensor.terms():
        if blocks.shape[2] == 1152:
            b1, b2, c1, c2 = packing.unpack_planes(blocks, rows, cols)
        else:
            b1, c1 = packing.unpack_half(blocks, rows, cols)
            b2, c2 = np.zeros_like(b1), np.zeros_like(c1)
        spread = np.repeat(np.stack([c1, c2]), 64, axis=2)[:, :, :cols].astype(np.float32)
        level = b1 * spread[0] + b2 * spread[1]
        np.testing.assert_array_equal(packing.levels(blocks, rows, cols), level)
        expected += scale[:, None] * level
    np.testing.assert_array_equal(packing.dequantize(tensor), expected)


@pytest.mark.parametrize(("rows", "cols"), SHAPES)
def test_int8_round_trip(rows, cols):
    weight = np.random.default_rng(0).standard_normal((rows, cols), np.float32)
    codes, scales = packing.quantize_int8(weight)
    tensor = packing.pack_int8(codes, scales)
    found_codes, found_scales = packing.unpack_int8(tensor)
    np.testing.assert_array_equal(found_codes, codes)
    np.testing.assert_array_equal(found_scales, scales)
    wide = np.repeat(scales, 64, axis=1)[:, :cols]
    np.testing.assert_array_equal(packing.dequantize(tensor), codes * wide)
    assert (np.abs(packing.dequantize(tensor) - weight) <= wide * 0.5001).all()


def test_int8_rounds_half_to_even():
    codes, scales = packing.quantize_int8(np.array([[127, 0.5, 1.5, -2.5]], np.float32))
    assert scales[0, 0] == 1
    assert codes[0].tolist() == [127, 0, 2, -2]


def test_int8_of_nothing_and_of_almost_nothing_is_zero():
    weight = np.array([[0.0] * 64 + [1e-42] * 64], np.float32)
    codes, scales = packing.quantize_int8(weight)
    assert not codes.any()
    assert not scales.any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_int8_refuses_what_is_not_finite(bad):
    weight = np.ones((2, 70), np.float32)
    weight[1, 66] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        packing.quantize_int8(weight)


@pytest.mark.parametrize("kind", [2, 4, 5, "int8", "float16", "float32"])
@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (7, 65), (200, 172)])
def test_gather_rows_equals_dequantize(kind, rows, cols):
    tensor = random_linear(kind, rows, cols)
    ids = np.random.default_rng(0).integers(0, rows, 9)
    np.testing.assert_array_equal(packing.gather_rows(tensor, ids), packing.dequantize(tensor)[ids])
    for bad in (-1, rows):
        with pytest.raises(IndexError, match=f"0..{rows - 1}"):
            packing.gather_rows(tensor, np.array([bad]))


def test_dequantize_crosses_chunks():
    # Small matrices fit one chunk of the loop inside; this one does not.
    tensor = random_linear(2, 130, 65600)
    last = PairTensor(tensor.blocks[:, 2:], tensor.row_scale[:, 128:], 2, 65600)
    np.testing.assert_array_equal(packing.dequantize(tensor)[128:], packing.dequantize(last))


def test_dense_is_exact():
    weight = np.array([[1e-7, 65504, -0.0]], np.float16)
    np.testing.assert_array_equal(packing.dequantize(DenseTensor(weight)), weight)


def test_pack_planes_refuses_codes_outside_the_format():
    b = np.zeros((1, 1), bool)
    for c1, c2 in [(-128, 0), (100, 28), (-100, -28)]:
        with pytest.raises(ValueError, match=r"-127\.\.127"):
            packing.pack_planes(b, b, np.array([[c1]], np.int8), np.array([[c2]], np.int8))
    with pytest.raises(ValueError, match=r"-127\.\.127"):
        packing.pack_half(b, np.array([[-128]], np.int8))
    one, two = np.zeros((1, 1), np.int8), np.zeros((1, 2), np.int8)
    for pack in (lambda: packing.pack_planes(b, b, two, one), lambda: packing.pack_half(b, two)):
        with pytest.raises(ValueError, match="do not fit"):
            pack()
    with pytest.raises(ValueError, match="do not fit"):
        packing.pack_planes(b, np.zeros((1, 2), bool), one, one)


@settings(max_examples=50, deadline=None)
@given(rows=st.integers(1, 140), cols=st.integers(1, 200), seed=st.integers(0, 2**32 - 1))
def test_any_shape_round_trips(rows, cols, seed):
    rng = np.random.default_rng(seed)
    planes = random_planes(rows, cols, rng)
    blocks = packing.pack_planes(*planes)
    for expected, found in zip(planes, packing.unpack_planes(blocks, rows, cols), strict=True):
        np.testing.assert_array_equal(found, expected)
    half = packing.pack_half(*planes[::2])
    for expected, found in zip(planes[::2], packing.unpack_half(half, rows, cols), strict=True):
        np.testing.assert_array_equal(found, expected)
    weight = rng.standard_normal((rows, cols), np.float32)
    codes, scales = packing.quantize_int8(weight)
    found_codes, found_scales = packing.unpack_int8(packing.pack_int8(codes, scales))
    np.testing.assert_array_equal(found_codes, codes)
    np.testing.assert_array_equal(found_scales, scales)
