"""What a template finds without asking: Jinja's globals, as transformers has them."""

from __future__ import annotations

from typing import Any, NoReturn

from jinja2.sandbox import SecurityError
from jinja2.utils import Namespace

from .bounds import counted


class _Dict:
    """``dict`` without the methods that would change the values that it is given."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, keys: Any, value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(counted(keys), value)


class _Namespace(Namespace):
    """Opaque: its members change after it was measured inside of another value. As in transformers,
    no name in it begins with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # so that a member may be called `self`
        members = dict(*args[1:], **kwargs)
        for name in members:
            _refuse_private(name)
        Namespace.__init__(args[0], members)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<Namespace>"


def _refuse_lipsum(*_: Any, **__: Any) -> NoReturn:
    raise SecurityError("lipsum; the same messages must always give the same text")


def _refuse_private(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"the name {name[:40]!r} in a namespace")


GLOBALS = {"dict": _Dict(), "lipsum": _refuse_lipsum, "namespace": _Namespace}
