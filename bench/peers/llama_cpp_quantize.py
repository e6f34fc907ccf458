"""Requantize a GGUF file by llama.cpp: ``python -m bench.peers.llama_cpp_quantize IN OUT Q2_K``.

Runs in the peers' own environment.
"""

from __future__ import annotations

import os
import sys

from llama_cpp import llama_cpp as c


def main() -> None:
    source, target, name = sys.argv[1:]
    params = c.llama_model_quantize_default_params()
    params.ftype = getattr(c, f"LLAMA_FTYPE_MOSTLY_{name}")
    params.allow_requantize = True
    partial = f"{target}.partial"
    if c.llama_model_quantize(source.encode(), partial.encode(), params):
        raise SystemExit(f"llama.cpp cannot make {name} of {source}")
    os.replace(partial, target)


if __name__ == "__main__":
    main()
