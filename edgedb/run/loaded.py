"""A model in memory: its weights, bound to what runs them, and its tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, TypeVar

from .. import arguments
from .. import ops as operations
from ..errors import EdgeDBError, FormatError, UnsupportedModelError
from ..format.tensors import Experts
from ..hub.modelfiles import find_model
from ..model.config import DEFAULT_CONTEXT, ModelConfig
from ..model.dbb import DbbFile, read_dbb
from ..model.families import program_of
from ..model.footprint import Footprint
from ..model.head import HEADS, TwoStageHead
from ..model.kvcache import KV_DTYPES
from ..model.network import Network
from ..ops.pages import PAGE
from ..text.messages import Message
from ..text.spec import TokenizerSpec
from ..text.tokenizer import Tokenizer, load_tokenizer
from .admission import Admission
from .loop import Loop
from .prefixes import Prefixes
from .session_file import BEYOND
from .stakes import Experience

_BOS = arguments.optional(arguments.flag)

Key = TypeVar("Key")
Value = TypeVar("Value")
Prompt = str | Sequence[int]


def open_file(path: str | PathLike[str], verify: bool, memory: str) -> DbbFile:
    """The file of a path, or of a model's name where that is a string, read as ``load`` says."""
    return read_dbb(
        find_model(path) if isinstance(path, str) else path, verify=verify, memory=memory
    )


@dataclass(frozen=True)
class CacheRoom:
    """Room for what sessions hold, by ``tokens(context, bytes of a full one)``."""

    tokens: Callable[[int, int], int]


