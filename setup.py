"""Builds the native kernels where a C compiler and cffi are; the package works without them."""

from __future__ import annotations

from setuptools import setup

try:
    import cffi  # noqa: F401
except ImportError:
    setup()
else:
    setup(
        cffi_modules=["native/build.py:ffibuilder"],
        options={"bdist_wheel": {"py_limited_api": "cp310"}},
    )
