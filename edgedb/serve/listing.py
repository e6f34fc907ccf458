"""What is here: the model, as OpenAI's clients list it, and how the server is."""

from __future__ import annotations

from typing import Any

from .desk import Desk
from .served import Served


def model_entry(served: Served) -> dict[str, Any]:
    """The model, with what llama-server tells of it in ``meta``."""
    config = served.model.config
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "edgedb",
        "aliases": list(served.names[1:]),
        "meta": {
            "n_vocab": config.vocab_size,
            "n_ctx": served.model.context,
            "n_ctx_train": config.max_position_embeddings,
            "n_embd": config.hidden_size,
            "size": served.model.file.path.stat().st_size,
            "fingerprint": served.fingerprint,
        },
    }


def models(served: Served) -> dict[str, Any]:
    """``/v1/models``."""
    return {"object": "list", "data": [model_entry(served)]}


def health(desk: Desk) -> dict[str, Any]:
    """``/health`` of a server that is ready."""
    return {
        "status": "ok",
        "running": desk.running,
        "waiting": desk.waiting,
        "slots_idle": desk.parallel - desk.running,
        "slots_processing": desk.running,
    }
