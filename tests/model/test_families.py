"""Every family against reference logits, through every interpreter; and nothing of it forgotten."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from families import (
    CASES,
    IN_GGUF,
    NOT_IN_GGUF,
    SUPPORTED,
    Checkpoints,
    copy_family,
    folder_of,
    reference,
    write_family_gguf,
)
from safetensors.numpy import load_file, save_file
from tiny import plain_weights

import edgedb
from edgedb.convert.calibrate import embedded
from edgedb.convert.export import export
from edgedb.convert.forward import Float32Program
from edgedb.convert.sources import Source, open_source
from edgedb.convert.storage import Options
from edgedb.errors import EdgeDBError, UnsupportedModelError
from edgedb.format.tensors import DenseTensor, Experts
from edgedb.model.config import ModelConfig
from edgedb.model.dbb import read_dbb
from edgedb.model.families import FAMILIES, program_of
from edgedb.model.network import Network
from edgedb.ops import create, statuses
from edgedb.ops.values import OPERATIONS

TOLERANCE = 2e-4
BACKENDS = [status.name for status in statuses() if status.available]
cases = pytest.mark.parametrize(("name", "variant"), CASES)


@pytest.fixture(scope="module")
def families() -> Checkpoints:
    return Checkpoints()


def opened(
    families: Checkpoints, tmp_path: Path, name: str, variant: str = "", **changes: Any
) -> Source:
    return open_source(copy_family(families / name, tmp_path / name, variant, **changes))


def logits_of(source: Source, ids: list[int], interpreter: str) -> np.ndarray:
    """Of the weights as they are, ``[ids, vocabulary]``."""
    if interpreter in OTHERS:
        return OTHERS[interpreter](source, ids)
    network = Network(source.config, *plain_weights(source), create(interpreter), 64)
    found = network.forward(ids, network.cache(64, "float32"), network.state(), "all")
    assert found is not None
    return found.copy()


def of_the_exporter(source: Source, ids: list[int]) -> np.ndarray:
    """Of the pass that calibrates; it must see every matrix of the layers in order."""
    program = program_of(source.config)
    forward = Float32Program(program, len(ids))
    linears, vectors = plain_weights(source)
    seen: list[str] = []
    x = embedded(source, np.array([ids], np.int32))
    for i, kind in enumerate(program.layers):
        own = {n: vectors[f"layers.{i}.{n}"] for n in program.kinds[kind].vectors}

        def weight_at(kind: str, inputs: np.ndarray, expert: int | None, i: int = i) -> np.ndarray:
            seen.extend([f"layers.{i}.{kind}"] if not expert else [])
            found = linears[seen[-1]]
            assert inputs.shape[1] == found.cols
            if isinstance(found, Experts):
                assert expert is not None
                return found.arrays[0][expert]
            assert isinstance(found, DenseTensor) and len(inputs) == len(ids)
            return found.weight

        x = forward.layer(i, x, own, weight_at)
    assert seen == [name for name in program.matrices() if name.startswith("layers.")]
    weights = {name: source.tensor(name) for name in program.head.matrices}
    last = forward.final(x, vectors)
    return forward.values(program.head, last, vectors, weights)[program.head.output][0]


def of_training(source: Source, ids: list[int]) -> np.ndarray:
    """Of teacher and student."""
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    from tools.decoder import load_teacher

    logits: np.ndarray = load_teacher(source).logits(torch.tensor([ids]))[0].numpy()
    return logits


def of_the_sampler(source: Source, ids: list[int]) -> np.ndarray:
    """Of what samples text to train on: a token of two sequences at a time."""
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    from tools.cached import CachedPass
    from tools.decoder import load_teacher

    cached = CachedPass(load_teacher(source), 2, 64, torch.float32)
    cached.BUCKET = 16  # so that a window leaves some of the cache unread
    rows = [
        cached.logits(torch.tensor([token, 7]), torch.tensor([i]), cached.reach(i))[0]
        for i, token in enumerate(ids)
    ]
    return torch.stack(rows).numpy()


NO_TORCH = "needs PyTorch: pip install '.[train]'"
OTHERS = {"exporter": of_the_exporter, "training": of_training, "sampler": of_the_sampler}
interpreters = pytest.mark.parametrize("interpreter", [*BACKENDS, *OTHERS])


@interpreters
@cases
def test_logits_are_those_of_transformers(
    families: Checkpoints, tmp_path: Path, name: str, variant: str, interpreter: str
) -> None:
    ids, expected, _ = reference(families / name, variant)
    got = logits_of(opened(families, tmp_path, name, variant), ids, interpreter)
    atol = TOLERANCE / 2 if interpreter in OTHERS else TOLERANCE
    np.testing.assert_allclose(got[-len(expected) :], expected, rtol=0, atol=atol)


@pytest.mark.parametrize("name", SUPPORTED)
def test_sampled_text_is_what_transformers_writes(
    families: Checkpoints, tmp_path: Path, name: str
) -> None:
    """At a temperature near zero."""
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    from tools.decoder import load_teacher
    from tools.generate import Sampler, SamplingPlan
    from tools.scripts import Scripts

    ids, _, greedy = reference(families / name)
    teacher = load_teacher(opened(families, tmp_path, name))
    plan = SamplingPlan(3, len(ids) + len(greedy), 1.0, temperatures=(1e-6,))
    sampled = Sampler(teacher, plan, torch.float32).sample(Scripts((tuple(ids),)), 0)
    assert sampled.tolist() == 3 * [ids + greedy]


@pytest.mark.parametrize("name", SUPPORTED)
def test_a_file_answers_as_transformers_does(
    families: Checkpoints, tmp_path: Path, name: str
) -> None:
    out = tmp_path / "m.dbb"
    export(opened(families, tmp_path, name), out, Options(method="dense32"))
    model = edgedb.load(out, kv_dtype="float32")
    ids, expected, greedy = reference(families / name)
    np.testing.assert_allclose(model.logits(ids), expected, rtol=0, atol=TOLERANCE)
    answer = model.generate(ids, max_tokens=len(greedy), temperature=0)
    assert answer.tokens == greedy
    document = json.loads(json.dumps(read_dbb(out).config.to_dict()))
    assert document.get("features", {}).keys() == FEATURES.get(name, set())


@cases
def test_a_gguf_is_the_same_model(
    families: Checkpoints, tmp_path: Path, name: str, variant: str
) -> None:
    changes = IN_GGUF.get(name, {})
    folder = copy_family(families / name, tmp_path / name, variant, **changes)
    hf = open_source(folder)
    if FAMILIES[hf.config.model_type].architecture is None or (name, variant) in NOT_IN_GGUF:
        pytest.skip("GGUF has no such thing")
    gguf = open_source(write_family_gguf(folder, tmp_path / "m.gguf"))
    ids, expected, _ = reference(families / name, variant)
    if changes:
        expected = logits_of(hf, ids, BACKENDS[0])
    got = logits_of(gguf, ids, BACKENDS[0])
    np.testing.assert_allclose(got[-len(expected) :], expected, rtol=0, atol=TOLERANCE)
    names = {*program_of(hf.config).matrices(), *program_of(hf.config).vectors()}
    assert names == {*program_of(gguf.config).matrices(), *program_of(gguf.config).vectors()}


_EXPERTS = {"n_experts", "experts_per_token", "expert_size"}
# What a file says of a family that has more than its name tells.
FEATURES = {
    "gemma2": {"sliding_window", "windowed_layers", "score_cap", "logit_cap"},
    "gemma3_text": {"sliding_window", "windowed_layers", "windowed_rope"},
    "gpt_oss": {
        *_EXPERTS,
        "normalized_shares",
        "gate_limit",
        "sliding_window",
        "windowed_layers",
    },
    "cohere2": {"sliding_window", "windowed_layers", "unrotated_layers"},
    "falcon": {"parallel"},
    "falcon_7b": {"attention_bias", "mlp_bias", "parallel", "shared_norm"},
    "falcon_rw": {"alibi", "attention_bias", "mlp_bias"},
    "gpt_neox": {"attention_bias", "parallel", "rotary_dim"},
    "gptj": {"rotary_dim"},
    "llama_bias": {"attention_bias", "mlp_bias"},
    "ministral3": {"query_growth"},
    "mistral": {"sliding_window"},
    "olmo3": {"sliding_window", "windowed_layers", "windowed_rope"},
    "mixtral": {*_EXPERTS, "normalized_shares"},
    "olmoe": _EXPERTS,
    "opt_350m": {"norms_behind"},
    "phi": {"rotary_dim"},
    "phi3": {"rotary_dim"},
    "qwen3_moe": {*_EXPERTS, "normalized_shares"},
    "smollm3": {"unrotated_layers"},
    "stablelm": {"attention_bias", "rotary_dim"},
    "starcoder2": {"attention_bias", "mlp_bias", "sliding_window"},
}
GLOBAL = {"factor": 3.0, "rope_theta": 1e5, "rope_type": "linear"}


def by_kind(full: dict[str, Any], sliding: dict[str, Any]) -> dict[str, Any]:
    return {"full_attention": full, "sliding_attention": sliding}


MINISTRAL = {
    "factor": 8.0,
    "llama_4_scaling_beta": 0.6,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 16,
    "rope_theta": 1e4,
    "rope_type": "yarn",
}
PHI: dict[str, Any] = {
    "long_factor": [1.5 + 1.1 * i for i in range(9)],
    "partial_rotary_factor": 0.75,
    "rope_theta": 1e4,
    "rope_type": "longrope",
    "short_factor": [1 + 0.15 * i for i in range(9)],
}
_GPT_OSS_YARN = {
    "factor": 8.0,
    "original_max_position_embeddings": 32,
    "rope_theta": 1e4,
    "rope_type": "yarn",
}
NEUTRAL: dict[str, dict[str, Any]] = {
    "llama3 rope scaling": {"rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}},
    "sliding window": {"sliding_window": None},
    "window off by one": {"sliding_window": 14},
    "rope theta 5e5": {"rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}},
    "rope theta 1e6": {"rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}},
    "tanh in GELU": {"hidden_act": "gelu"},
    "exact GELU": {"hidden_act": "gelu_new"},
    "parallel residual": {"use_parallel_residual": False},
    "logit_scale": {"logit_scale": 1.0},
    "ReLU": {"hidden_act": "gelu"},
    "GELU instead of SiLU": {"hidden_act": "silu"},
    "score softcap": {"attn_logit_softcapping": None},
    "logit softcap": {"final_logit_softcapping": None},
    "window in all layers": {"layer_types": ["sliding_attention"] * 3},
    "local theta": {"rope_parameters": by_kind(GLOBAL, {"rope_theta": 1e5})},
    "global theta": {"rope_parameters": by_kind(GLOBAL | {"rope_theta": 1e3}, {"rope_theta": 1e3})},
    "linear scaling": {"rope_parameters": by_kind({"rope_theta": 1e5}, {"rope_theta": 1e3})},
    "query_pre_attn_scalar": {"query_pre_attn_scalar": 20},
    "NoPE layers": {"no_rope_layers": [1, 1, 1]},
    "yarn": {
        "original_max_position_embeddings": 16,
        "rope_parameters": {"llama_4_scaling_beta": 0.6, "rope_theta": 1e4},
    },
    "rope theta 5e6": {"rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}},
    "query scale by position": {"rope_parameters": MINISTRAL | {"llama_4_scaling_beta": 0}},
    "longrope": {"rope_parameters": {"partial_rotary_factor": 0.75, "rope_theta": 1e4}},
    "short factors": {"rope_parameters": PHI | {"short_factor": [1.0] * 9}},
    "attention factor": {"rope_parameters": PHI | {"attention_factor": 1.0}},
    "long instead of short": {"rope_parameters": PHI | {"short_factor": PHI["long_factor"]}},
    "embedding_multiplier": {"embedding_multiplier": 1.0},
    "logits_scaling": {"logits_scaling": 1.0},
    "residual_multiplier": {"residual_multiplier": 1.0},
    "attention_multiplier": {"attention_multiplier": 18**-0.5},
    "number of experts": {"num_experts_per_tok": 1},
    "clamp": {"swiglu_limit": 1e5},
    "gpt_oss yarn": {"rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}},
    "truncate": {"rope_parameters": _GPT_OSS_YARN | {"truncate": True}},
    "norm_topk_prob": {"norm_topk_prob": False},
    "olmoe norm_topk_prob": {"norm_topk_prob": True},
}


# The same for what no setting of a checkpoint says.
UNSAID: dict[str, dict[str, Any]] = {"NoPE in full layers": {"unrotated_layers": ()}}


def without(read: Callable[..., np.ndarray], tensor: str) -> Callable[..., np.ndarray]:
    """``read_stored`` as if ``tensor`` did nothing."""
    added = tensor.endswith(("bias", "embed_positions.weight", "wpe.weight"))
    neutral = np.zeros_like if added else np.ones_like

    def reading(part: str, start: int, stop: int) -> np.ndarray:
        found = read(part, start, stop)
        return neutral(found) if part == tensor else found

    return reading


def features() -> Iterator[tuple[str, str]]:
    for name in SUPPORTED:
        report = folder_of(name) / "report.json"
        if report.is_file():
            ignoring = json.loads(report.read_text())["ignoring"].items()
            yield from ((name, feature) for feature, change in ignoring if change > 0)


# A tensor goes through the same operations in training and in its sampler, token by token, which
# takes longest: there settings alone.
@pytest.mark.parametrize(
    ("name", "feature", "interpreter"),
    [
        (name, feature, interpreter)
        for name, feature in features()
        for interpreter in (BACKENDS[0], *OTHERS)
        if interpreter != "sampler" or not feature.endswith((".weight", "bias"))
    ],
)
def test_a_feature_that_is_left_out_shows(
    families: Checkpoints, tmp_path: Path, name: str, feature: str, interpreter: str
) -> None:
    """So the tests above would see it. A tensor of a kind is ignored in one layer at a time."""
    ids, expected, _ = reference(families / name)
    neutral = NEUTRAL.get(f"{name} {feature}", NEUTRAL.get(feature))
    if neutral is not None:
        got = [logits_of(opened(families, tmp_path, name, **neutral), ids, interpreter)]
    elif feature in UNSAID:
        source = opened(families, tmp_path, name)
        source.config = replace(source.config, **UNSAID[feature])
        got = [logits_of(source, ids, interpreter)]
    else:
        source = opened(families, tmp_path, name)
        stored = [n for n in source.stored_shapes() if re.sub(r"\.\d+(?=\.)", "", n) == feature]
        got = []
        for tensor in stored:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(source, "read_stored", without(source.read_stored, tensor))
                got.append(logits_of(source, ids, interpreter))
        assert got, f"no tensor {feature}"
    # One form of GELU for another is seen, too, though not by much.
    known = json.loads((families / name / "report.json").read_text())["ignoring"][feature]
    least = min(100 * TOLERANCE, known / 2)
    assert min(np.abs(one - expected).max() for one in got) > least > TOLERANCE


def test_every_family_has_a_reference() -> None:
    assert FAMILIES.keys() <= SUPPORTED.keys()


@pytest.mark.parametrize("name", ["lfm2", "qwen3_5_text", "gemma4_text"])
def test_every_other_family_is_refused_by_name(
    families: Checkpoints, tmp_path: Path, name: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=f"'{name}' is not supported"):
        opened(families, tmp_path, name)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_program_is_made_of_known_operations(name: str) -> None:
    config = ModelConfig(name, 320, 64, 96, 32, 4, 2, 16, 128)
    program = program_of(config)
    blocks = [block for _, block in program.blocks()]
    used = {value.op for block in blocks for value in block.operations}
    assert used <= OPERATIONS.keys()
    assert all(len(v.args) == OPERATIONS[v.op] for block in blocks for v in block.operations)
    assert program.text().count("attention") == 1 and "layers 0-31" in program.text()


def test_learned_positions_bound_the_context(families: Checkpoints, tmp_path: Path) -> None:
    export(opened(families, tmp_path, "opt"), tmp_path / "m.dbb", Options(method="dense32"))
    assert edgedb.load(tmp_path / "m.dbb").context == 256
    with pytest.raises(EdgeDBError, match="257: this model has learned positions for 256"):
        edgedb.load(tmp_path / "m.dbb", context=257)


def test_a_two_stage_head_bounds_no_capped_logits(families: Path, tmp_path: Path) -> None:
    export(opened(families, tmp_path, "gemma2"), tmp_path / "m.dbb", Options(method="dense32"))
    with pytest.raises(EdgeDBError, match="capped; load it with --head full"):
        edgedb.load(tmp_path / "m.dbb", head="two-stage")


def kl(expected: np.ndarray, got: np.ndarray) -> float:
    """Nats a token, from the first logits' predictions to the second's."""
    p, q = (x.astype(np.float64) - x.max(-1, keepdims=True) for x in (expected, got))
    p, q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (p, q))
    return float((np.exp(p) * (p - q)).sum(-1).mean())


@pytest.mark.parametrize("name", SUPPORTED)
def test_pairs_come_nearer_to_the_checkpoint(
    families: Checkpoints, tmp_path: Path, name: str
) -> None:
    """One, two and three of them, fitted to a text that the model writes itself."""
    source = opened(families, tmp_path, name)
    ids, expected, _ = reference(families / name)
    found = []
    for pairs in (1, 2, 3):
        out = tmp_path / f"{pairs}.dbb"
        options = Options(pairs=pairs, sequences=4, length=24)
        record = export(source, out, options, threads=1)
        errors = [t["output_error"] for t in record["tensors"].values() if "output_error" in t]
        assert np.mean(errors) < 0.1 / 15 ** (pairs - 1)
        found.append(kl(expected, edgedb.load(out).logits(ids)))
    assert found[0] > 2 * found[1] > 0 < found[2]
    assert found[1] > 2 * found[2] or max(found[1:]) < 5e-4  # what the int8 embedding leaves


def test_a_checkpoint_without_its_head_names_less(families: Checkpoints, tmp_path: Path) -> None:
    """As GPT-2's on the hub, which keep the mask of causal attention, too."""
    folder = copy_family(families / "gpt2", tmp_path / "gpt2")
    tensors = load_file(folder / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    save_file(bare | {"h.0.attn.bias": np.ones((1, 1, 8, 8), "f")}, folder / "model.safetensors")
    source, same = open_source(folder), open_source(families / "gpt2")
    for name in ("embedding", "layers.1.attn_qkv", "layers.0.attn_norm.bias"):
        np.testing.assert_array_equal(source.tensor(name), same.tensor(name))
    save_file(bare | {"h.0.attn.bias": np.ones(8, "f")}, folder / "model.safetensors")
    with pytest.raises(UnsupportedModelError, match=r"h\.0\.attn\.bias has no place"):
        open_source(folder)
