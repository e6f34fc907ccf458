"""What is given of a sampled sequence: the turns of a chat, and the first words of a question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgedb.errors import EdgeDBError
from edgedb.files import read_text
from edgedb.text.spec import TokenizerSpec
from edgedb.text.template import render
from edgedb.text.tokenizer import Tokenizer

# First words of a user's turn. The model continues them, so a stem is a topic, not an example.
STEMS = (
    "",
    "What is",
    "What are",
    "How do I",
    "How does",
    "How can",
    "Why",
    "Who",
    "When did",
    "Where",
    "Which",
    "Can you",
    "Could you explain",
    "Explain",
    "Write a",
    "Write a short story about",
    "Write a poem",
    "Give me",
    "List",
    "Tell me",
    "Describe",
    "Summarize",
    "Translate",
    "Is it",
    "Should I",
    "I want to",
    "I need",
    "My",
    "Please",
    "Help me",
    "Compare",
    "Define",
    "Name",
    "The capital of",
    "If I have",
    "Calculate",
    "Write a function",
    "Rewrite the following",
    "Hello",
    "Thanks",
    "What's the difference between",
    "What do you think",
    "Do you",
)


@dataclass(frozen=True)
class Scripts:
    """Token ids that shape the sequences; without chat ids all sequences are documents."""

    chat_starts: tuple[tuple[int, ...], ...] = ()
    next_turn: tuple[int, ...] = ()  # after an answer has ended, up to where the user speaks
    answer_turn: tuple[int, ...] = ()  # after a question has ended
    end_id: int | None = None  # ends a turn


def read_stems(path: Path) -> tuple[str, ...]:
    """First words of questions, one a line. Raises ``EdgeDBError`` for a file without any."""
    stems = tuple(line for line in read_text(path).splitlines() if line.strip())
    if not stems:
        raise EdgeDBError(f"{path}: holds no line to begin a question with")
    return stems


def chat_scripts(
    tokenizer: Tokenizer, spec: TokenizerSpec, stems: Sequence[str] = STEMS
) -> Scripts:
    """Scripts from a tokenizer's chat template, found by rendering it with marker messages."""
    if not spec.chat_template:
        return Scripts()

    def text(*turns: tuple[str, str]) -> str:
        messages = [{"role": role, "content": content} for role, content in turns]
        return render(spec, messages, add_generation_prompt=False)

    def ids(part: str) -> tuple[int, ...]:
        return tuple(tokenizer.encode(part, add_bos=False, special=True))

    ask, answer = "\x01ask\x01", "\x01answer\x01"
    whole = text(("user", ask), ("assistant", answer), ("user", ask))
    before, after_first, rest = whole.split(ask)
    between, to_user = after_first.split(answer)
    end = ids(rest)[0]

    def without_end(part: str) -> tuple[int, ...]:
        turn = ids(part)
        return turn[1:] if turn[:1] == (end,) else turn

    return Scripts(
        chat_starts=tuple(ids(before + stem) for stem in stems),
        next_turn=without_end(to_user),
        answer_turn=without_end(between),
        end_id=end,
    )
