"""llama.cpp through the C API that ``llama-cpp-python`` binds: ``python -m ... FILE.gguf``.

Runs in the peers' own environment. Set up as llama-bench does it, with what was fastest here:
float16 cache if not told otherwise, one batch for the whole prompt or as told, logits of the last
token only, weights repacked where llama.cpp can (Q4_0, Q2_K), flash attention as given.
"""

from __future__ import annotations

import argparse
import ctypes
import random
from importlib.metadata import version
from typing import Any

import gguf
from llama_cpp import llama_cpp as c

from .worker import run, serve

CACHES = {"f16": c.GGML_TYPE_F16, "q8_0": c.GGML_TYPE_Q8_0}


class LlamaCpp:
    """One model and one context."""

    def __init__(self, options: argparse.Namespace) -> None:
        path, context, threads = options.model, options.context, options.threads
        self._batch = options.batch or context
        c.llama_backend_init()
        model = c.llama_model_default_params()
        model.use_extra_bufts = True
        self.model = c.llama_model_load_from_file(path.encode(), model)
        if not self.model:
            raise SystemExit(f"llama.cpp cannot load {path}")
        params = c.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = context, self._batch, self._batch
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = 0 if options.no_flash_attention else 1
        params.type_k = params.type_v = CACHES[options.cache]
        params.no_perf = True
        self.ctx = c.llama_init_from_model(self.model, params)
        if not self.ctx:
            raise SystemExit(f"llama.cpp cannot make a context of {context} tokens for {path}")
        self.memory = c.llama_get_memory(self.ctx)
        n_vocab = c.llama_vocab_n_tokens(c.llama_model_get_vocab(self.model))
        draw = random.Random(1)
        self.ids = (c.llama_token * context)(*(draw.randrange(n_vocab) for _ in range(context)))
        self.position = 0
        self.description = {
            "version": f"llama-cpp-python {version('llama-cpp-python')}",
            "isa": _features(c.llama_print_system_info().decode()),
            **_sizes(path),
        }

    def reset(self, threads: int, depth: int = 0) -> None:
        c.llama_set_n_threads(self.ctx, threads, threads)
        self.position = min(self.position, depth)
        if not self.position:
            c.llama_memory_clear(self.memory, False)
        elif not c.llama_memory_seq_rm(self.memory, 0, self.position, -1):
            raise SystemExit("llama.cpp cannot forget a part of its context")
        self._read(depth - self.position)

    def decode(self) -> None:
        self._read(1)

    def prompt(self, n: int) -> None:
        self._read(n)

    def _read(self, n: int) -> None:
        end = self.position + n
        while self.position < end:
            n = min(self._batch, end - self.position)
            # A batch made of bare tokens asks for the logits of its last one.
            first = ctypes.byref(self.ids, self.position * ctypes.sizeof(c.llama_token))
            batch = c.llama_batch_get_one(ctypes.cast(first, ctypes.POINTER(c.llama_token)), n)
            if c.llama_decode(self.ctx, batch):
                raise SystemExit("llama_decode failed")
            self.position += n
        c.llama_synchronize(self.ctx)


def _features(info: str) -> str:
    """``CPU : AVX2 = 1 | AVX512 = 1 | ...`` as the names of what is on."""
    parts = [part.rpartition(":")[2].split("=") for part in info.split("|") if "=" in part]
    return " ".join(name.strip() for name, value in parts if value.strip() == "1")


def _sizes(path: str) -> dict[str, int]:
    """Bytes of the file's tensors, and those that one token reads: all but the input embedding,
    unless that is the head as well."""
    sizes = {tensor.name: int(tensor.n_bytes) for tensor in gguf.GGUFReader(path).tensors}
    total = sum(sizes.values())
    embedding = sizes["token_embd.weight"] if "output.weight" in sizes else 0
    return {"size_bytes": total, "bytes_per_token": total - embedding}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--context", type=int, default=640)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, help="tokens of a pass; default: the context")
    parser.add_argument("--cache", choices=CACHES, default="f16")
    parser.add_argument("--no-flash-attention", action="store_true")
    engine: Any = LlamaCpp(parser.parse_args())
    serve(lambda request: run(engine, request), engine.description)


if __name__ == "__main__":
    main()
