"""A hub on loopback: repositories in memory, by the four routes that a download takes.

What a test breaks is a field: ``gated``, ``tampered`` (other bytes than the listing's hash says),
``cut`` (so many bytes of a file, then the connection drops, once), ``listed`` (names that no file
has). ``requests`` remembers method, path and Range of each.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".gguf", ".dbb", ".bin")


@dataclass
class FakeHub:
    address: str = ""
    # repository -> branch or tag -> name -> content
    repositories: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    tampered: dict[str, bytes] = field(default_factory=dict)
    cut: dict[str, int] = field(default_factory=dict)
    listed: list[str] = field(default_factory=list)
    architecture: str | None = None
    ranges: bool = True
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)

    def put(self, name: str, files: Mapping[str, bytes], revision: str = "main") -> None:
        self.repositories.setdefault(name, {})[revision] = dict(files)

    def commit(self, name: str, revision: str) -> str | None:
        """The commit of a revision, which may be one itself."""
        branches = self.repositories[name]
        commits = {branch: _commit(files) for branch, files in branches.items()}
        return commits.get(revision) or (revision if revision in commits.values() else None)

    def files(self, name: str, commit: str) -> dict[str, bytes]:
        return next(f for f in self.repositories[name].values() if _commit(f) == commit)

    def fetched(self) -> list[str]:
        """Names of the files whose content was asked for, in order."""
        return [
            p.rpartition("/")[2] for m, p, _ in self.requests if m == "GET" and "/resolve/" in p
        ]


def _commit(files: Mapping[str, bytes]) -> str:
    return hashlib.sha1(b"".join(n.encode() + files[n] for n in sorted(files))).hexdigest()


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _etag(name: str, content: bytes) -> str:
    return hashlib.sha256(content).hexdigest() if name.endswith(LARGE) else _git_hash(content)


def _entry(name: str, content: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": name, "size": len(content)}
    entry["oid"] = _git_hash(content)
    if name.endswith(LARGE):
        digest = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 134}
    return entry


@contextmanager
def serving() -> Iterator[FakeHub]:
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None: ...

        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def _answer(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append((self.command, path, self.headers.get("Range")))
            route = re.fullmatch(
                r"(?:/api/models)?/([^/]+/[^/]+)/(revision|tree|resolve)/([^/]+)(?:/(.+))?", path
            )
            if not route or route[1] not in hub.repositories:
                return self._refuse(401, "RepoNotFound")
            name, kind, revision, file = route.groups()
            commit = hub.commit(name, revision)
            if commit is None:
                return self._refuse(404, "RevisionNotFound")
            files = hub.files(name, commit)
            if kind == "revision":
                told = {"gguf": {"architecture": hub.architecture}} if hub.architecture else {}
                return self._json({"id": name, "sha": commit, "siblings": [], "tags": [], **told})
            if kind == "tree":
                entries = [_entry(n, content) for n, content in files.items()]
                return self._json(entries + [_entry(n, b"") for n in hub.listed])
            if name in hub.gated:
                return self._refuse(403, "GatedRepo")
            if file not in files:
                return self._refuse(404, "EntryNotFound")
            self._file(commit, file, files[file])

        def _file(self, commit: str, file: str, content: bytes) -> None:
            etag = _etag(file, content)
            content = hub.tampered.get(file, content)
            start = 0
            asked = self.headers.get("Range")
            if asked and hub.ranges:
                start = int(asked.removeprefix("bytes=").rstrip("-"))
            self.send_response(206 if start else 200)
            self.send_header("ETag", f'"{etag}"')
            self.send_header("X-Repo-Commit", commit)
            self.send_header("Content-Length", str(len(content) - start))
            if start:
                total = len(content)
                self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
            self.end_headers()
            if self.command == "HEAD":
                return
            most = hub.cut.pop(file, None)
            with suppress(OSError):
                self.wfile.write(content[start:][:most])
            if most is not None:
                self.close_connection = True
                with suppress(OSError):  # whoever asked may be away
                    self.connection.shutdown(2)

        def _json(self, value: Any) -> None:
            body = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _refuse(self, status: int, code: str) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
