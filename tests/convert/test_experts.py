"""Mixtures of experts from a checkpoint to a file: expert by expert, with what each of them saw."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from families import copy_family, write_family_gguf
from safetensors.numpy import load_file, save_file
from tiny import family_source, ids_of

from edgedb import ops
from edgedb.convert.calibrate import SHARED_TOKENS, LayerInputs, Needs, hessians
from edgedb.convert.export import export
from edgedb.convert.forward import Meeting
from edgedb.convert.sources import open_source
from edgedb.convert.storage import Options
from edgedb.errors import FormatError, UnsupportedModelError
from edgedb.format.packing import dequantize
from edgedb.format.tensors import Experts
from edgedb.model.dbb import read_dbb
from edgedb.model.families import program_of
from edgedb.model.network import Network
from edgedb.ops import library
from edgedb.ops.native import NativeOps

WITH_EXPERTS = ("gpt_oss", "mixtral", "olmoe", "qwen3_moe")


@pytest.mark.parametrize("name", WITH_EXPERTS)
def test_every_expert_is_asked_for_with_what_it_saw(name: str) -> None:
    source = family_source(name)
    inputs, ids = LayerInputs(source, ids_of(source, 3, 20)), []
    program = program_of(source.config)
    for layer in range(source.config.n_layers):
        tokens: dict[str, int] = {}

        def store(name: str, needs: Needs, expert: int | None) -> np.ndarray:
            ids.append((name, expert))
            if expert is None:
                return source.tensor(name)
            tokens[name] = tokens.get(name, 0) + needs.tokens  # noqa: B023
            assert needs.missing is None or np.abs(needs.missing).max() < 1e-4
            return source.expert(name, expert)

        inputs.next_layer(store)
        chosen = 60 * source.config.experts_per_token
        assert set(tokens.values()) == ({chosen} if source.config.has_experts(layer) else set())
        np.testing.assert_allclose(inputs.hidden, inputs.exact, atol=1e-5)
    stacks = program.stacks()
    assert ids == [
        (name, expert)
        for name in program.matrices()
        if name.startswith("layers.")
        for expert in (range(stacks[name]) if name in stacks else [None])
    ]


def test_an_expert_that_saw_few_tokens_is_fitted_for_all() -> None:
    rng = np.random.default_rng(0)
    weight, shared = rng.normal(size=(8, 64)).astype("f"), rng.normal(size=(900, 64)).astype("f")
    of_all = hessians(shared)

    def needs(n: int) -> Needs:
        own, tokens = 2 * rng.normal(size=(n, 64)).astype("f"), np.arange(n)
        theirs = own + np.float32(0.1)
        met = (Meeting(x, None, tokens, shared) for x in (theirs, own))
        return Needs.of_expert(weight, *met, of_all)

    nothing = needs(0)
    np.testing.assert_array_equal(nothing.hessians, of_all)
    assert (nothing.tokens, nothing.missing) == (0, None)
    traces = [np.trace(needs(n).hessians[0]) / 64 for n in (1, SHARED_TOKENS, 100 * SHARED_TOKENS)]
    np.testing.assert_allclose(traces, [1, 2.5, 4], rtol=0.1)


def test_nothing_is_missing_where_the_teacher_sent_a_token_elsewhere() -> None:
    rng = np.random.default_rng(0)
    weight, x = rng.normal(size=(8, 64)).astype("f"), rng.normal(size=(3, 64)).astype("f")
    here = Meeting(x, None, np.array([2, 5, 9]), x)
    elsewhere = Meeting(x + 1, None, np.array([1, 3, 8]), x)
    missing = Needs.of_expert(weight, elsewhere, here, hessians(x)).missing
    assert missing is not None and not missing.any()
    one = Meeting(x + 1, None, np.array([1, 5, 8]), x)  # its second token is ours, too
    missing = Needs.of_expert(weight, one, here, hessians(x)).missing
    share = 3 / (3 + SHARED_TOKENS)
    expected = share * np.outer((x[1] + 1 - x[1]) @ weight.T, x[1]) / 3
    np.testing.assert_allclose(missing, expected, atol=1e-4)


def logits(path: Path, backend: ops.Ops, steps: list[int]) -> np.ndarray:
    file, n = read_dbb(path), sum(steps)
    network = Network(file.config, file.linears, file.vectors, backend, 64)
    cache, state, found, at = network.cache(64, "float32"), network.state(), [], 0
    ids = [7 * t % file.config.vocab_size for t in range(n)]
    for step in steps:
        row = network.forward(ids[at : at + step], cache, state, "all")
        assert row is not None
        found.append(row.copy())
        at += step
    return np.concatenate(found)


@pytest.mark.parametrize("name", WITH_EXPERTS)
def test_pairs_of_experts(shared: Path, tmp_path: Path, name: str) -> None:
    """Nearer to the teacher with every pair; the same bits everywhere, however they are read."""
    source = open_source(shared / "families" / name)
    options = Options(sequences=4, length=32)
    dense = tmp_path / "dense.dbb"
    export(source, dense, Options(method="dense32"))
    exact = logits(dense, ops.create(), [40])
    distances = []
    for pairs in (1, 2, 3):
        out = tmp_path / f"{pairs}.dbb"
        record = export(source, out, Options(**{**vars(options), "pairs": pairs}))
        for stack, count in program_of(source.config).stacks().items():
            facts = record["tensors"][stack]
            assert 0 <= facts["tokens"]["fewest"] <= facts["tokens"]["median"] <= 128
            stored = read_dbb(out).linears[stack]
            assert isinstance(stored, Experts) and (len(stored), stored.kind) == (count, 2 * pairs)
            weights = source.tensor(stack)
            error = np.square(weights - dequantize(stored)).sum() / np.square(weights).sum()
            assert error == pytest.approx(facts["error"], rel=0.5)
        assert read_dbb(out).linears["layers.0.router"].kind == "float16"
        found = logits(out, ops.create(), [40])
        assert np.isfinite(found).all()
        distances.append(np.square(found - exact).mean())
        if pairs != 2 or not library.available()[0]:
            continue
        for isa, _, runs in library.instruction_sets():
            for threads, steps in ((1, [40]), (2, [1] * 40), (3, [7, 1, 30, 2])):
                if runs:
                    np.testing.assert_array_equal(
                        logits(out, NativeOps(isa, threads), steps), found
                    )
    assert distances[0] > 2 * distances[1] > 4 * distances[2]


def test_a_budget_gives_bits_to_stacks(tmp_path: Path, shared: Path) -> None:
    source = open_source(shared / "families" / "qwen3_moe")
    out = tmp_path / "m.dbb"
    record = export(source, out, Options(bits=10.0, sequences=4, length=32))
    file = read_dbb(out)
    assert all(file.linears[name].kind in (2, 3, 4, 6) for name in program_of(file.config).stacks())
    assert file.linears["layers.1.router"].kind == "float16"
    assert "router" not in record["plan"]
    whole = sum(weight.nbytes for weight in file.linears.values())
    assert 8 * whole <= 10.0 * sum(program_of(file.config).sizes().values())


Change = Callable[[dict[str, np.ndarray]], object]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.pop("model.layers.1.mlp.experts.3.up_proj.weight"), "experts.3.up_proj"),
        (
            lambda t: t.update({"model.layers.0.mlp.gate.weight": np.zeros((5, 72), "f")}),
            r"layers.0.mlp.gate.weight has shape \[5, 72\], the configuration asks for \[6, 72\]",
        ),
        (
            lambda t: t.update(
                {"model.layers.0.mlp.experts.6.up_proj.weight": np.zeros((23, 72), "f")}
            ),
            "experts.6.up_proj.weight has no place",
        ),
        (
            lambda t: t.update(
                {"model.layers.0.mlp.shared_expert.up_proj.weight": np.zeros((9, 72), "f")}
            ),
            "shared_expert.up_proj.weight has no place",
        ),
    ],
)
def test_experts_that_do_not_fit_are_named(
    shared: Path, tmp_path: Path, change: Change, named: str
) -> None:
    folder = copy_family(shared / "families" / "qwen3_moe", tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises((FormatError, UnsupportedModelError), match=named):
        open_source(folder)


def test_a_gguf_with_another_number_of_experts_is_refused(shared: Path, tmp_path: Path) -> None:
    changes = {"num_local_experts": 5}
    folder = copy_family(shared / "families" / "qwen3_moe", tmp_path / "m", **changes)
    path = write_family_gguf(folder, tmp_path / "m.gguf")
    with pytest.raises(FormatError, match=r"ffn_gate_inp.weight has shape \[6, 72\]"):
        open_source(path)
