"""Windows of tokens, spread evenly over a text."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import EdgeDBError
from ..text.spec import TokenizerSpec


def lead_of(spec: TokenizerSpec) -> list[int]:
    """Token ids that a text begins with."""
    return [spec.bos_id] if spec.add_bos and spec.bos_id is not None else []


def windows(
    name: str, ids: NDArray[Any], lead: list[int], sequences: int, length: int
) -> NDArray[np.int32]:
    """At most ``sequences`` windows ``[n, length]`` of ``ids``, each with ``lead`` before it.

    ``name`` says in errors what the text is: ``EdgeDBError`` where it holds less than one window,
    or a window has no room for text.
    """
    step = length - len(lead)
    if step < 1:
        raise EdgeDBError(f"a sequence of {length} tokens has no room for text")
    count = min(sequences, len(ids) // step)
    if not count:
        raise EdgeDBError(f"{name}: {len(ids)} tokens are too few to calibrate with, {step} needed")
    starts = np.linspace(0, len(ids) - step, count).astype(int)
    return np.stack([np.concatenate([lead, ids[s : s + step]]) for s in starts]).astype(np.int32)
