"""What can be opened as a checkpoint, and what cannot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgedb.convert.sources import open_source
from edgedb.errors import EdgeDBError, FormatError
from edgedb.text.tokenizer import load_tokenizer


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(EdgeDBError, match="no such file"):
        open_source(tmp_path / "nothing")
    with pytest.raises(FormatError, match=r"config.json is missing"):
        open_source(tmp_path)
    for name in ("x" * 300, "a\0b"):
        with pytest.raises(EdgeDBError, match="no such file"):
            open_source(tmp_path / name)
    (tmp_path / "x.safetensors").write_bytes(b"12345678{}")
    with pytest.raises(FormatError, match="pass the directory"):
        open_source(tmp_path / "x.safetensors")
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + bytes(20))
    with pytest.raises(FormatError, match=r"x.gguf"):
        open_source(tmp_path / "x.gguf")


def test_reference_checkpoint(shared: Path) -> None:
    source = open_source(shared / "models" / "stories260K")
    reference = np.load(shared / "ref" / "stories260K_ref.npz")
    tokenizer = load_tokenizer(source.tokenizer_spec)
    ids = reference["ids"].tolist()
    assert tokenizer.encode(tokenizer.decode(ids)) == ids


def test_the_name_of_a_model_on_the_hub_is_told_how_to_get_it() -> None:
    with pytest.raises(EdgeDBError, match="edgedb pull owner/name"):
        open_source("owner/name")
