"""The package huggingface_hub, which speaks to the hub, knows the token and owns the cache.

What it or the way to the hub refuses is said here in our words.
"""

from __future__ import annotations

import errno
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..display import NAME_CHARS, one_line, quoted
from ..errors import EdgeDBError
from .names import HubName


class UnreachableError(EdgeDBError):
    """There is no way to the hub: it was forbidden, or the network is away, as ``reason`` says."""

    def __init__(self, message: str, reason: str = "no network is to be used") -> None:
        super().__init__(message)
        self.reason = reason


@contextmanager
def telling(name: HubName) -> Iterator[None]:
    """What the hub and the way to it refuse, as one line that says what to do."""
    errors = library().errors
    try:
        yield
    except errors.GatedRepoError:
        raise EdgeDBError(
            f"{name.repository} is gated: ask for access at {endpoint()}/{name.repository}, then "
            f"set HF_TOKEN to a token of yours ({endpoint()}/settings/tokens)"
        ) from None
    except errors.RevisionNotFoundError:
        raise EdgeDBError(
            f"{name.repository} has no revision {quoted(name.revision or 'main')}"
        ) from None
    except errors.RepositoryNotFoundError:
        raise EdgeDBError(
            f"there is no repository {name.repository} at {endpoint()}, or it is private: for one "
            "of yours set HF_TOKEN"
        ) from None
    except errors.OfflineModeIsEnabled:
        raise UnreachableError(
            f"{name} is not on this disk, and HF_HUB_OFFLINE forbids to look for it",
            "HF_HUB_OFFLINE forbids it",
        ) from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status == 401:
            raise EdgeDBError(
                f"{name}: {endpoint()} does not accept the token; set HF_TOKEN to one of yours "
                f"({endpoint()}/settings/tokens)"
            ) from None
        raise EdgeDBError(f"{name}: {endpoint()} answers with status {status}") from None
    except (errors.HTTPError, errors.LocalEntryNotFoundError, OSError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES):
            raise
        told = one_line(str(error), NAME_CHARS) or type(error).__name__
        reason = f"no way to {endpoint()} ({told})"
        raise UnreachableError(
            f"{name}: {reason}; what has come stays, and the same command goes on", reason
        ) from None


def library() -> Any:
    """The package, without bars and remarks of its own. Raises ``EdgeDBError`` if it is missing."""
    try:
        import huggingface_hub
        from huggingface_hub import constants, errors, file_download, utils
    except ImportError:
        raise EdgeDBError(
            "this needs the package huggingface_hub: pip install huggingface_hub"
        ) from None
    assert constants and errors and file_download  # importing them made them its attributes
    _silence(utils)
    return huggingface_hub


@functools.cache
def _silence(utils: Any) -> None:
    utils.disable_progress_bars()
    utils.logging.set_verbosity_error()


def endpoint() -> str:
    return str(library().constants.ENDPOINT)


def cache_folder() -> Path:
    """The hub's own cache."""
    return Path(library().constants.HF_HUB_CACHE)


def folder_of(name: HubName) -> Path:
    """Where the cache keeps a repository."""
    return cache_folder() / f"models--{name.owner}--{name.name}"
