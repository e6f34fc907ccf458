"""What a resumed export needs besides the finished tensors."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import EdgeDBError
from . import calibrate


class SavedState:
    """Token ids, layers done and residual streams of an export to ``out``, beside its partial file.

    key: identifies source and options; the state of another key is not taken over. plan: the text
    of a plan that was chosen for them, kept from then on.
    """

    def __init__(self, out: Path, key: str) -> None:
        self.path = out.with_name(out.name + ".partial.npz")
        self._temporary = out.with_name(out.name + ".partial.npz.tmp")
        self.inputs = out.with_name(out.name + ".partial.inputs")  # while errors are weighed
        self.key = key
        self.plan = ""

    def load(self) -> dict[str, Any] | None:
        try:
            with np.load(self.path, allow_pickle=False) as stored:
                state = {name: stored[name] for name in stored.files}
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error):
            return None  # there is none, or a power failure has damaged it
        if str(state.get("key")) != self.key:
            return None
        self.plan = str(state.get("plan", ""))
        return state

    def save(
        self, calibration: calibrate.Calibration, layer: int, streams: Sequence[np.ndarray]
    ) -> None:
        """Replace the file in one step. Raises ``EdgeDBError`` if the disk is full."""
        try:
            with self._temporary.open("wb") as file:
                np.savez(
                    file,
                    key=self.key,
                    plan=self.plan,
                    ids=calibration.ids,
                    record=json.dumps(calibration.record),
                    layer=layer,
                    streams=np.array(streams, np.float32),
                )
            self._temporary.replace(self.path)
        except OSError as error:
            raise EdgeDBError(
                f"{self.path}: {error.strerror}. Run the same command again to go on"
            ) from None

    def remove(self) -> None:
        """Leave nothing behind, nor what a killed run was writing."""
        for file in (self.path, self._temporary, self.inputs):
            file.unlink(missing_ok=True)
