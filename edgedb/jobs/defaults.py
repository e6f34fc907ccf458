"""What a run says for lines that do not say it themselves."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from .. import __version__
from ..choose.sampling import SamplingParams
from ..run.engine import Model


@dataclass(frozen=True)
class Defaults:
    """Options of answers; ``params.seed`` is the run's."""

    params: SamplingParams = field(default_factory=lambda: SamplingParams(seed=0))
    max_tokens: int | None = 1024
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    prompt_lookup: int = 0
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()  # names of the model, beside its own, in OpenAI's form


def identity(model: Model, defaults: Defaults) -> dict[str, Any]:
    """All that records depend on beside their lines, as JSON."""
    options = asdict(defaults)
    del options["prompt_lookup"]  # of which the speed depends alone
    options.update(options.pop("params"))
    options["logit_bias"] = {str(k): v for k, v in options["logit_bias"].items()}
    found = {
        "edgedb": __version__,
        "model": model.file.fingerprint,
        "backend": model.ops.name,
        "context": model.context,
        "kv_dtype": model.kv_dtype,
        **options,
    }
    return dict(json.loads(json.dumps(found)))
