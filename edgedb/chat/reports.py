"""What a conversation can tell about itself, as rows of names and values."""

from __future__ import annotations

import os
from pathlib import Path

from ..files import size_text
from ..hub.modelfiles import remark
from ..run.engine import Model
from ..run.session import Stats
from .conversation import Conversation, Turn

Rows = list[tuple[str, str]]

_PREVIEW_CHARS = 48
_LISTED = 12  # messages


def banner(conversation: Conversation) -> list[str]:
    """The first line of a conversation; a second if there is something to know of the model."""
    model = conversation.model
    line = (
        f"{model.file.path.stem}: {_runs(conversation)}, context {model.context}. "
        "/help for commands"
    )
    known = remark(model.file.fingerprint)
    return [line] if known is None else [line, f"({known})"]


def model(conversation: Conversation) -> Rows:
    """What answers, and what runs it."""
    model = conversation.model
    file, config = model.file, model.config
    weights = model.footprint.n_weights
    return [
        ("model", str(file.path)),
        ("kind", f"{config.model_type}, {weights / 1e6:,.0f}M parameters"),
        (
            "file",
            f"{size_text(file.size_bytes)}, "
            f"{model.footprint.layer_bits:.2f} bits a weight in the layers, "
            f"{8 * file.size_bytes / weights:.2f} in the file",
        ),
        *_draft(model),
        ("context", f"{model.context:,} tokens of {config.max_position_embeddings:,}"),
        ("runs on", _runs(conversation)),
    ]


def _draft(model: Model) -> Rows:
    return [] if model.draft is None else [("draft", str(model.draft.file.path))]


def stats(conversation: Conversation) -> Rows:
    """Speeds of the last answer, sums of all, memory."""
    rows: Rows = []
    if conversation.turns:
        last = conversation.turns[-1]
        rows += [
            ("prompt", _prompt_speed(last.stats)),
            ("first text", _first_text(last)),
            ("answer", _answer_speed(last.stats)),
        ]
        if last.stats.drafted_tokens:
            guessed, right = last.stats.drafted_tokens, last.stats.accepted_tokens
            rows.append(("guessed", f"{tokens(guessed)}, {right:,} of them right"))
    if len(conversation.turns) > 1:
        each = [turn.stats for turn in conversation.turns]
        total = Stats(
            read_tokens=sum(s.read_tokens for s in each),
            prompt_tokens=sum(s.prompt_tokens for s in each),
            completion_tokens=sum(s.completion_tokens for s in each),
            prompt_seconds=sum(s.prompt_seconds for s in each),
            decode_seconds=sum(s.decode_seconds for s in each),
        )
        rows += [
            (f"all {len(each)} prompts", _prompt_speed(total)),
            (f"all {len(each)} answers", _answer_speed(total)),
        ]
    if not rows:
        rows.append(("speed", "nothing was answered yet"))
    rows.append(("context", context_line(conversation)))
    return [*rows, *_memory(conversation), ("runs on", _runs(conversation))]


def stats_line(turn: Turn) -> str:
    """The same of one answer, on one line."""
    stats = turn.stats
    parts = [f"prompt {tokens(stats.read_tokens)} at {stats.prompt_per_second:,.0f}/s"]
    if turn.first_token_seconds is not None:
        parts.append(f"first text after {turn.first_token_seconds:.2f} s")
    parts.append(f"answer {tokens(stats.completion_tokens)} at {stats.decode_per_second:,.1f}/s")
    if stats.drafted_tokens:
        parts.append(f"{stats.accepted_share:.0%} of {stats.drafted_tokens:,} guesses right")
    return ", ".join(parts)


def context_line(conversation: Conversation) -> str:
    """How full the context is."""
    used, context = conversation.used, conversation.model.context
    return f"{used:,} of {context:,} tokens ({used / context:.0%}), {max(0, context - used):,} left"


def context(conversation: Conversation) -> Rows:
    """How full the context is, and what fills it."""
    rows: Rows = [("context", context_line(conversation))]
    earlier, shown = conversation.messages[:-_LISTED], conversation.messages[-_LISTED:]
    if earlier:
        text = " ".join(message["content"] for message in earlier)
        n = len(conversation.model.tokenize(text, add_bos=False))
        rows.append((f"{len(earlier)} earlier", f"{n:>6,}"))
    for message in shown:
        n = len(conversation.model.tokenize(message["content"], add_bos=False))
        rows.append((message["role"], f"{n:>6,}  {preview(message['content'])}"))
    if conversation.forgotten:
        rows.append(("dropped", f"{len(conversation.forgotten)} messages; /export still has them"))
    trim = conversation.options.trim
    rows.append(("when full", "the oldest turns go" if trim == "oldest" else "nothing is dropped"))
    return rows


def preview(text: str) -> str:
    """The beginning of a text on one line."""
    line = " ".join(text.split())
    return line if len(line) <= _PREVIEW_CHARS else line[: _PREVIEW_CHARS - 3] + "..."


def tokens(count: int) -> str:
    """How many tokens, in words."""
    return f"{count:,} token{'s' if count != 1 else ''}"


def _prompt_speed(stats: Stats) -> str:
    known = stats.prompt_tokens - stats.read_tokens
    return (
        f"{tokens(stats.read_tokens)} in {stats.prompt_seconds:.2f} s "
        f"({stats.prompt_per_second:,.1f}/s), {known:,} were in the cache"
    )


def _answer_speed(stats: Stats) -> str:
    return (
        f"{tokens(stats.completion_tokens)} in {stats.decode_seconds:.2f} s "
        f"({stats.decode_per_second:,.1f}/s)"
    )


def _first_text(turn: Turn) -> str:
    seconds = turn.first_token_seconds
    return "none" if seconds is None else f"after {seconds:.2f} s"


def _runs(conversation: Conversation) -> str:
    ops = conversation.model.ops
    runs = f"{ops.name} {ops.isa}" if ops.isa and ops.isa != ops.name else ops.name
    return f"{runs}, {ops.threads} thread{'s' if ops.threads != 1 else ''}"


def _memory(conversation: Conversation) -> Rows:
    model, session = conversation.model, conversation.session
    used = session.size_bytes * session.position // session.context
    rows = [
        ("model file", f"{size_text(model.file.size_bytes)}, mapped"),
        ("cache", f"{size_text(used)} in use, {size_text(session.size_bytes)} when full"),
    ]
    if model.draft is not None:
        rows.append(("draft file", f"{size_text(model.draft.file.size_bytes)}, mapped"))
    resident = _resident_bytes()
    if resident is not None:
        rows.append(("memory", f"{size_text(resident)} resident, the mapped file included"))
    return rows


def _resident_bytes() -> int | None:
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")
