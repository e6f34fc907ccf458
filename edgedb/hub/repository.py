"""A repository on the hub: what files it has, and how they come here.

Large files are written here: the package huggingface_hub throws away what it has of one when it is
interrupted, and compares no hashes.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from .. import descriptors
from ..display import quoted
from ..errors import EdgeDBError
from . import client
from .names import HubName

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
# How the names of files end that are being fetched.
UNFINISHED = ".edgedb.incomplete"
_SMALL_BYTES = 64 << 20  # the hub keeps no larger file in git itself
_PIECE_BYTES = 1 << 22

Report = Callable[[int], None]  # called with bytes that are new on this disk


@dataclass(frozen=True)
class RemoteFile:
    """A file at the top of a repository. ``hash``: SHA-256 of a large one, else git's SHA-1."""

    name: str
    size_bytes: int
    hash: str

    @property
    def large(self) -> bool:
        return len(self.hash) == 64


@dataclass(frozen=True)
class Repository:
    """One commit of a repository. ``architecture``: of its GGUF files, if the hub says it.
    ``offline``: it is what the hub's cache on this disk has of it."""

    name: HubName
    commit: str
    files: Mapping[str, RemoteFile]
    architecture: str | None = None
    offline: bool = False

    def cached(self, name: str) -> Path | None:
        """Where a file lies in the hub's cache, if it is there and whole."""
        file = self.files[name]
        with client.telling(self.name):
            found = client.library().try_to_load_from_cache(
                self.name.repository, name, cache_dir=client.cache_folder(), revision=self.commit
            )
        whole = isinstance(found, str) and os.path.getsize(found) == file.size_bytes
        return Path(found) if whole else None

    def missing_bytes(self, names: Iterable[str], beside: Path | None = None) -> int:
        """What has to come of these files: to the hub's cache, or to the folder ``beside``."""
        return sum(self._missing(self.files[name], beside) for name in names)

    def _missing(self, file: RemoteFile, beside: Path | None) -> int:
        if beside is None:
            if self.cached(file.name) is not None:
                return 0
            beside = client.folder_of(self.name) / "blobs"
        begun = (beside / file.hash, _partial(beside, file))
        return file.size_bytes - min(file.size_bytes, max(map(_size, begun)))

    def fetch(self, name: str, report: Report = lambda size: None) -> Path:
        """A file in the hub's cache, from there or from the hub; what an interrupted call has of
        it is taken over. Raises ``EdgeDBError``, also if it is not what its hash says."""
        file = self.files[name]
        found = self.cached(name)
        if found is not None:
            return found
        if self.offline:
            raise client.UnreachableError(f"{self.name}: {quoted(name)} is not in the hub's cache")
        if file.large:
            blob = client.folder_of(self.name) / "blobs" / file.hash
            if _size(blob) != file.size_bytes:
                self.fetch_to(blob, name, report)
        elif file.size_bytes > _SMALL_BYTES:
            raise EdgeDBError(f"{self.name}: {quoted(name)} is too large for what it is")
        with client.telling(self.name):
            found = Path(
                client.library().hf_hub_download(
                    self.name.repository,
                    name,
                    revision=self.commit,
                    cache_dir=client.cache_folder(),
                    endpoint=client.endpoint(),
                )
            )
        if not file.large:
            report(file.size_bytes)
            _compare(self.name, file, found)
        return found

    def fetch_to(
        self,
        path: Path,
        name: str,
        report: Report = lambda size: None,
        check: Callable[[Path], object] = lambda path: None,
    ) -> None:
        """A large file to ``path``, where it appears by one rename, once its hash and ``check``
        agree. Raises as ``fetch``."""
        file = self.files[name]
        partial = _partial(path.parent, file)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(
                os.open(partial, os.O_RDWR | os.O_CREAT | descriptors.BINARY, 0o666), "r+b"
            ) as stream:
                _lock(stream, path)
                with client.telling(self.name):
                    self._append(file, stream, report)
                os.fsync(stream.fileno())
                if descriptors.OPEN_FILES_MOVE:
                    self._accept(file, partial, path, check)
            if not descriptors.OPEN_FILES_MOVE:
                self._accept(file, partial, path, check)
        except OSError as error:
            raise EdgeDBError(
                f"{error.filename or path}: {error.strerror}. The same command goes on from here"
            ) from None

    def _accept(
        self, file: RemoteFile, partial: Path, path: Path, check: Callable[[Path], object]
    ) -> None:
        """Give what was fetched its name, if it is what was asked for; else take it away."""
        _compare(self.name, file, partial)
        try:
            check(partial)
        except EdgeDBError:
            partial.unlink()
            raise
        os.replace(partial, path)

    def _append(self, file: RemoteFile, stream: BinaryIO, report: Report) -> None:
        """The rest of a file behind what ``stream`` has of it."""
        hub = client.library()
        here = stream.seek(0, os.SEEK_END)
        if here > file.size_bytes:  # no part of it
            here = stream.truncate(stream.seek(0))
        report(here)
        address = hub.hf_hub_url(
            self.name.repository, file.name, revision=self.commit, endpoint=client.endpoint()
        )
        while True:
            try:
                hub.file_download.http_get(
                    address,
                    _Counted(stream, report),
                    resume_size=here,
                    headers=hub.utils.build_hf_headers(),
                    expected_size=file.size_bytes,
                )
            except hub.errors.HTTPError as error:
                # Older versions give up when a connection drops.
                before, here = here, stream.seek(0, os.SEEK_END)
                if isinstance(error, hub.errors.HfHubHTTPError) or here <= before:
                    raise
            else:
                stream.flush()
                return


