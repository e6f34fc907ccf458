"""Weights of channels, against one backward pass through the whole model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install '.[train]'")
torch.set_num_threads(1)  # more cost more than they give on matrices this small

from tiny import family_source  # noqa: E402

from tools.channels import mean_square_gradients  # noqa: E402
from tools.decoder import load_teacher  # noqa: E402
from tools.layerwise import Teacher  # noqa: E402


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_layer_at_a_time_gives_the_gradients_of_the_whole(family: str, tmp_path: Path) -> None:
    source = family_source(family)
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, 96, (4, 8)))
    passes = []
    found = mean_square_gradients(
        Teacher(source, torch.device("cpu")), ids, tmp_path, batch=4, seed=3,
        progress=lambda: passes.append(1),
    )  # fmt: skip

    whole, given = load_teacher(source), []
    for layer in whole.layers:
        layer.register_forward_hook(lambda _, read, x: given.append(x) or x.requires_grad_())
    logits = whole.logits(ids).flatten(0, 1)
    draw = torch.Generator().manual_seed(3)
    labels = torch.multinomial(logits.detach().softmax(-1), 1, generator=draw)[:, 0]
    loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
    for mine, gradient in zip(found, torch.autograd.grad(loss, given), strict=True):
        expected = gradient.square().mean(dim=(0, 1)).numpy()
        np.testing.assert_allclose(mine, expected, rtol=1e-3)
    assert len(passes) == 4 and not list(tmp_path.iterdir())
