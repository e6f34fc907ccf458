"""How many short questions of general knowledge a small chat model answers.

    python bench/questions.py MODEL... [--seeds 3]

An answer counts when it holds the expected word, whatever else it says. None of the questions was
written for a training text; a model's own sampled chats may hold some of them.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import edgedb

# Question, and a regular expression that a right answer matches (case is ignored).
QUESTIONS = (
    ("What is the capital of France?", "paris"),
    ("What is the capital of Italy?", "rome"),
    ("What is the capital of Japan?", "tokyo"),
    ("What is the capital of Germany?", "berlin"),
    ("What is the capital of Spain?", "madrid"),
    ("What is the capital of England?", "london"),
    ("How many days are in a week?", r"seven|\b7\b"),
    ("How many months are in a year?", r"twelve|\b12\b"),
    ("What color is grass?", "green"),
    ("What color is the sky on a clear day?", "blue"),
    ("What is 2 + 2?", r"\b4\b|four"),
    ("What is 10 minus 3?", r"\b7\b|seven"),
    ("Who wrote Romeo and Juliet?", "shakespeare"),
    ("Who painted the Mona Lisa?", "vinci|leonardo"),
    ("Which planet do we live on?", "earth"),
    ("What is the largest planet in the solar system?", "jupiter"),
    ("What star is at the center of the solar system?", "sun"),
    ("What is water made of?", "hydrogen|oxygen"),
    ("What animal says meow?", "cat"),
    ("What animal barks?", "dog"),
    ("What do bees make?", "honey"),
    ("What is the opposite of hot?", "cold"),
    ("What is the opposite of up?", "down"),
    ("Name a fruit that is yellow.", "banana|lemon|mango|pineapple"),
    ("Who was the first president of the United States?", "washington"),
    ("In which country are the pyramids of Giza?", "egypt"),
    ("What language do people speak in Brazil?", "portuguese"),
    ("What is the boiling point of water in Celsius?", "100"),
    ("What is frozen water called?", r"\bice\b"),
    ("How many legs does a spider have?", r"eight|\b8\b"),
    ("What is the chemical symbol of gold?", r"\bau\b"),
    ("What gas do plants absorb from the air?", "carbon dioxide|co2"),
    ("Translate 'thank you' into French.", "merci"),
    ("Translate 'hello' into Spanish.", "hola"),
    ("What is the past tense of 'go'?", "went"),
    ("Which ocean is the largest?", "pacific"),
    ("What do you use to write on a blackboard?", "chalk"),
    ("What is the name of the fairy tale girl with a red hood?", "riding hood"),
    ("Which season comes after winter?", "spring"),
    ("What organ pumps blood through the body?", "heart"),
)
SETTINGS: dict[str, Any] = {"temperature": 0.2, "repetition_penalty": 1.1, "max_tokens": 60}


def right_answers(model: edgedb.Model, seeds: int) -> list[int]:
    """For every question, how many of the seeds gave a right answer."""
    counts = []
    for question, expected in QUESTIONS:
        messages = [{"role": "user", "content": question}]
        answers = (model.chat(messages, seed=seed, **SETTINGS) for seed in range(1, seeds + 1))
        counts.append(sum(bool(re.search(expected, a.text, re.IGNORECASE)) for a in answers))
    return counts


def main() -> None:
    """One line for each model: right answers, and the questions that no seed answered."""
    parser = argparse.ArgumentParser(description="Ask short questions of general knowledge.")
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    for path in args.models:
        counts = right_answers(edgedb.load(path), args.seeds)
        total = args.seeds * len(QUESTIONS)
        print(f"{path.name}: {sum(counts)} of {total} answers are right", flush=True)
        for (question, _), count in zip(QUESTIONS, counts, strict=True):
            if not count:
                print(f"  never: {question}")


if __name__ == "__main__":
    main()
