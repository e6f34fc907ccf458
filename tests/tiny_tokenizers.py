"""Tokenizers small enough to train in a test, of the two kinds that checkpoints have."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

TEXT = [
    "Once upon a time there was a little girl named Lily.",
    "She lived in a small house near the sea, and she liked to play outside with her friends.",
    "What is the capital of France? The capital of France is Paris, a city on the river Seine.",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. Ça va? 日本語も少し。",
] * 3


def byte_level_bpe() -> bytes:
    """A byte-level BPE ``tokenizer.json`` of 320 tokens; ids 0 to 2 are special."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        show_progress=False,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return str(tokenizer.to_str()).encode()


def tekken(**config: Any) -> dict[str, Any]:
    """Mistral's tekken.json with the words of ``byte_level_bpe``: 20 special tokens, ids 0 to 19,
    then 256 bytes and 61 more. ``config`` replaces entries of its configuration."""
    from edgedb.text.tokenizers_vocabulary import BYTE_OF_CHARACTER

    words = json.loads(byte_level_bpe())["model"]["vocab"]
    longer = [bytes(map(BYTE_OF_CHARACTER.__getitem__, w)) for w in list(words)[3:] if len(w) > 1]
    tokens = [*(bytes([byte]) for byte in range(256)), *longer]
    return {
        "config": {
            "pattern": r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s+",
            "num_vocab_tokens": len(tokens),
            "default_vocab_size": len(tokens) + 20,
            "default_num_special_tokens": 20,
            "version": "v3",
            **config,
        },
        "vocab": [
            {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
            for rank, token in enumerate(tokens)
        ],
    }


def sentencepiece_bpe() -> bytes:
    """A SentencePiece model of 400 pieces with byte fallback: <unk>, <s>, </s>, then the bytes."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT),
        model_writer=model,
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        character_coverage=0.98,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return model.getvalue()


def like_sentencepiece(data: bytes, scheme: str) -> bytes:
    """A tokenizer.json with the pieces of a SentencePiece model, as transformers writes it."""
    import sentencepiece
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    pieces = sentencepiece.SentencePieceProcessor(model_proto=data)
    vocabulary = {pieces.id_to_piece(i): i for i in range(pieces.vocab_size())}
    merges = [
        (piece[:cut], piece[cut:])
        for piece in sorted(vocabulary, key=vocabulary.__getitem__)
        for cut in range(1, len(piece))
        if piece[:cut] in vocabulary and piece[cut:] in vocabulary and vocabulary[piece] > 258
    ]
    library = tokenizers.Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    if scheme == "first":
        library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    else:
        library.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    library.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)])
    library.add_special_tokens(["<unk>", "<s>", "</s>"])
    return str(library.to_str()).encode()


def replaced_characters() -> bytes:
    """SentencePiece's table for NFKC: what a ``tokenizer.json`` has as ``precompiled_charsmap``."""
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT),
        model_writer=model,
        vocab_size=80,
        normalization_rule_name="nmt_nfkc",
        minloglevel=2,
    )
    proto = sentencepiece_model_pb2.ModelProto.FromString(model.getvalue())
    return bytes(proto.normalizer_spec.precompiled_charsmap)
