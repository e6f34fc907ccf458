"""A Hugging Face model directory: config.json, safetensors in one or many shards, tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from edgedb.config import ModelConfig
from edgedb.errors import FormatError
from edgedb.files import read_text
from edgedb.tokenizer import TokenizerSpec

from .safetensors import SafetensorsFile
from .source import Float32, Source

_TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token")


class HuggingFaceSource(Source):
    """See ``Source``; a missing file is a ``FormatError`` that names it."""

    layout: ClassVar = {
        "embedding": ("model.embed_tokens.weight",),
        "attn_norm": ("model.layers.{i}.input_layernorm.weight",),
        "attn_qkv": (
            "model.layers.{i}.self_attn.q_proj.weight",
            "model.layers.{i}.self_attn.k_proj.weight",
            "model.layers.{i}.self_attn.v_proj.weight",
        ),
        "attn_out": ("model.layers.{i}.self_attn.o_proj.weight",),
        "mlp_norm": ("model.layers.{i}.post_attention_layernorm.weight",),
        "mlp_gate_up": (
            "model.layers.{i}.mlp.gate_proj.weight",
            "model.layers.{i}.mlp.up_proj.weight",
        ),
        "mlp_down": ("model.layers.{i}.mlp.down_proj.weight",),
        "final_norm": ("model.norm.weight",),
        "head": ("lm_head.weight",),
    }

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_dict = _read_json(path / "config.json", required=True)
        self.config = ModelConfig.from_hf(self.config_dict)
        self._shards = {file.name: SafetensorsFile(file) for file in _shard_files(path)}
        self._shard_of = {name: shard for shard in self._shards.values() for name in shard.shapes}
        self.check()
        self.tokenizer_spec = _tokenizer_spec(path, self.config_dict)

    def files(self) -> list[Path]:
        return sorted(shard.path for shard in self._shards.values())

    def stored_shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: shard.shapes[name] for name, shard in self._shard_of.items()}

    def read_stored(self, stored: str, start: int, stop: int) -> Float32:
        return self._shard_of[stored].read(stored, start, stop)

    def ignorable(self, stored: str) -> bool:
        # Old Llama checkpoints carry the rotary frequencies, which follow from rope_theta.
        return super().ignorable(stored) or stored.endswith(".rotary_emb.inv_freq")


def _shard_files(path: Path) -> list[Path]:
    index = _read_json(path / "model.safetensors.index.json")
    if index:
        weight_map = index.get("weight_map")
        if not isinstance(weight_map, dict):
            raise FormatError(f"{path.name}: model.safetensors.index.json has no weight_map")
        # Names come from a downloaded file: keep them inside the directory.
        files = [path / Path(name).name for name in sorted(set(map(str, weight_map.values())))]
    elif (path / "model.safetensors").is_file():
        files = [path / "model.safetensors"]
    else:
        raise FormatError(
            f"{path.name}: no model.safetensors; "
            "a checkpoint of .bin files must be saved as safetensors first"
        )
    for file in files:
        if not file.is_file():
            raise FormatError(f"{path.name}: shard {file.name} is missing")
    return files


def _tokenizer_spec(path: Path, config: Mapping[str, Any]) -> TokenizerSpec:
    settings = _read_json(path / "tokenizer_config.json")
    generation = _read_json(path / "generation_config.json")
    special = {**_read_json(path / "special_tokens_map.json"), **settings}
    tokens = {
        name: text
        for name in _TOKEN_NAMES
        if isinstance(text := _token_text(special.get(name)), str)
    }
    kind, data, token_id, puts_bos = _tokenizer_file(path, tokens)

    eos_ids: list[Any] = []
    for value in (generation.get("eos_token_id"), config.get("eos_token_id")):
        eos_ids += value if isinstance(value, list) else [value]
    eos_ids.append(token_id(tokens.get("eos_token")))
    bos_id = config.get("bos_token_id")
    if tokens.get("bos_token") and token_id(tokens["bos_token"]) is not None:
        bos_id = token_id(tokens["bos_token"])
    add_bos = settings.get("add_bos_token")
    if add_bos is None:
        add_bos = puts_bos(bos_id)
    return TokenizerSpec(
        kind=kind,
        data=data,
        bos_id=bos_id if type(bos_id) is int else None,
        eos_ids=tuple(dict.fromkeys(i for i in eos_ids if type(i) is int)),
        add_bos=bool(add_bos) and type(bos_id) is int,
        chat_template=_chat_template(path, settings),
        special_tokens=tokens,
    )


def _tokenizer_file(path: Path, tokens: Mapping[str, str]) -> Any:
    """``(kind, bytes, text -> id or None, bos id -> whether the tokenizer puts it first)``."""
    model, fast = path / "tokenizer.model", path / "tokenizer.json"
    if model.is_file() and _is_sentencepiece(model):
        import sentencepiece

        data = model.read_bytes()
        try:
            pieces = sentencepiece.SentencePieceProcessor(model_proto=data)
        except RuntimeError:
            raise FormatError(f"{path.name}: tokenizer.model is damaged") from None

        def piece_id(text: str | None) -> int | None:
            if text is None:
                return None
            found = int(pieces.piece_to_id(text))
            return found if pieces.id_to_piece(found) == text else None

        # Tokens added after training live in tokenizer.json only (chat markers, for one).
        added = _read_json(fast).get("added_tokens") or []
        try:
            known = all(int(token["id"]) < pieces.vocab_size() for token in added)
        except (TypeError, KeyError, ValueError):
            raise FormatError(f"{path.name}: tokenizer.json: added_tokens without ids") from None
        if known:
            return "sentencepiece", data, piece_id, lambda bos_id: bos_id is not None
    if not fast.is_file():
        raise FormatError(f"{path.name}: no tokenizer.json and no SentencePiece tokenizer.model")
    from tokenizers import Tokenizer

    data = fast.read_bytes()
    try:
        tokenizer = Tokenizer.from_str(data.decode())
    except Exception as error:  # the package raises plain Exception
        raise FormatError(f"{path.name}: tokenizer.json: {error}") from None

    def token_id(text: str | None) -> int | None:
        found = None if text is None else tokenizer.token_to_id(text)
        return None if found is None else int(found)

    return "tokenizers", data, token_id, lambda bos_id: tokenizer.encode("a").ids[:1] == [bos_id]


def _is_sentencepiece(file: Path) -> bool:
    # A tiktoken file (Llama 3's original/tokenizer.model) is base64 text; a SentencePiece model is
    # a protobuf whose first field is the first piece.
    with file.open("rb") as stream:
        return stream.read(1) == b"\x0a"


def _chat_template(path: Path, settings: Mapping[str, Any]) -> str | None:
    file = path / "chat_template.jinja"
    if file.is_file():
        return read_text(file)
    template = settings.get("chat_template")
    if isinstance(template, list):
        try:
            template = {entry["name"]: entry["template"] for entry in template}.get("default")
        except (TypeError, KeyError):
            raise FormatError(
                f"{path.name}: tokenizer_config.json: chat templates without name and template"
            ) from None
    return template if isinstance(template, str) else None


def _token_text(value: Any) -> Any:
    return value.get("content") if isinstance(value, dict) else value


def _read_json(file: Path, *, required: bool = False) -> dict[str, Any]:
    if not file.is_file():
        if required:
            raise FormatError(f"{file.parent.name}: {file.name} is missing")
        return {}
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{file.parent.name}: {file.name}: {error}") from None
    if not isinstance(value, dict):
        raise FormatError(f"{file.parent.name}: {file.name} is not a JSON object")
    return value