class LoadedModel:
    """What sessions and answers need of a model; immutable, shared between threads."""

    def __init__(
        self,
        file: DbbFile,
        ops: operations.Ops,
        context: int | None,
        kv_dtype: str,
        head: str = "full",
        cache_tokens: int | CacheRoom | None = None,
    ) -> None:
        self.file = file
        self.ops = ops
        self._derived: dict[Any, Any] = {}
        self._summary: dict[str, Any] | None = None
        self.kv_dtype = arguments.choice(*KV_DTYPES)("kv_dtype", kv_dtype)
        head = arguments.choice(*HEADS)("head", head)
        longest = file.config.max_position_embeddings
        positions = program_of(file.config).positions()
        if positions is not None and isinstance(context, int) and context > positions:
            raise EdgeDBError(
                f"context = {context}: this model has learned positions for {positions:,} tokens "
                "and cannot read further"
            )
        usual = min(longest, DEFAULT_CONTEXT, file.config.plain_context)
        room = arguments.optional(arguments.whole(1, longest), usual)
        self.context: int = room("context", context)
        vocab_size = file.config.vocab_size
        self.check_ids = arguments.token_ids(vocab_size)
        self._prompt_ids = arguments.token_ids(vocab_size, "a text or a list of token ids")
        self.tokenizer = _open_tokenizer(file)
        self.network = Network(file.config, file.linears, file.vectors, ops, self.context)
        if head == "two-stage":
            block = self.network.program.head
            if block.output.op != "linear":
                raise EdgeDBError(
                    "a two-stage head bounds logits that are products, and this model's are "
                    "capped; load it with --head full"
                )
            whole = file.linears[next(iter(block.matrices))]
            assert not isinstance(whole, Experts)
            bias = file.vectors.get(next(iter(block.vectors), ""))
            self.network.two_stage = TwoStageHead(whole, ops, bias)
        self.loop = Loop(self.network)
        self.prefixes = Prefixes()
        self.draft: LoadedModel | None = None  # guesses what this one will write
        self.experience = Experience()  # with this one as a draft
        if isinstance(cache_tokens, CacheRoom):
            full = self.network.cache(self.context, self.kv_dtype)
            cache_tokens = cache_tokens.tokens(self.context, full.size_bytes)
        room = arguments.optional(arguments.whole(PAGE))("cache_tokens", cache_tokens)
        self.admission = Admission(self.prefixes, room)

    def __repr__(self) -> str:
        config, ops = self.config, self.ops
        runs = " ".join(filter(None, (ops.name, ops.isa)))
        return (
            f"<{type(self).__name__} {self.file.path.name}: {config.model_type}, "
            f"{config.n_layers} layers, context {self.context}, {runs}, threads {ops.threads}>"
        )

    @property
    def config(self) -> ModelConfig:
        """Hyper-parameters."""
        return self.file.config

    @property
    def vocab_size(self) -> int:
        """Number of logits."""
        return self.config.vocab_size

    @property
    def footprint(self) -> Footprint:
        """What the file's matrices take."""
        sizes = {name: weight.nbytes for name, weight in self.file.linears.items()}
        return Footprint(self.config, sizes)

    @property
    def longest_context(self) -> int:
        """The most positions that a session could be given."""
        longest = self.config.max_position_embeddings
        return min(longest, program_of(self.config).positions() or longest)

    @property
    def larger_context(self) -> str:
        """What to say to somebody for whom the context is too small, where it can be larger."""
        if self.context == self.longest_context:
            return ""
        return f" or load with a larger context (at most {self.longest_context})"

    @property
    def session_fingerprint(self) -> str:
        """Of all that the keys of a saved session depend on."""
        longer = self.config.plain_context < self.context
        return self.file.fingerprint + (BEYOND if longer else "")

    @property
    def scratch_bytes(self) -> int:
        """Bytes of what passes work in, for all sessions together."""
        return int(self.loop.state.size_bytes)

    @property
    def tokenizer_spec(self) -> TokenizerSpec:
        """Special tokens and chat template."""
        return self.file.tokenizer

    @property
    def info(self) -> dict[str, Any]:
        """What ``edgedb info`` shows: the file's summary, made once, and what runs it."""
        from ..model.summary import summarize

        # No cached_property: the lock that it has before Python 3.12 would outlive a fork.
        if self._summary is None:
            self._summary = summarize(self.file)  # reads the whole file
        return {
            **self._summary,
            "backend": self.ops.name,
            "isa": self.ops.isa,
            "kernel": self.ops.kernel,
            "threads": self.ops.threads,
            "context": self.context,
            "memory": self.file.memory,
        }

    def tokenize(self, text: str, *, add_bos: bool | None = None) -> list[int]:
        """Token ids of ``text``; special tokens in it are plain text. BOS as the model wants it."""
        text = arguments.text("text", text)
        return self.tokenizer.encode(text, add_bos=_BOS("add_bos", add_bos))

    def detokenize(self, ids: Sequence[int]) -> str:
        """Text of token ids, without special tokens."""
        return self.tokenizer.decode(self.check_ids("ids", ids))

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Token ids of ``prompt``, a text or ids."""
        if isinstance(prompt, str):
            return self.tokenize(prompt)
        return self._prompt_ids("prompt", prompt)

    def chat_tokens(self, messages: Iterable[Message], **template: Any) -> list[int]:
        """Ids of a conversation through the model's chat template, ready for the answer.

        ``template`` are the options of ``chat_text``.
        """
        text = self.chat_text(messages, **template)
        return self.tokenizer.encode(text, add_bos=False, special=True)

    def chat_text(
        self,
        messages: Iterable[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool | str = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """A conversation as the model's chat template writes it, ready for the answer.

        The names are those of transformers. A message is a ``role`` and a ``content``: a text, a
        list of ``{"type": "text", "text": ...}``, or None; ``tool_calls`` and other keys are passed
        on. ``tools`` are JSON schemas, ``documents`` dictionaries; ``chat_template_kwargs`` are
        variables that the template may know, such as ``enable_thinking``.
        ``continue_final_message`` ends the text inside of the last message, or of another of its
        fields than its content, so that the answer goes on with it; otherwise the text ends where
        an answer begins, unless ``add_generation_prompt`` is False.

        Raises ``TemplateError`` if the model has no template, or it refuses what it is given.
        """
        from ..text.template import render  # 25 ms of imports that plain text does not need

        return render(
            self.tokenizer_spec,
            messages,
            tools=tools,
            documents=documents,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            chat_template_kwargs=chat_template_kwargs,
        )

    def cached(self, make: Callable[[Tokenizer, Key], Value], key: Key) -> Value:
        """``make(tokenizer, key)``, made once: what is derived from the vocabulary is costly."""
        found = self._derived.get((make, key))
        if found is None:
            found = self._derived[make, key] = make(self.tokenizer, key)
        return found


def _open_tokenizer(file: DbbFile) -> Tokenizer:
    try:
        return load_tokenizer(file.tokenizer, file.config.vocab_size)
    except (FormatError, UnsupportedModelError) as error:
        raise type(error)(f"{file.path}: {error}") from None
