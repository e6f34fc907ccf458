"""Which logits a choice depends on: the others need not be computed (``model/head.py``)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..model.head import Needed
from .sampling import Sampler


def needed(sampler: Sampler, history: Sequence[int] | np.ndarray) -> Needed | None:
    """What ``sampler`` looks at after ``history``; None: the whole vocabulary."""
    params = sampler.params
    if sampler.unpredictable:
        return None
    ids = set(params.logit_bias)
    if params.repetition_window and (
        params.repetition_penalty != 1 or params.presence_penalty or params.frequency_penalty
    ):
        ids.update(int(i) for i in history[-params.repetition_window :])
    exact = tuple(sorted(ids))
    if params.temperature == 0:
        return Needed(1, math.inf, exact)
    margin = math.inf
    if params.top_p == params.typical_p == 1 and params.min_p > 0:
        margin = -math.log(params.min_p) + 1e-6  # more than the exponential's rounding
    # Top-p and typical-p depend on sums over all that top-k leaves: min-p cannot shorten that.
    return Needed(params.top_k, margin, exact) if params.top_k or margin < math.inf else None
