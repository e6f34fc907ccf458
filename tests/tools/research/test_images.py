"""Nets for images against PyTorch's own layers, and their trainings on drawn digits."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch: make test installs its CPU build")

import torch.nn.functional as F  # noqa: E402

from edgedb.errors import EdgeDBError  # noqa: E402
from tools.research import vision  # noqa: E402
from tools.research.grids import GRIDS, LEVELS, Grid  # noqa: E402
from tools.research.images import (  # noqa: E402
    NETS,
    ConvNet,
    Images,
    VisionTransformer,
    digits,
    halved,
    patches,
    untrained,
)
from tools.research.results import Results  # noqa: E402
from tools.student import FDBLinear  # noqa: E402


def drawn(n: int, seed: int = 0) -> np.ndarray:
    """Ten blurred shapes with noise, rows of label and pixels."""
    rng = np.random.default_rng(seed)
    shapes = np.random.default_rng(7).integers(0, 2, (10, 64)) * 12
    labels = rng.integers(0, 10, n)
    pixels = (shapes[labels] + rng.integers(0, 5, (n, 64))).clip(0, 16)
    return np.column_stack((labels, pixels)).astype(np.int64)


@pytest.mark.parametrize("channels", [1, 3, 32])
def test_a_matrix_over_patches_is_a_convolution(channels: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 6, channels, generator=generator)
    weight = torch.randn(5, channels, 3, 3, generator=generator)
    found = F.linear(patches(x), weight.flatten(1))
    expected = F.conv2d(x.permute(0, 3, 1, 2), weight, padding=1).permute(0, 2, 3, 1)
    assert torch.allclose(found, expected, atol=1e-4)
    means = F.avg_pool2d(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
    assert torch.allclose(halved(x), means, atol=1e-6)


def test_the_transformer_sees_patches_and_where_they_stand() -> None:
    net = untrained("vision transformer", 0)
    assert isinstance(net, VisionTransformer)
    image = torch.zeros(1, 8, 8)
    image[0, 2, 5] = 1.0  # row 1, column 2 of the patches; in it the upper right pixel
    other = torch.zeros(1, 8, 8)
    with torch.no_grad():
        net.first[:, 4:] = 0  # no place has a vector of its own
        moved = torch.roll(image, (2, -4), dims=(1, 2))
        assert torch.allclose(net.features(image), net.features(moved), atol=1e-5)
        net.first[:, 4:].normal_(generator=torch.Generator().manual_seed(0))
        assert not torch.allclose(net.features(image), net.features(moved), atol=1e-3)
        net.first[:, 1] = 0  # weights of that pixel
        assert torch.allclose(net.features(image), net.features(other), atol=1e-6)


def test_every_epoch_has_every_image_once() -> None:
    rows = drawn(20)
    images = Images(rows, seed=3)
    epochs = [
        np.concatenate([images.batch(step, 5) for step in range(4 * e, 4 * e + 4)]) for e in (0, 1)
    ]
    for epoch in epochs:
        assert sorted(map(tuple, epoch)) == sorted(map(tuple, rows))
    assert not np.array_equal(*epochs)
    assert np.array_equal(images.batch(2, 5), Images(rows, seed=3).batch(2, 5))


@pytest.mark.parametrize("kind", NETS)
def test_a_net_learns_and_teaches_each_grid(kind: str) -> None:
    rows, test = drawn(300), drawn(100, seed=1)
    size = vision.Size(train=300, batch=50, teacher_steps=40, steps=40)
    teacher = untrained(kind, 0)
    before = vision.measured(teacher, teacher, test)
    learning = vision.options_of(size, 40, 0, vision.LossOptions(ce_share=1.0))
    vision.train(teacher, teacher, rows, learning)
    after = vision.measured(teacher, teacher, test)
    assert before["accuracy"] < 0.5 < 0.9 < after["accuracy"]
    assert after["kl"] == pytest.approx(0, abs=1e-6) and after["agrees"] == 1
    teacher.requires_grad_(False)
    kept = [weight.clone() for weight in teacher.parameters()]
    for grid in GRIDS:
        student = vision.student_of(teacher, grid, rows)
        expected = Grid if grid in LEVELS else FDBLinear
        assert {type(module) for _, module in student.matrices()} == {expected}
        start = vision.measured(student, teacher, test)["kl"]
        vision.train(student, teacher, rows, vision.options_of(size, 40, 0, vision.LossOptions()))
        assert vision.measured(student, teacher, test)["kl"] < start
    assert all(torch.equal(a, b) for a, b in zip(kept, teacher.parameters(), strict=True))


def test_half_a_training_is_never_taken_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM, at which a trainer that saves would stop and return, ends the process."""
    before, seen, batch = signal.getsignal(signal.SIGTERM), [], Images.batch

    def watched(self: Images, *where: int) -> np.ndarray:
        seen.append(signal.getsignal(signal.SIGTERM))
        return batch(self, *where)

    monkeypatch.setattr(Images, "batch", watched)
    net, rows = untrained("convolutional net", 0), drawn(200)
    size = vision.SMALL
    vision.train(net, net, rows, vision.options_of(size, 2, 0, vision.LossOptions(ce_share=1.0)))
    assert seen == [before] * 2


def test_a_run_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vision, "digits", lambda: drawn(260))
    monkeypatch.setattr(vision, "NETS", {"convolutional net": ConvNet})
    results = Results(tmp_path / "r.jsonl")
    vision.run(results, vision.SMALL, 2)
    records = results.read()
    assert len(records) == 2 * (1 + len(GRIDS) * 3)
    assert {record["test"] for record in records} == {60}
    results.path.write_text("".join(results.path.read_text().splitlines(True)[:-1]))
    vision.run(results, vision.SMALL, 2)
    again = results.read()
    for record in (*records, *again):
        del record["seconds"]
    assert again == records  # the same figures, too


def test_digits_are_rows_of_label_and_pixels() -> None:
    pytest.importorskip("sklearn")
    rows = digits()
    assert rows.shape == (1797, 65)
    assert rows[:, 0].max() == 9 and rows[:, 1:].min() == 0 and rows[:, 1:].max() == 16


def test_the_package_with_the_images_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(EdgeDBError, match="pip install scikit-learn"):
        digits()
