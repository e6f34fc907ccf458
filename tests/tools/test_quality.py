"""Texts to measure a student on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install '.[train]'")

from edgedb.errors import EdgeDBError  # noqa: E402
from tools.quality import read_windows  # noqa: E402


def test_validation_texts_are_checked(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.npy", tmp_path / "bad.npy"
    np.save(good, np.arange(12, dtype=np.uint16).reshape(3, 4))
    found = read_windows([good], vocab_size=12)
    assert found["good"].dtype == torch.int64 and found["good"].shape == (3, 4)
    with pytest.raises(EdgeDBError, match=r"good\.npy: .* from 0 to 10"):
        read_windows([good], vocab_size=11)
    for array in (
        np.arange(4),
        np.zeros((2, 3), np.float32),
        np.array([[{}]]),
        np.zeros((0, 4), int),
    ):
        np.save(bad, array)
        with pytest.raises(EdgeDBError, match=r"bad\.npy"):
            read_windows([bad], vocab_size=12)
    for content in (b"", b"no array", good.read_bytes()[:-3]):
        bad.write_bytes(content)
        with pytest.raises(EdgeDBError, match=r"bad\.npy"):
            read_windows([bad], vocab_size=12)
