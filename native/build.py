"""Setuptools' commands that build the C library and name the wheel, for ``setup.py``.

``EDGEDB_TARGET`` names one of ``targets.TARGETS`` to build for instead of this machine.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from setuptools import Extension
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

from . import compile

_DECLARATIONS = "_declarations.py"


class BuildLibrary(build_ext):
    """Setuptools' command for compiled parts, which knows where they belong."""

    def get_ext_filename(self, fullname: str) -> str:
        return os.path.join(*fullname.split(".")[:-1], compile.target().library_name)

    def build_extension(self, ext: Extension) -> None:
        target, library = compile.target(), Path(self.get_ext_fullpath(ext.name))
        try:
            compile.library(target, library, Path(self.build_temp) / (target.tag or "host"))
        except compile.CompilerError as error:
            raise CompileError(str(error)) from None
        compile.declare(library.with_name(_DECLARATIONS))

    def copy_extensions_to_source(self) -> None:
        super().copy_extensions_to_source()
        made = Path(self.build_lib) / "edgedb" / _DECLARATIONS
        if made.exists():  # not where there is no compiler
            folder = self.get_finalized_command("build_py").get_package_dir("edgedb")
            self.copy_file(str(made), str(Path(folder) / _DECLARATIONS))


class TagWheel(bdist_wheel):
    """A wheel that serves every Python 3 of one platform."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", compile.target().tag or super().get_tag()[2]


def setup_arguments() -> dict[str, Any]:
    """What ``setup.py`` gives to setuptools."""
    extension = Extension("edgedb._library", [], optional=not compile.must_succeed())
    return {
        "ext_modules": [extension],
        "cmdclass": {"build_ext": BuildLibrary, "bdist_wheel": TagWheel},
    }
