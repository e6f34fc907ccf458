"""How long Ctrl-C takes to stop a chat: while it reads a long prompt, and while it answers.

    python bench/interrupt.py MODEL [TIMES]

Drives ``edgedb chat`` through a pseudo-terminal and measures from the key to the line that says
that it stopped.
"""

from __future__ import annotations

import os
import random
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from terminal import Terminal

READY = r"\x1b\[\?2004h"
OPTIONS = ["--no-history", "--temperature", "0.2", "--seed", "1"]


def main(model: str, times: int) -> None:
    command = [sys.executable, "-m", "edgedb", "chat", model, *OPTIONS]
    with Terminal(command, os.environ, timeout=60) as chat:
        chat.expect(r"for\s+commands")
        chat.expect(READY)
        for what, interrupt in (("reading", read), ("answering", answer)):
            measured = sorted(interrupt(chat) * 1000 for _ in range(times))
            print(
                f"{what}: median {statistics.median(measured):.0f} ms, "
                f"longest {measured[-1]:.0f} ms of {times}"
            )
        chat.send("/exit\r")
        chat.finish()


def read(chat: Terminal) -> float:
    # The number at the front keeps the cache from knowing the rest.
    text = f"{random.random()} " + "Every prompt is read in batches of tokens. " * 600
    chat.send(f"\x1b[200~{text}\x1b[201~")
    time.sleep(1)  # the line editor draws it
    chat.send("\r")
    chat.expect(r"of [\d,]+ tokens read")
    return press(chat)


def answer(chat: Terminal) -> float:
    chat.send("Write a long story about a fox and a bear, please.\r")
    chat.expect("please")
    time.sleep(1)
    return press(chat)


def press(chat: Terminal) -> float:
    time.sleep(random.random() / 2)
    chat.skip()
    started = time.monotonic()
    chat.send("\x03")
    chat.expect(r"\(stopped")
    seconds = time.monotonic() - started
    chat.expect(READY)
    chat.send("/clear\r")
    chat.expect("anew")
    chat.expect(READY)
    return seconds


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 10)
