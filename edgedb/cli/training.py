"""The way from ``edgedb convert --train`` to the project's tools, which are no part of the package.

They run as a process of their own: nothing in the package imports them, or PyTorch.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import click
from click.core import ParameterSource

from ..errors import EdgeDBError
from ..files import SOURCE_TREE as _CHECKOUT


def typed(context: click.Context) -> list[str]:
    """The arguments and options of a command that were given on its command line."""
    found: list[str] = []
    for parameter in context.command.params:
        name = parameter.name or ""
        if context.get_parameter_source(name) is not ParameterSource.COMMANDLINE:
            continue
        value = context.params[name]
        if isinstance(parameter, click.Argument):
            found.append(str(value))
        elif value is True:
            found.append(parameter.opts[0])
        else:
            found.append(f"{parameter.opts[0]}={value}")
    return found


def convert_with_tools(arguments: list[str]) -> None:
    """``python -m tools.export`` with these arguments; ends the process where that failed.

    Raises ``EdgeDBError`` where the tools or PyTorch are missing.
    """
    if not (_CHECKOUT / "tools" / "export.py").is_file():
        raise EdgeDBError(
            "--train needs a clone of the project, which this installation is not: the same "
            "command works there"
        )
    if importlib.util.find_spec("torch") is None:
        raise EdgeDBError("--train needs PyTorch: pip install torch")
    path = os.pathsep.join(filter(None, [str(_CHECKOUT), os.environ.get("PYTHONPATH", "")]))
    command = [sys.executable, "-m", "tools.export", *arguments]
    status = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, check=False).returncode
    if status:
        raise SystemExit(status if status > 0 else 1)
