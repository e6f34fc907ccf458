"""Two small nets for scikit-learn's digits, with the parts of a model that ``tools.trainer`` asks
for, so that they learn, and are distilled, as language models are.

An image is a row of its label and 64 pixels, 0 to 16. A convolution is a matrix over patches, and
its inputs are cut into groups of 64 like those of any other matrix.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from edgedb.errors import EdgeDBError

from ..decoder import Dense, MatrixFactory
from ..head import Head
from ..trainer import Trainer

SIDE, CLASSES, BRIGHTEST = 8, 10, 16
Ids = NDArray[np.int64]


class Net(nn.Module):
    """Rows ``[batch, 65]`` to the head's input ``[batch, 1, hidden]`` and the head.

    The first matrix, of single pixels, and the head stay in full precision, as a language model's
    embedding and head do.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.config: Any = None
        self.first = nn.Parameter(torch.empty(0))
        self.head = nn.Parameter(torch.empty(CLASSES, hidden))
        self.inside = nn.ModuleDict()
        self.gains = nn.ParameterDict()

    @property
    def device(self) -> torch.device:
        return self.head.device

    def matrices(self) -> Iterator[tuple[str, nn.Module]]:
        """Those between the first and the head, by name."""
        return iter(self.inside.items())

    def vectors(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Gains of norms."""
        return iter(self.gains.items())

    def tables(self) -> dict[str, nn.Parameter]:
        """What stays in full precision, and learns at the rate of an embedding."""
        return {"first": self.first, "head": self.head}

    def forward(self, rows: Tensor) -> tuple[Tensor, Head]:
        images = (rows[:, 1:].float() / BRIGHTEST).view(-1, SIDE, SIDE)
        return self.features(images)[:, None], Head(self.head.view_as(self.head))

    def features(self, images: Tensor) -> Tensor:
        """``[batch, hidden]`` of images ``[batch, 8, 8]``."""
        raise NotImplementedError

    def norm(self, name: str, x: Tensor) -> Tensor:
        gain = self.gains[name]
        return F.rms_norm(x.float(), gain.shape, gain, 1e-6)


def patches(x: Tensor) -> Tensor:
    """Of ``[batch, height, width, channels]`` the 3 by 3 surroundings of every place, channel by
    channel, zeros outside: ``[batch, height, width, 9 * channels]``."""
    height, width = x.shape[1:3]
    columns = F.unfold(x.permute(0, 3, 1, 2), 3, padding=1)
    return columns.transpose(1, 2).unflatten(1, (height, width))


def halved(x: Tensor) -> Tensor:
    """Means of 2 by 2 places."""
    return x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).mean(dim=(2, 4))


class ConvNet(Net):
    """Three convolutions of 3 by 3, of 16, 32 and 32 channels, and a full layer of 64."""

    CHANNELS = (16, 32, 32)

    def __init__(self, make: MatrixFactory) -> None:
        super().__init__(hidden := 64)
        a, b, c = self.CHANNELS
        self.first = nn.Parameter(torch.empty(a, 9))
        for name, rows, cols in (
            ("conv2", b, 9 * a),
            ("conv3", c, 9 * b),
            ("full", hidden, 4 * c),
        ):
            self.inside[name] = _module(make(name, rows, cols))
        for name, size in (("conv1", a), ("conv2", b), ("conv3", c), ("full", hidden)):
            self.gains[name] = nn.Parameter(torch.ones(size))

    def features(self, images: Tensor) -> Tensor:
        x = F.relu(self.norm("conv1", F.linear(patches(images[..., None]), self.first)))
        x = halved(F.relu(self.norm("conv2", self.inside["conv2"](patches(x)))))
        x = halved(F.relu(self.norm("conv3", self.inside["conv3"](patches(x)))))
        return F.relu(self.norm("full", self.inside["full"](x.flatten(1))))


class VisionTransformer(Net):
    """Sixteen patches of 2 by 2 pixels, two layers of 64 with four heads, the mean of all places;
    where a patch stands is a learned vector (in ``first``, beside its pixels' weights)."""

    HIDDEN, LAYERS, HEADS, PLACES = 64, 2, 4, 16

    def __init__(self, make: MatrixFactory) -> None:
        super().__init__(hidden := self.HIDDEN)
        self.first = nn.Parameter(torch.empty(hidden, 4 + self.PLACES))
        for i in range(self.LAYERS):
            for name, rows, cols in (
                ("qkv", 3 * hidden, hidden),
                ("out", hidden, hidden),
                ("up", 4 * hidden, hidden),
                ("down", hidden, 4 * hidden),
            ):
                self.inside[f"{name}{i}"] = _module(make(name, rows, cols))
            for name in ("attention", "mlp"):
                self.gains[f"{name}{i}"] = nn.Parameter(torch.ones(hidden))
        self.gains["last"] = nn.Parameter(torch.ones(hidden))

    def features(self, images: Tensor) -> Tensor:
        pixels = images.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).transpose(2, 3).flatten(1, 2)
        places = torch.eye(self.PLACES, device=images.device).expand(len(images), -1, -1)
        x = F.linear(torch.cat((pixels.flatten(2), places), dim=-1), self.first)
        for i in range(self.LAYERS):
            x = x + self._attention(i, self.norm(f"attention{i}", x))
            up = self.inside[f"up{i}"](self.norm(f"mlp{i}", x))
            x = x + self.inside[f"down{i}"](F.gelu(up))
        return self.norm("last", x).mean(dim=1)

    def _attention(self, i: int, x: Tensor) -> Tensor:
        qkv = self.inside[f"qkv{i}"](x).unflatten(-1, (3, self.HEADS, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        out: Tensor = self.inside[f"out{i}"](mixed)
        return out


def _module(matrix: nn.Module | nn.Parameter) -> nn.Module:
    assert isinstance(matrix, nn.Module)
    return matrix


NETS: dict[str, type[ConvNet] | type[VisionTransformer]] = {
    "convolutional net": ConvNet,
    "vision transformer": VisionTransformer,
}


@torch.no_grad()
def untrained(kind: str, seed: int) -> Net:
    """A net in full precision: normal weights of variance one over the inputs."""
    net = NETS[kind](lambda _, rows, cols: Dense(rows, cols))
    generator = torch.Generator().manual_seed(seed)
    for weight in net.parameters():
        if weight.ndim == 2:
            drawn = torch.randn(weight.shape, generator=generator)
            weight.copy_(drawn / weight.shape[1] ** 0.5)
    return net


class Images:
    """Rows of label and pixels as ``Trainer`` takes a text: every epoch in another order."""

    def __init__(self, rows: Ids, seed: int) -> None:
        self.rows, self.seed = rows, seed

    def batch(self, step: int, size: int, length: int | None = None) -> Ids:
        """The ``size`` images of one step, int64 ``[size, 65]``."""
        per_epoch = len(self.rows) // size
        epoch, at = divmod(step, per_epoch)
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.rows))
        return self.rows[order[at * size : (at + 1) * size]]

    def n_real_rows(self, step: int, size: int) -> int:
        """All of them."""
        return size


class ImageTrainer(Trainer):
    """Predicts the label of an image, once, where a text's trainer predicts every next token."""

    @staticmethod
    def targets(ids: Tensor) -> Tensor:
        return ids[:, :1]


def digits() -> Ids:
    """scikit-learn's 1,797 images of 8 by 8, rows of label and pixels, in the package's order.

    Raises ``EdgeDBError`` without scikit-learn.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise EdgeDBError("the images need scikit-learn: pip install scikit-learn") from None
    data = load_digits()
    return np.column_stack((data.target, data.data)).astype(np.int64)
