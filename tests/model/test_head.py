"""The two-stage head: its bound holds, and it samples what the full head samples."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels import activations, assert_same_bits, pair_tensor, random
from places import ROOT

import edgedb
from edgedb import ops
from edgedb.choose.needed import needed
from edgedb.choose.sampling import Sampler, SamplingParams
from edgedb.errors import EdgeDBError
from edgedb.format.packing import dequantize, levels
from edgedb.format.tensors import PairTensor
from edgedb.model import head
from edgedb.model.head import Needed, TwoStageHead, group_norms
from edgedb.run.session import Session

DB2 = ROOT / "models" / "smollm2-135m-instruct-db2.dbb"

OPS = ops.create(threads=1)

PARAMS = [
    SamplingParams(temperature=0),
    SamplingParams(temperature=0, repetition_penalty=1.3),
    SamplingParams(temperature=0, repetition_penalty=0.5, repetition_window=3),
    SamplingParams(temperature=0.8, top_k=1),
    SamplingParams(temperature=0.8),
    SamplingParams(temperature=1.5, top_k=5, top_p=1, min_p=0, repetition_penalty=1.2),
    SamplingParams(temperature=1.2, top_k=7, top_p=1, min_p=0.01, repetition_penalty=0.7),
    SamplingParams(temperature=1.2, top_k=0, top_p=1, min_p=0.2),
    SamplingParams(temperature=2, top_k=12, top_p=0.9, min_p=0),
    SamplingParams(temperature=1, top_k=9, typical_p=0.5, presence_penalty=1, frequency_penalty=-1),
    SamplingParams(temperature=0, logit_bias={64: 3.0, 2: -5.0, 7: -math.inf}),
]


def run(tensor: PairTensor, x: np.ndarray, wanted: Needed | None) -> tuple[np.ndarray, int]:
    """Logits of one token, by the full head without ``wanted``; and the tiles read in full."""
    out, buffer = OPS.buffer((1, tensor.rows)), OPS.wrap(np.ascontiguousarray(x[None]))
    if wanted is None:
        OPS.matmul(OPS.matrix(tensor), buffer, out, 1)
        return out.array[0], tensor.blocks.shape[1]
    tiles = TwoStageHead(tensor, OPS).fill(buffer, out, wanted)
    return out.array[0], tiles


def peaked(rows: int, cols: int, pairs: float, seed: int, share: float) -> PairTensor:
    """A random head whose last pair, or half, weighs ``share`` of the others: bounds can prune."""
    tensor = pair_tensor(rows, cols, pairs, seed)
    tensor.row_scale[-1] *= np.float32(share)
    return tensor


@pytest.fixture
def always_prune(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small heads have few tiles: take any number of them one by one."""
    monkeypatch.setattr(head, "_FEW", 1.0)


@pytest.mark.usefixtures("always_prune")
@settings(deadline=None, max_examples=60)
@given(
    rows=st.sampled_from((65, 640, 1000, 2049)),
    cols=st.sampled_from((1, 63, 65, 200)),
    pairs=st.sampled_from((1.5, 2, 2.5, 3)),
    share=st.sampled_from((0.0, 1e-4, 0.003, 0.03, 1.0)),
    seed=st.integers(0, 1000),
)
def test_same_token_as_the_full_head(
    rows: int, cols: int, pairs: float, share: float, seed: int
) -> None:
    tensor = peaked(rows, cols, pairs, seed, share)
    rng = random(seed)
    x = activations(1, cols, seed)[0]
    x *= np.float32(rng.choice((1e-4, 1e-2, 1))) / max(np.abs(x).max(), np.float32(1e-9))
    history = rng.integers(0, rows, 20).tolist()
    full, _ = run(tensor, x, None)
    for params in PARAMS:
        wanted = needed(Sampler(params), history)
        assert wanted is not None
        found, _ = run(tensor, x, wanted)
        left = found == -np.inf
        assert_same_bits(found[~left], full[~left])
        for seed_of_choice in range(3):
            drawn = SamplingParams(**{**vars(params), "seed": seed_of_choice})
            assert Sampler(drawn).sample(found, history) == Sampler(drawn).sample(full, history)


