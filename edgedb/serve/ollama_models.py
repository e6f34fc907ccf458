"""What Ollama's clients ask of the models that are here."""

from __future__ import annotations

import datetime
import math
from typing import Any

from .. import __version__
from ..model.families import program_of
from .fields import Fields
from .served import Served

_NEVER = "2318-03-11T00:00:00Z"  # about when Ollama says that a model goes which it is told to keep


def version(served: Served) -> Any:
    """``/api/version``."""
    return {"version": __version__}


def tags(served: Served) -> Any:
    """``/api/tags``: the model that is served."""
    stat = served.model.file.path.stat()
    changed = datetime.datetime.fromtimestamp(stat.st_mtime, datetime.timezone.utc)
    return {"models": [{**_entry(served), "modified_at": changed.isoformat()}]}


def running(served: Served) -> Any:
    """``/api/ps``: the same, which is always in memory."""
    more = {"expires_at": _NEVER, "size_vram": 0, "context_length": served.model.context}
    return {"models": [{**_entry(served), **more}]}


def show(served: Served, body: Any) -> Any:
    """``/api/show``."""
    fields = Fields(body)
    named = fields.take("model") or fields.take("name")
    served.check_name(named)
    fields.ignore("name", "verbose", "system", "template", "options")
    fields.finish()
    config, spec = served.model.config, served.model.tokenizer_spec
    family = config.model_type
    capabilities = ["completion", "embedding"]
    if spec.chat_template is not None:
        capabilities.append("tools")
        capabilities += ["thinking"] if "</think>" in spec.chat_template else []
    stat = served.model.file.path.stat()
    changed = datetime.datetime.fromtimestamp(stat.st_mtime, datetime.timezone.utc)
    return {
        "modelfile": f"FROM {served.name}\n",
        "parameters": f"temperature {served.params.temperature:g}",
        "template": spec.chat_template or "",
        "details": _details(served),
        "model_info": {
            "general.architecture": family,
            "general.parameter_count": _parameters(served),
            f"{family}.context_length": config.max_position_embeddings,
            f"{family}.embedding_length": config.hidden_size,
            f"{family}.block_count": config.n_layers,
            f"{family}.attention.head_count": config.n_heads,
            f"{family}.attention.head_count_kv": config.n_kv_heads,
        },
        "capabilities": capabilities,
        "modified_at": changed.isoformat(),
    }


def _entry(served: Served) -> dict[str, Any]:
    file = served.model.file
    return {
        "name": served.name,
        "model": served.name,
        "size": file.path.stat().st_size,
        "digest": file.fingerprint,
        "details": _details(served),
    }


def _details(served: Served) -> dict[str, Any]:
    n = _parameters(served)
    bits = 8 * served.model.file.path.stat().st_size / max(n, 1)
    unit, letter = (1e9, "B") if n >= 1e9 else (1e6, "M")
    return {
        "parent_model": "",
        "format": "dbb",
        "family": served.model.config.model_type,
        "families": [served.model.config.model_type],
        "parameter_size": f"{n / unit:.1f}{letter}",
        "quantization_level": f"{bits:.1f} bits a weight",
    }


def _parameters(served: Served) -> int:
    return sum(math.prod(shape) for shape in program_of(served.model.config).matrices().values())
