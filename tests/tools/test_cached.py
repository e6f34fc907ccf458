"""A token of each sequence at a time gives what whole sequences give."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install '.[train]'")
torch.set_num_threads(1)  # more cost more than they give on matrices this small

from tiny import family_source  # noqa: E402

from edgedb.model.families import FAMILIES  # noqa: E402
from tools.cached import CachedPass  # noqa: E402
from tools.decoder import load_teacher  # noqa: E402


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("bucket", [4, 128])
def test_logits_are_those_of_whole_sequences(
    name: str, bucket: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CachedPass, "BUCKET", bucket)
    teacher = load_teacher(family_source(name))
    torch.manual_seed(0)
    ids = torch.randint(0, 96, (3, 22))
    cached = CachedPass(teacher, 3, 22, torch.float32)
    reaches = [cached.reach(i) for i in range(22)]
    assert reaches == [min(i // bucket * bucket + bucket, 22) for i in range(22)]
    steps = [cached.logits(ids[:, i], torch.tensor([i]), reach) for i, reach in enumerate(reaches)]
    torch.testing.assert_close(torch.stack(steps, 1), teacher.logits(ids), rtol=0, atol=2e-5)


def test_a_window_leaves_the_cache_before_it_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CachedPass, "BUCKET", 4)
    cached = CachedPass(load_teacher(family_source("mistral")), 1, 32, torch.float32)
    token = torch.tensor([3])
    for i in range(20):
        before = cached.logits(token, torch.tensor([i]), cached.reach(i))
    for values in cached._values:
        values[:, :, :12].fill_(torch.nan)  # of 5 keys, positions 16 to 19 read 12 and on
    again = cached.logits(token, torch.tensor([19]), cached.reach(19))
    assert torch.equal(again, before)


def test_matrices_run_in_the_type_that_is_asked_for() -> None:
    teacher = load_teacher(family_source("qwen3"))
    cached = CachedPass(teacher, 2, 8, torch.bfloat16)
    found = cached.logits(torch.tensor([5, 6]), torch.tensor([0]), cached.reach(0))
    exact = teacher.logits(torch.tensor([[5], [6]]))[:, 0]
    assert found.dtype == torch.float32
    assert 1e-4 < (found - exact).abs().max() < 0.1 * exact.abs().max()
