"""Answers in a given form: JSON of a schema, a regular expression or a grammar.

The parser is llguidance (extra ``[grammar]``). Before each choice it tells which tokens can come
next, from the bytes that every token stands for; all others are forbidden.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from ..errors import EdgeDBError
from ..gate import gate
from ..ops.selection import Floats
from ..text.spec import TokenizerSpec
from ..text.tokenizer import Tokenizer
from .json_schema import MAX_NESTING, readable

if TYPE_CHECKING:
    from llguidance import LLTokenizer

Key = TypeVar("Key")
Value = TypeVar("Value")

# At most a space, or a new line and its indentation: small models like to go on with white space.
_WHITE_SPACE = r"( |\n[ \t]{0,20})?"


class Lexicon(Protocol):
    """The part of a model that a grammar looks at."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def tokenizer_spec(self) -> TokenizerSpec: ...

    def cached(self, make: Callable[[Tokenizer, Key], Value], key: Key) -> Value:
        """``make(tokenizer, key)``, made once."""


class Grammar:
    """A form, ``kind`` one of ``json_schema``, ``regex`` and ``grammar`` (Lark); see ``Parser``."""

    def __init__(self, kind: str, source: str | Mapping[str, Any]) -> None:
        self.kind = kind
        matcher = _llguidance().LLMatcher
        if kind == "json_schema":
            try:
                schema = json.loads(source) if isinstance(source, str) else source
                if not isinstance(schema, Mapping):
                    raise ValueError("expected a JSON object")
                compact = json.dumps(readable(schema), allow_nan=False)
                options = {"whitespace_pattern": _WHITE_SPACE}
                with gate.lock:
                    self.text = str(matcher.grammar_from_json_schema(compact, options))
            except RecursionError:  # in the reader of JSON
                raise EdgeDBError(f"json_schema: nested more than {MAX_NESTING} deep") from None
            except (TypeError, ValueError) as error:
                raise EdgeDBError(f"json_schema: {_one_line(error)}") from None
        elif not isinstance(source, str):
            raise EdgeDBError(f"{kind}: expected a text")
        else:
            write = matcher.grammar_from_regex if kind == "regex" else matcher.grammar_from_lark
            with gate.lock:
                self.text = str(write(source))

    def parser(self, lexicon: Lexicon) -> Parser:
        """A parser at its beginning. Raises ``EdgeDBError`` if the form is not valid."""
        return Parser(self, lexicon)


class Parser:
    """How far an answer has come in its grammar: a ``Constraint`` of ``Sampler``."""

    def __init__(self, grammar: Grammar, lexicon: Lexicon) -> None:
        key = (lexicon.vocab_size, lexicon.tokenizer_spec.eos_ids)
        self._kind = grammar.kind
        with gate.lock:
            vocabulary = lexicon.cached(_vocabulary, key)
            self._matcher = _llguidance().LLMatcher(vocabulary, grammar.text, log_level=0)
            self._check()

    @property
    def finished(self) -> bool:
        """Whether the answer is complete and nothing can follow."""
        with gate.lock:
            return bool(self._matcher.is_stopped())

    def forbid(self, scores: Floats) -> None:
        """Set the scores of all tokens that may not come next to -inf."""
        with gate.lock:
            bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
            self._check()
        allowed = np.unpackbits(bits, count=len(scores), bitorder="little")
        np.copyto(scores, np.float32(-np.inf), where=allowed == 0)

    def accept(self, token: int) -> None:
        """``token`` was chosen."""
        with gate.lock:
            self._matcher.consume_token(token)
            self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise EdgeDBError(f"{self._kind}: {_one_line(self._matcher.get_error())}")


def _one_line(error: object) -> str:
    """What is wrong, and for an expression, which the library draws, why and where."""
    first, *rest = str(error).strip().splitlines() or ["not valid"]
    why = next((line for line in rest if line.startswith("error: ")), None)
    if why is not None:
        first = f"{first.rstrip(':')[:100]}: {why.removeprefix('error: ')}, in {rest[0].strip()}"
    return first[:300]


def _llguidance() -> Any:
    try:
        import llguidance
    except ImportError:
        raise EdgeDBError(
            "json_schema, regex and grammar need llguidance: pip install llguidance"
        ) from None
    return llguidance


class _Wrapper:
    """A tokenizer as llguidance wants it."""

    is_tokenizer_wrapper = True

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, end_id: int) -> None:
        self.eos_token_id, self.bos_token_id = end_id, None
        self.special_token_ids = sorted(tokenizer.special_ids)
        self.tokens = [tokenizer.token_bytes(i, skip_special=False) for i in range(vocab_size)]
        self._encode = tokenizer.encode_inside

    def __call__(self, text: str) -> list[int]:
        """Ids of what must come next: the answer goes on, so that no space is put before it."""
        return self._encode(text)


def _vocabulary(tokenizer: Tokenizer, key: tuple[int, tuple[int, ...]]) -> LLTokenizer:
    """The tokens as llguidance keeps them, a tree of bytes: 0.2 s for 50,000 tokens."""
    vocab_size, end_ids = key
    # A model without an end of text still needs a token that no grammar allows.
    ends = [i for i in end_ids if i < vocab_size] or [vocab_size - 1]
    wrapper = _Wrapper(tokenizer, vocab_size, ends[0])
    return _llguidance().LLTokenizer(wrapper, n_vocab=vocab_size, eos_token=ends)
