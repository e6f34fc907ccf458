"""Builds the C library where a compiler and cffi are; the package works without it, slower."""

from __future__ import annotations

import sys
from pathlib import Path

from setuptools import setup

sys.path.insert(0, str(Path(__file__).resolve().parent))

try:
    import cffi  # noqa: F401
except ImportError:
    setup()
else:
    from native.build import setup_arguments

    setup(**setup_arguments())
