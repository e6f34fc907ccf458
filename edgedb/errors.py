"""The errors of edgedb. Each message is one line: what is wrong, then what to do about it."""

from __future__ import annotations

from .display import one_line


class EdgeDBError(Exception):
    """Base of every error that edgedb raises on purpose; the command line prints it and exits 2.

    A message often quotes a file that nobody vouches for. Whatever that holds, the message is one
    line, of bounded length, without characters that steer a terminal.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(one_line(str(message)))


class FormatError(EdgeDBError):
    """A model file is damaged, truncated or not a ``.dbb``; the message names the tensor."""


class UnsupportedModelError(EdgeDBError):
    """A checkpoint needs something that the forward pass does not do; the message names it."""


class ContextFullError(EdgeDBError):
    """A prompt or an answer does not fit into the context."""


class TemplateError(EdgeDBError):
    """A chat template is missing, broken, or refused the messages."""


class NativeError(EdgeDBError):
    """The C library is missing, refused an argument, or cannot run on this CPU."""


class BusyError(EdgeDBError):
    """A session is already in use by another thread."""


class SlowBackendWarning(RuntimeWarning):
    """The C library cannot be used, and a slower backend runs in its place."""


class CheckpointWarning(UserWarning):
    """Something in a checkpoint may not mean what was assumed; the message, one line, says what."""

    def __init__(self, message: object = "") -> None:
        super().__init__(one_line(str(message)))
