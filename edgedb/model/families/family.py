"""What a family's file says: its pass, and how a checkpoint's settings are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...ops.recorder import Recorder
from ...ops.values import Value
from ..config import ModelConfig
from ..keys import Keys
from ..rotary import Rope

Settings = Mapping[str, Any]  # of config.json, defaults filled in


@dataclass(frozen=True)
class Fold:
    """What of a checkpoint goes into its weights, so that no pass knows it.

    config: what becomes of the hyper-parameters. orders: for a tensor (named as in its block) which
    of its rows stands where. factors: what its rows are multiplied with then, one number or one for
    each row.
    """

    config: ModelConfig
    factors: Mapping[str, float | NDArray[np.float64]] = field(default_factory=dict)
    orders: Mapping[str, NDArray[np.intp]] = field(default_factory=dict)


def no_features(settings: Settings) -> dict[str, Any]:
    return {}


def nothing_derived(settings: Settings) -> dict[str, Any]:
    return {}


def no_fold(settings: Settings, config: ModelConfig) -> Fold:
    return Fold(config)


@dataclass(frozen=True)
class Family:
    """One ``model_type`` of config.json.

    first, layer, final, head: the pass, said to a recorder: ids to the residual stream; that stream
    to itself; to what the head reads; to logits.
    models: for people. classes: of transformers, that compute this pass. config: keys of
    config.json, whose fields are those of ``ModelConfig``. defaults: what stands for a key that is
    missing or null. nulls: keys whose null does not mean the same as their absence. aliases: keys
    under which checkpoints have those of ``config``. derived: settings that follow from others,
    where nothing says them. features: those
    of ``ModelConfig`` that settings say; biases: those that tensors say, each with the matrix that
    shows it. rope: keys of ``rope_parameters`` that are honoured beside those of every family;
    windowed_rope: what layers with a window turn by, given what the others do, where settings do
    not say that of both; None: the same. fold: what goes into weights.
    architecture: the name in GGUF. metadata: keys of GGUF without the architecture, whose fields
    are keys of config.json. implied: settings that GGUF leaves to the architecture, given those
    that it says. interleaved: llama.cpp's converter has put the rows of q and k in another order.
    """

    first: Callable[[Recorder, ModelConfig], Value]
    layer: Callable[[Recorder, ModelConfig, Value, int], Value]
    final: Callable[[Recorder, ModelConfig, Value], Value]
    head: Callable[[Recorder, ModelConfig, Value], Value]
    models: str
    classes: tuple[str, ...]
    config: Keys
    defaults: Mapping[str, Any]
    nulls: frozenset[str]
    aliases: Mapping[str, str] = field(default_factory=dict)
    derived: Callable[[Settings], dict[str, Any]] = nothing_derived
    features: Callable[[Settings], dict[str, Any]] = no_features
    biases: Mapping[str, str] = field(default_factory=dict)
    rope: str = ""
    windowed_rope: Callable[[Settings, Rope], Rope] | None = None
    fold: Callable[[Settings, ModelConfig], Fold] = no_fold
    architecture: str | None = None
    metadata: Keys = field(default_factory=Keys)
    implied: Callable[[Settings], dict[str, Any]] = nothing_derived
    interleaved: bool = False
