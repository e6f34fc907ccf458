"""What is thought, said and called, however the text is cut into chunks."""

from __future__ import annotations

from typing import Any

import pytest

from edgedb.run.completion import Chunk, Stats
from edgedb.serve.served import Served
from edgedb.serve.speech import Call, Said, Speech
from edgedb.serve.tool_formats import FORMATS

CALL = '{"name": "f", "arguments": {"a": "}"}}'
BARE = CALL.replace("arguments", "parameters")
HERMES, LLAMA = FORMATS[-1], FORMATS[-2]


def hear(served: Served, text: str, size: int, tools: Any, thinks: Any) -> dict[str, Any]:
    speech = Speech(served.model.tokenizer, tools, thinks)
    found: dict[str, Any] = {"content": "", "reasoning": "", "calls": []}
    parts = [text[i : i + size] for i in range(0, len(text), size)]
    for part in [*(Chunk(p, None, None, Stats()) for p in parts), Chunk("", None, "stop", Stats())]:
        for piece in speech.push(part):
            if isinstance(piece, Said):
                found[piece.kind] += piece.text
            else:
                assert isinstance(piece, Call)
                found["calls"].append((piece.name, piece.arguments))
    return {kind: value for kind, value in found.items() if value}


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize(
    ("text", "tools", "thinks", "expected"),
    [
        ("a < b", None, False, {"content": "a < b"}),
        ("<think>x</think>y", None, False, {"content": "<think>x</think>y"}),
        ("<think>\nx\n</think>\n\ny", None, None, {"reasoning": "x\n", "content": "y"}),
        ("<thin", None, None, {"content": "<thin"}),
        ("x</think>\ny", None, True, {"reasoning": "x", "content": "y"}),
        ("x</th", None, True, {"reasoning": "x</th"}),
        (
            f"Hm <tool_call>\n{CALL}\n</tool_call>\n<tool_call>\n{CALL}\n</tool_call>",
            HERMES,
            False,
            {"content": "Hm ", "calls": [("f", '{"a": "}"}')] * 2},
        ),
        (f"<tool_call>\n{CALL[:-1]}", HERMES, False, {}),
        ("Hm <tool_c", HERMES, False, {"content": "Hm <tool_c"}),
        (BARE, LLAMA, False, {"calls": [("f", '{"a": "}"}')]}),
        ("No {call}", LLAMA, False, {"content": "No {call}"}),
        (
            f"<think>x</think><tool_call>\n{CALL}\n</tool_call>",
            HERMES,
            None,
            {"reasoning": "x", "calls": [("f", '{"a": "}"}')]},
        ),
    ],
)
def test_speech(
    served: Served, size: int, text: str, tools: Any, thinks: Any, expected: Any
) -> None:
    assert hear(served, text, size, tools, thinks) == expected
