"""What a run says for its lines, and how another run knows it."""

from __future__ import annotations

import json
from pathlib import Path

import edgedb
from edgedb import SamplingParams
from edgedb.jobs.defaults import Defaults, identity


def test_identity_names_what_changes_results(tiny_model: Path) -> None:
    model = edgedb.load(tiny_model, backend="numpy")
    same = identity(model, Defaults())
    assert same == json.loads(json.dumps(same))
    assert same == identity(edgedb.load(tiny_model, backend="numpy", threads=2), Defaults())
    others = [
        identity(edgedb.load(tiny_model, backend="numpy", context=64), Defaults()),
        identity(edgedb.load(tiny_model, backend="numpy", kv_dtype="int8"), Defaults()),
        identity(model, Defaults(max_tokens=5)),
        identity(model, Defaults(SamplingParams(seed=1))),
        identity(model, Defaults(SamplingParams(seed=0, logit_bias={3: 1.0}))),
    ]
    assert all(other != same for other in others)
