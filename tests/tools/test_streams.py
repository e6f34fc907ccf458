"""Streams of hidden states: the same in memory and on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install '.[train]'")

from edgedb.errors import EdgeDBError  # noqa: E402
from tools import streams  # noqa: E402
from tools.streams import Stream, write  # noqa: E402

CPU = torch.device("cpu")


@pytest.mark.parametrize("held", [False, True])
def test_a_stream_gives_what_was_put_in(
    tmp_path: Path, held: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "has_room", lambda size, device: held)
    states = torch.randn(5, 3, 4)
    path = tmp_path / "states.npy"
    stream = Stream.make(path, (5, 3, 4), states.split(2), CPU, 2)
    assert path.exists() is not held and len(stream) == 5
    assert [len(part) for part in stream.batches()] == [2, 2, 1]
    assert torch.equal(torch.cat(list(stream.batches())), states)
    assert [len(part) for part in stream.batches(3)] == [2, 1]
    assert torch.equal(stream.take(np.array([4, 1])), states[[4, 1]])
    doubled = stream.to(tmp_path / "doubled.npy", lambda x: 2 * x)
    doubled.save()
    again = Stream.open(tmp_path / "doubled.npy", CPU, 2)
    assert torch.equal(torch.cat(list(again.batches())), 2 * states)
    doubled.remove()
    assert not (tmp_path / "doubled.npy").exists()


def test_a_file_is_there_only_when_it_is_complete(tmp_path: Path) -> None:
    def parts():
        yield torch.zeros(1, 2, 2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "states.npy", (2, 2, 2), parts())
    assert not (tmp_path / "states.npy").exists()
    with pytest.raises(EdgeDBError, match="cannot be read"):
        Stream.open(tmp_path / "states.npy", CPU, 1)


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(EdgeDBError, match="GB are needed") as found:
        write(tmp_path / "no folder" / "states.npy", (1, 1, 1), [torch.zeros(1, 1, 1)])
    assert "\n" not in str(found.value)


def test_room_is_asked_of_a_gpu_alone() -> None:
    assert not streams.has_room(1, CPU)