class _Counted:
    """A file that reports what is written to it, and what is taken back."""

    def __init__(self, stream: BinaryIO, report: Report) -> None:
        self._stream, self._report = stream, report

    def write(self, data: bytes) -> int:
        written = self._stream.write(data)
        self._report(written)
        return written

    def tell(self) -> int:
        return self._stream.tell()

    def seek(self, offset: int) -> int:
        return self._stream.seek(offset)

    def truncate(self) -> int:
        before = os.fstat(self._stream.fileno()).st_size
        self._stream.flush()
        size = self._stream.truncate()
        self._report(size - before)
        return size


def open_repository(name: HubName, *, offline: bool = False) -> Repository:
    """What a repository has at its revision, which is looked up now.

    offline: only what an earlier pull left in the hub's cache. Raises ``UnreachableError`` without
    a network or where ``HF_HUB_OFFLINE`` forbids it, ``EdgeDBError`` for a repository or revision
    that is not there or asks for permission.
    """
    hub = client.library()
    if offline:
        return _cached_repository(name)
    with client.telling(name):
        api = hub.HfApi(endpoint=client.endpoint())
        info = api.model_info(name.repository, revision=name.revision or "main")
        commit = _commit(name, info.sha)
        files = api.list_repo_tree(name.repository, revision=commit)
        found = dict(_remote_files(files))
    told = getattr(info, "gguf", None)
    architecture = told.get("architecture") if isinstance(told, dict) else None
    return Repository(name, commit, found, architecture if isinstance(architecture, str) else None)


def _remote_files(entries: Any) -> Iterator[tuple[str, RemoteFile]]:
    for entry in entries:
        lfs = getattr(entry, "lfs", None)
        size, digest = getattr(entry, "size", None), getattr(entry, "blob_id", "")
        if lfs is not None:
            size, digest = lfs.size, lfs.sha256
        # Where files lie follows from these: what is no plain name or hash is passed over.
        hashed = _SHA256 if lfs is not None else _COMMIT
        if plain(entry.path) and type(size) is int and size >= 0 and hashed.fullmatch(str(digest)):
            yield entry.path, RemoteFile(entry.path, size, digest)


def plain(name: object) -> bool:
    """Whether it is the name of a file, with nothing in it that leads elsewhere."""
    return isinstance(name, str) and bool(re.fullmatch(r"(?!\.)[^/\\:\x00-\x1f\x7f]{1,200}", name))


def _partial(folder: Path, file: RemoteFile) -> Path:
    return folder / f".{file.hash}{UNFINISHED}"


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _commit(name: HubName, found: object) -> str:
    if not isinstance(found, str) or not _COMMIT.fullmatch(found):
        raise EdgeDBError(f"{name}: the hub says no commit")
    return found


def _cached_repository(name: HubName) -> Repository:
    """What the cache has of a repository: its listing by the names and links there."""
    commit = name.revision or "main"
    folder = client.folder_of(name)
    try:
        if not _COMMIT.fullmatch(commit):
            commit = (folder / "refs" / commit).read_text().strip()
        snapshot = folder / "snapshots" / _commit(name, commit)
        files = {}
        for path in sorted(snapshot.iterdir()):
            digest = path.resolve().name  # of the blob that a link leads to
            if plain(path.name) and path.is_file():
                hashed = _SHA256.fullmatch(digest) or _COMMIT.fullmatch(digest)
                size = path.stat().st_size
                files[path.name] = RemoteFile(path.name, size, digest if hashed else "")
    except OSError:
        raise client.UnreachableError(
            f"{name} is neither on this disk nor in the hub's cache: pull it with a network"
        ) from None
    return Repository(name, commit, files, offline=True)


def keep_revision(repository: Repository) -> None:
    """Note in the hub's cache which commit a branch stood at, for when there is no network."""
    revision = repository.name.revision or "main"
    if repository.offline or _COMMIT.fullmatch(revision):
        return
    note = client.folder_of(repository.name) / "refs" / revision
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(repository.commit)
    except OSError:
        return  # a cache that cannot be written: another network will be needed, no more


def require_room(name: HubName, wanted: Mapping[Path, int]) -> None:
    """Raise ``EdgeDBError`` if a disk has not the bytes that folders on it are to take."""
    by_disk: dict[int, tuple[Path, int]] = {}
    for folder, size in wanted.items():
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        disk = folder.stat().st_dev
        by_disk[disk] = (folder, by_disk.get(disk, (folder, 0))[1] + size)
    for folder, size in by_disk.values():
        free = shutil.disk_usage(folder).free
        if size > free:
            raise EdgeDBError(
                f"{name} needs {size / 1e9:.2f} GB more on the disk of {folder}, "
                f"where {free / 1e9:.2f} GB are free"
            )


def _compare(name: HubName, file: RemoteFile, path: Path) -> None:
    """Raise ``EdgeDBError`` if a file is not what the hub's list says, and take it away."""
    digest = hashlib.sha256() if file.large else hashlib.sha1(b"blob %d\0" % file.size_bytes)
    with path.open("rb") as stream:
        while piece := stream.read(_PIECE_BYTES):
            digest.update(piece)
    if digest.hexdigest() == file.hash:
        return
    Path(os.path.realpath(path)).unlink(missing_ok=True)
    path.unlink(missing_ok=True)
    raise EdgeDBError(
        f"{name}: what came as {quoted(file.name)} is not what its hash says and was thrown away; "
        "give the same command again"
    )


def _lock(stream: BinaryIO, path: Path) -> None:
    if not descriptors.claim(stream.fileno()):
        raise EdgeDBError(f"{path}: another process is fetching it")
