"""Programs in PyTorch: the same numbers as numpy's, in few graphs, each in its type."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install '.[train]'")
torch.set_num_threads(1)  # more cost more than they give on matrices this small

from tiny import FAMILY_CHANGES, TRAINED, TinySource, family_source, plain_weights  # noqa: E402
from torch._dynamo.testing import CompileCounter  # noqa: E402

from edgedb.errors import UnsupportedModelError  # noqa: E402
from edgedb.model.families import FAMILIES  # noqa: E402
from edgedb.model.network import Network  # noqa: E402
from edgedb.ops import create  # noqa: E402
from edgedb.ops.values import OPERATIONS as RECORDED  # noqa: E402
from tools.decoder import load_teacher  # noqa: E402
from tools.interpreter import OPERATIONS, whole_sequences  # noqa: E402
from tools.student import make_student  # noqa: E402

IDS = np.random.default_rng(0).integers(0, 96, 24).tolist()


def of_numpy(source: TinySource) -> np.ndarray:
    network = Network(source.config, *plain_weights(source), create("numpy"), 64)
    found = network.forward(IDS, network.cache(64, "float32"), network.state(), "all")
    assert found is not None
    return found


def test_every_operation_of_a_program_is_here() -> None:
    assert OPERATIONS.keys() == RECORDED.keys()
    assert FAMILY_CHANGES.keys() == FAMILIES.keys()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_program_gives_what_it_gives_in_numpy(name: str) -> None:
    source = family_source(name)
    logits = load_teacher(source).logits(torch.tensor([IDS, IDS[::-1]]))[0]
    np.testing.assert_allclose(logits.numpy(), of_numpy(source), rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", TRAINED)
def test_a_kind_of_layer_is_one_graph(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward; in more pieces it is refused (``fullgraph``)."""
    source = family_source(name, n_layers=4)
    student = make_student(load_teacher(source), "absmax")
    ids = torch.tensor([IDS])
    student.logits(ids).square().mean().backward()
    plain = student.layers[1].attn_qkv.latent.grad.clone()
    student.zero_grad()
    graphs = CompileCounter()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=graphs))
    torch._dynamo.reset()
    student.compile()
    student.logits(ids).square().mean().backward()
    assert graphs.frame_count == len(student.program.kinds)
    torch.testing.assert_close(student.layers[1].attn_qkv.latent.grad, plain)


@pytest.mark.parametrize("name", sorted(FAMILIES.keys() - TRAINED))
def test_students_of_experts_are_refused_by_name(name: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"{name}: experts are not trained"):
        make_student(load_teacher(family_source(name)), "absmax")


def test_more_graphs_than_torch_allows_are_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own limit is 8 for one function, which kinds, mixes of pairs and lengths soon reach."""
    teacher = load_teacher(TinySource(n_layers=1))
    graphs = CompileCounter()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=graphs))
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=2):
        teacher.compile()
        for n in range(3, 6):
            teacher(torch.tensor([IDS[:n]]))
    assert graphs.frame_count == 3


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_matrices_alone_run_in_bfloat16(name: str) -> None:
    """Biases and the attention of normed heads keep that type; norms and the stream are float32."""
    teacher = load_teacher(family_source(name))
    seen = []

    def spy(*args: torch.Tensor) -> torch.Tensor:
        seen.extend(args[:3])
        return whole_sequences(*args)

    outputs = []
    for _, module in teacher.matrices():
        module.register_forward_hook(lambda _, inputs, y: outputs.append(y))
    with torch.autocast("cpu", torch.bfloat16):
        hidden, head = teacher(torch.tensor([IDS]), attends=[spy] * 2)
    assert {x.dtype for x in (*seen, *outputs)} == {torch.bfloat16}
    assert hidden.dtype == head.weight.dtype == torch.float32
    exact, _ = teacher(torch.tensor([IDS]))
    assert 1e-4 < (hidden - exact).abs().max() < 0.2
