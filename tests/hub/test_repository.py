"""A repository on the hub: its listing, its cache, room for it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from fake_hub import FakeHub

from edgedb.errors import EdgeDBError
from edgedb.hub import client, repository
from edgedb.hub.names import HubName

NAME = HubName("owner", "tiny")
FILES = {"config.json": b"{}", "model.safetensors": bytes(range(256)) * 300}


@pytest.mark.parametrize("name", ["a", "a b.gguf", "ä+1.json", "a..b", "-x"])
def test_plain_names(name: str) -> None:
    assert repository.plain(name)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", ".a", "a/b", "/a", "../a", "a\\b", "C:a", "a\0", "a\nb", "x" * 201, None, 3],
)
def test_names_that_lead_elsewhere(name: object) -> None:
    assert not repository.plain(name)


def test_a_branch_is_one_commit_for_the_whole_pull(hub: FakeHub) -> None:
    hub.put(str(NAME), FILES)
    opened = repository.open_repository(NAME)
    assert opened.commit == hub.commit(str(NAME), "main")
    assert {name: file.size_bytes for name, file in opened.files.items()} == {
        name: len(content) for name, content in FILES.items()
    }
    opened.fetch("config.json")
    asked = [path for _, path, _ in hub.requests if str(NAME) in path]
    assert asked[0].endswith("/main") and len(asked) > 2
    assert all(opened.commit in path for path in asked[1:])


def test_the_cache_is_the_hubs_own(hub: FakeHub) -> None:
    library = pytest.importorskip("huggingface_hub")
    hub.put(str(NAME), FILES)
    opened = repository.open_repository(NAME)
    assert opened.missing_bytes(FILES) == sum(map(len, FILES.values()))
    reported: list[int] = []
    paths = {name: opened.fetch(name, reported.append) for name in FILES}
    assert {name: path.read_bytes() for name, path in paths.items()} == FILES
    assert sum(reported) == sum(map(len, FILES.values())) and opened.missing_bytes(FILES) == 0
    hub.requests.clear()
    for name, path in paths.items():
        found = library.hf_hub_download(
            str(NAME), name, revision=opened.commit, cache_dir=client.cache_folder()
        )
        assert Path(found) == path == opened.fetch(name)
    assert not hub.fetched()


def test_what_was_begun_is_not_missing(hub: FakeHub, tmp_path: Path) -> None:
    hub.put(str(NAME), FILES)
    opened = repository.open_repository(NAME)
    size = len(FILES["model.safetensors"])
    begun = repository._partial(tmp_path, opened.files["model.safetensors"])
    begun.write_bytes(FILES["model.safetensors"][:1000])
    assert opened.missing_bytes(["model.safetensors"], tmp_path) == size - 1000
    begun.write_bytes(b"x" * (size + 1))  # no part of it
    opened.fetch_to(tmp_path / "whole", "model.safetensors")
    assert (tmp_path / "whole").read_bytes() == FILES["model.safetensors"] and not begun.exists()


def test_the_cache_remembers_a_branch(hub: FakeHub) -> None:
    hub.put(str(NAME), FILES)
    opened = repository.open_repository(NAME)
    for name in FILES:
        opened.fetch(name)
    with pytest.raises(client.UnreachableError):
        repository.open_repository(NAME, offline=True)
    repository.keep_revision(opened)
    hub.requests.clear()
    again = repository.open_repository(NAME, offline=True)
    assert again.commit == opened.commit and again.files == opened.files
    assert again.fetch("config.json").read_bytes() == b"{}" and not hub.requests
    os.unlink(again.fetch("config.json"))
    with pytest.raises(client.UnreachableError, match=r"'config\.json' is not in the hub's cache"):
        again.fetch("config.json")


def test_room_is_counted_by_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=3000))
    one, two = tmp_path / "not" / "there", tmp_path / "nor" / "there"
    repository.require_room(NAME, {one: 1000, two: 2000})
    with pytest.raises(EdgeDBError, match=f"owner/tiny needs .* on the disk of {tmp_path}"):
        repository.require_room(NAME, {one: 1001, two: 2000})
