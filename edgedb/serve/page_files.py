"""The files of the page at ``/``, part of the package."""

from __future__ import annotations

from importlib.resources import files

_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "json": "application/json",
}
_FIRST = "index.html"


def page_files() -> dict[str, tuple[str, bytes]]:
    """Path, without its host, to content type and content."""
    found = {}
    folder = files(__package__).joinpath("page")
    for file in folder.iterdir() if folder.is_dir() else ():
        kind = _TYPES.get(file.name.rpartition(".")[2])
        if kind is not None and file.is_file():
            found[f"/{file.name}"] = (kind, file.read_bytes())
    if f"/{_FIRST}" in found:
        found["/"] = found[f"/{_FIRST}"]
    return found
