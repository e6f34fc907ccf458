"""Windows of tokens over a text."""

from __future__ import annotations

import numpy as np
import pytest

from edgedb.convert.windows import lead_of, windows
from edgedb.errors import EdgeDBError
from edgedb.text.spec import TokenizerSpec


def test_windows_are_spread_over_the_text() -> None:
    found = windows("text", np.arange(100), [], 4, 10)
    assert found.dtype == np.int32 and found.shape == (4, 10)
    assert found[:, 0].tolist() == [0, 30, 60, 90]
    assert (np.diff(found, axis=1) == 1).all()


def test_each_begins_as_a_text_does() -> None:
    spec = TokenizerSpec("sentencepiece", b"", bos_id=1, eos_ids=(2,), add_bos=True)
    found = windows("text", np.arange(10, 50), lead_of(spec), 2, 8)
    assert found.shape == (2, 8) and (found[:, 0] == 1).all() and found[0, 1] == 10
    assert lead_of(TokenizerSpec("sentencepiece", b"", bos_id=1, eos_ids=(2,))) == []


def test_a_short_text_gives_fewer_or_is_refused() -> None:
    assert len(windows("text", np.arange(35), [], 8, 10)) == 3
    with pytest.raises(EdgeDBError, match="text: 9 tokens are too few"):
        windows("text", np.arange(9), [], 8, 10)
    with pytest.raises(EdgeDBError, match="no room"):
        windows("text", np.arange(9), [1], 8, 1)