@pytest.mark.usefixtures("always_prune")
def test_a_bias_counts_in_the_choice_and_is_added_last() -> None:
    tensor, x = peaked(1000, 65, 2, 1, 0.003), activations(1, 65)[0] * np.float32(1e-3)
    full, _ = run(tensor, x, None)
    bias = random(2).normal(0, np.ptp(full) / 2, 1000).astype(np.float32)
    out = OPS.buffer((1, 1000))
    read = TwoStageHead(tensor, OPS, bias).fill(OPS.wrap(x[None]), out, Needed(3, math.inf))
    assert 1 <= read < 16
    left = out.array[0] == -np.inf
    assert_same_bits(out.array[0][~left], (full + bias)[~left])
    assert not left[np.argsort(full + bias)[-3:]].any()


@pytest.mark.usefixtures("always_prune")
@pytest.mark.parametrize("params", PARAMS, ids=range(len(PARAMS)))
def test_ties_go_to_the_lowest_id(params: SamplingParams) -> None:
    """Equal rows in many tiles, the best ones among them."""
    tensor = peaked(1280, 64, 2, 3, 0.01)
    tensor.blocks[:, 5:] = tensor.blocks[:, 4:5]
    tensor.row_scale[:, 320:] = np.tile(tensor.row_scale[:, 256:320], 15)
    for x in activations(8, 64, 4) * np.float32(1e-3):
        full, _ = run(tensor, x, None)
        wanted = needed(Sampler(params), [260, 300, 700])
        assert wanted is not None
        found, _ = run(tensor, x, wanted)
        for seed in range(4):
            drawn = SamplingParams(**{**vars(params), "seed": seed})
            tokens = [Sampler(drawn).sample(y, [260, 300, 700]) for y in (found, full)]
            assert tokens[0] == tokens[1]


@pytest.mark.parametrize("pairs", [1.5, 2])
def test_bound_holds_where_it_is_tight(pairs: float) -> None:
    """Activations along a row's own last pair: Cauchy-Schwarz with equality, up to quantization."""
    tensor = peaked(192, 200, pairs, 5, 1.0)
    last = dequantize(PairTensor(tensor.blocks[1:], tensor.row_scale[-1:], 192, 200, tensor.half))
    two_stage = TwoStageHead(tensor, OPS)
    closest = 0.0
    for row, sign in itertools.product(range(0, 192, 7), (1, -1)):
        x = np.ascontiguousarray(sign * last[row])
        stage1 = run_pairs(tensor, x, slice(0, 1))
        full, _ = run(tensor, x, None)
        radius = two_stage.radius(x[None])
        assert (full <= stage1 + radius).all() and (full >= stage1 - radius).all()
        moved = abs(float(full[row]) - float(stage1[row]))
        closest = max(closest, moved / float(radius[row]))
    assert 0.99 < closest <= 1


def run_pairs(tensor: PairTensor, x: np.ndarray, pairs: slice) -> np.ndarray:
    part = PairTensor(tensor.blocks[pairs], tensor.row_scale[pairs], tensor.rows, tensor.cols)
    return run(part, x, None)[0]


@pytest.mark.parametrize("pairs", [0.5, 1])
@pytest.mark.parametrize("scale", [1e-30, 1, 1e30])
def test_norms_are_rounded_up(scale: float, pairs: float) -> None:
    tensor = pair_tensor(130, 172, pairs)
    tensor.row_scale[...] *= np.float32(scale)
    ((blocks, row_scale),) = tensor.terms()
    weights = np.zeros((130, 192))
    weights[:, :172] = levels(blocks, 130, 172)  # the norms also count the filler's bits
    weights *= row_scale[:, None].astype(np.float64)
    exact = np.sqrt(np.square(weights.reshape(130, 3, 64)).sum(axis=2))
    norms = group_norms(tensor)
    assert (norms[:, :2] >= exact[:, :2]).all() and (norms[:, 2] >= exact[:, 2]).all()
    np.testing.assert_allclose(norms[:, :2], exact[:, :2], rtol=1e-5, atol=1e-40)


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_what_is_not_finite_takes_the_full_head(value: float) -> None:
    tensor = peaked(1280, 65, 2, 1, 0.01)
    x = activations(1, 65)[0]
    x[3] = value
    full, tiles = run(tensor, x, None)
    found, read = run(tensor, x, Needed(1, math.inf))
    assert_same_bits(found, full)
    assert read == tiles or np.isfinite(full).all()


