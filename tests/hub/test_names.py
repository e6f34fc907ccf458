"""Names of models on the hub, and of the folders they are kept in."""

from __future__ import annotations

import pytest

from edgedb.hub.names import HubName, hub_name, name_of_folder


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Qwen/Qwen3-0.6B", HubName("Qwen", "Qwen3-0.6B")),
        ("a/b@main", HubName("a", "b", "main")),
        ("a/_b_@refs/pr/1", HubName("a", "_b_", "refs/pr/1")),
        ("a/b@1f2e3d4", HubName("a", "b", "1f2e3d4")),
    ],
)
def test_names_and_folders(text: str, name: HubName) -> None:
    assert hub_name(text) == name and str(name) == text
    assert name_of_folder(name.folder) == HubName(name.owner, name.name)


@pytest.mark.parametrize(
    "text",
    (
        *("", "a", "a/", "/a", "a/b/c", "./a", "../a", "a/..", "a/.b", "a/b.", "-a/b", "a/b-"),
        *("a--b/c", "a/b--c", "a/b@", "a/b@..", "a/b@x/../y", "a/b@/x", "a\\b/c", "a/b\n", "a/b c"),
        *("a/b.dbb", "~/b", "a/" + "b" * 97, "a/b@" + "c" * 201, "a/b@-x", "é/b"),
    ),
)
def test_what_is_no_name(text: str) -> None:
    assert hub_name(text) is None


@pytest.mark.parametrize("folder", ["a", "a--", "--a", "a--b--c", "..--b", "a---b"])
def test_what_is_no_folder_of_a_repository(folder: str) -> None:
    assert name_of_folder(folder) is None