def test_a_peaked_head_is_read_in_part() -> None:
    tensor = peaked(6400, 64, 2, 2, 1e-4)
    x = activations(1, 64)[0]
    _, tiles = run(tensor, x, Needed(1, math.inf))
    assert tiles < 10
    _, tiles = run(tensor, x, Needed(1, math.inf, ids=tuple(range(0, 1280, 64))))
    assert 20 <= tiles < 30
    _, tiles = run(tensor, x, Needed(40, math.inf))
    assert tiles == 100  # too many to read one by one


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"temperature": 0}, Needed(1, math.inf)),
        ({"top_k": 9, "min_p": 0}, Needed(9, math.inf)),
        ({"top_k": 9, "min_p": 0.5}, Needed(9, math.inf)),  # top-p sums over all nine
        ({"top_k": 9, "top_p": 1, "min_p": 1}, Needed(9, 1e-6)),
        ({"top_k": 0, "top_p": 1, "min_p": 1}, Needed(0, 1e-6)),
        ({"top_k": 0, "top_p": 0.9, "min_p": 0.5}, None),
        ({"top_k": 0, "top_p": 1, "min_p": 0}, None),
        ({"top_k": 9, "top_p": 1, "typical_p": 0.9}, Needed(9, math.inf)),
        ({"top_k": 3, "repetition_penalty": 2.0}, Needed(3, math.inf, (4, 7))),
        ({"top_k": 3, "presence_penalty": 2.0}, Needed(3, math.inf, (4, 7))),
        ({"top_k": 3, "frequency_penalty": 2.0, "repetition_window": 0}, Needed(3, math.inf)),
        ({"temperature": 0, "logit_bias": {9: 1.0}}, Needed(1, math.inf, (9,))),
        ({"dry_multiplier": 1.0}, None),
        ({"mirostat": 2}, None),
    ],
)
def test_what_a_sampler_needs(params: dict[str, Any], expected: Needed | None) -> None:
    assert needed(Sampler(SamplingParams(**params)), [7, 4, 7]) == expected


def test_a_sampler_that_may_choose_anything_needs_everything() -> None:
    params = SamplingParams(temperature=0)
    assert needed(Sampler(params, processors=[lambda ids, logits: logits]), []) is None


def test_heads_that_have_no_second_stage(tiny_model: Path) -> None:
    with pytest.raises(EdgeDBError, match="this model's has int8; export it with --embedding 2"):
        edgedb.load(tiny_model, head="two-stage")
    with pytest.raises(EdgeDBError, match="this model's has 1 pair; "):
        TwoStageHead(pair_tensor(64, 64, 1), OPS)
    with pytest.raises(EdgeDBError, match="head = 'none': expected full or two-stage"):
        edgedb.load(tiny_model, head="none")


def test_a_session_of_the_real_model() -> None:
    """The same text, whole logits for who asks for them, and forks that go on alike."""
    models = [edgedb.load(DB2, head=kind, context=256, verify=False) for kind in head.HEADS]
    prompt = models[0].tokenize("The history of the city")
    for params in (PARAMS[0], PARAMS[4], PARAMS[7]):
        options = {"max_tokens": 24, "params": params, "seed": 5}
        texts = [model.generate(prompt, **options).tokens for model in models]
        assert texts[0] == texts[1]
    sessions = [Session(model) for model in models]
    for session in sessions:
        session.prefill(prompt)
        session.decode()
    assert sessions[0].logits().tobytes() == sessions[1].logits().tobytes()
    assert sessions[1].fork().decode() == sessions[0].decode()
