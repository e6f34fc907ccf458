"""A server under mixed load for a while: nothing may leak, no answer may be wrong.

    python tests/soak.py [--seconds 120] [--clients 12] [--model FILE] [--seed 0]

Clients that begin anew again and again ask for chats, completions, calls of tools, vectors; leave
in the middle, read slowly, send garbage. Every answer is compared with what the model answers by
itself. At the end, with nobody there: no open request, no page held, as many descriptors as at the
beginning, no more memory than after a quarter of the time. Exit 1 if any of that is not so.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
from conftest import CHATML, _write_tiny
from tiny_tokenizers import byte_level_bpe

import edgedb
from edgedb.serve.asked import answered
from edgedb.serve.chat import read_chat
from edgedb.serve.completions import read_completion
from edgedb.serve.embeddings import read_embeddings
from edgedb.serve.served import Served
from edgedb.text.spec import TokenizerSpec

CHAT, COMPLETION, EMBEDDING = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
READ = {CHAT: read_chat, COMPLETION: read_completion, EMBEDDING: read_embeddings}
WORDS = "the sea is calm and a small boat goes home before night while birds sleep"
CITY = {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {**CITY, "required": ["city"], "additionalProperties": False},
    },
}
CONTEXT, CACHE_TOKENS = 4096, 16384
MAX_GROWTH = 0.05  # of memory, from a quarter of the time to the end
SPARE_BYTES = 16 << 20


def write_model(path: Path) -> Path:
    """The tiny model of the tests."""
    special = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    spec = TokenizerSpec("tokenizers", byte_level_bpe(), 1, (2,), False, CHATML, special)
    _write_tiny(path, spec, 8192)
    return path


def requests(draw: random.Random) -> list[tuple[str, dict[str, Any]]]:
    """Routes and bodies of which the answer is known beforehand."""

    def text(n: int) -> str:
        return " ".join(draw.choices(WORDS.split(), k=n))

    found: list[tuple[str, dict[str, Any]]] = []
    system = {"role": "system", "content": text(150)}  # that many share
    for number in range(30):
        size = draw.choice([3, 20, 120, 400])
        messages: list[Any] = [{"role": "user", "content": text(size)}]
        if number % 2:
            messages.insert(0, system)
        body = {"messages": messages, "seed": number, "max_tokens": draw.choice([1, 8, 40, 120])}
        if number % 5 == 0:
            body |= {"n": 2, "logprobs": True, "top_logprobs": 3}
        if number % 7 == 0:
            body |= {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False}
        found.append((CHAT, body))
    for number in range(6):
        prompt: Any = [text(5), text(90)] if number % 2 else text(300)
        found.append((COMPLETION, {"prompt": prompt, "seed": number, "max_tokens": 30}))
        found.append((EMBEDDING, {"input": [text(9), text(80)]}))
    return found


def essence(document: Any) -> Any:
    """What of an answer depends on the request alone."""
    if "choices" not in document:
        return [one["embedding"] for one in document["data"]]
    found = []
    for choice in document["choices"]:
        message = choice.get("message") or {"content": choice.get("text")}
        calls = [call["function"] for call in message.get("tool_calls") or ()]
        found.append((message["content"], calls, choice["logprobs"], choice["finish_reason"]))
    return json.loads(json.dumps(found))


class Soak:
    """The server, what it should answer, and what it did."""

    def __init__(self, model: Path, port: int, seed: int) -> None:
        self.port, self.address = port, f"http://127.0.0.1:{port}"
        loaded = edgedb.load(model, context=CONTEXT, threads=1)
        served = Served(loaded)
        self.known = []
        for route, body in requests(random.Random(seed)):
            asked, reply = READ[route](served, body)
            self.known.append((route, body, essence(answered(served, asked, reply))))
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []
        self.stop = threading.Event()

    def fault(self, text: str) -> None:
        self.faults.append(text)
        print(f"FAULT: {text}", flush=True)

    def seen(self, status: int, what: str) -> bool:
        """Count an answer; whether it is one."""
        self.counts[f"{what} {status}"] += 1
        if status == 429:
            self.stop.wait(0.1)
        if status >= 500 and status != 503:
            self.fault(f"{what}: {status}")
        return status == 200

    def whole(self, client: httpx.Client, draw: random.Random) -> None:
        route, body, expected = draw.choice(self.known)
        answer = client.post(route, json=body)
        if self.seen(answer.status_code, "whole") and essence(answer.json()) != expected:
            self.fault(f"another answer to {json.dumps(body)[:300]}")

    def stream(self, client: httpx.Client, draw: random.Random, leaves: bool = False) -> None:
        _, body, expected = draw.choice([one for one in self.known if one[0] == CHAT])
        most = draw.randrange(1, 30) if leaves else None
        texts: dict[int, str] = {}
        with client.stream("POST", CHAT, json={**body, "stream": True}) as answer:
            if not self.seen(answer.status_code, "leaves" if leaves else "stream"):
                return
            for number, line in enumerate(answer.iter_lines()):
                if number == most:
                    return
                _note(line, texts)
        if texts != {i: one[0] or "" for i, one in enumerate(expected)}:
            self.fault(f"another stream for {json.dumps(body)[:300]}")

    def leaves(self, client: httpx.Client, draw: random.Random) -> None:
        self.stream(client, draw, leaves=True)

    def raw(self, client: httpx.Client, draw: random.Random) -> None:
        """By a socket: leaves at once, in its body, or reads very slowly."""
        _, body, expected = draw.choice([one for one in self.known if one[0] == CHAT])
        data = json.dumps({**body, "stream": True}).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(data)}\r\nConnection: close\r\n\r\n"
        manner = draw.choice(["at once", "in its body", "slow"])
        with socket.create_connection(("127.0.0.1", self.port), 60) as sock:
            sent = head.encode() + data
            sock.sendall(sent[: len(sent) // 2] if manner == "in its body" else sent)
            self.counts[f"socket: {manner}"] += 1
            if manner != "slow":
                return
            received = b""
            while part := sock.recv(700):
                received += part
                time.sleep(0.01)
        status = int(received.split(b" ", 2)[1])
        if self.seen(status, "slow"):
            texts: dict[int, str] = {}
            for line in re.sub(rb"\r\n[0-9a-f]+\r\n", b"", received).decode().splitlines():
                _note(line, texts)
            if texts != {i: one[0] or "" for i, one in enumerate(expected)}:
                self.fault(f"a slow reader got another stream for {json.dumps(body)[:300]}")

    def garbage(self, client: httpx.Client, draw: random.Random) -> None:
        kind = draw.randrange(6)
        route, body, _ = draw.choice(self.known)
        data = json.dumps(body).encode()
        headers = {"content-type": "application/json"}
        if kind == 0:
            data = draw.randbytes(draw.randrange(2000))
        elif kind == 1:
            data = data[: draw.randrange(len(data))]
        elif kind == 2:
            changed = {**body, draw.choice(list(body)): draw.choice(_WRONG)}
            data = json.dumps(changed).encode()
        elif kind == 3:
            route = draw.choice(["/v1", "/v1/models/../x", "/api/chat", "/tokenize", "/detokenize"])
        elif kind == 4:
            headers = {"content-type": draw.choice(["text/plain", "image/png", ""])}
        else:
            return self._no_http(draw)
        status = client.post(route, content=data, headers=headers).status_code
        self.seen(status, "garbage")

    def _no_http(self, draw: random.Random) -> None:
        with socket.create_connection(("127.0.0.1", self.port), 60) as sock:
            sock.sendall(draw.choice([b"\x16\x03\x01", b"GET\r\n\r\n", draw.randbytes(300)]))
            self.counts["no HTTP"] += 1

    def client(self, number: int) -> None:
        """One client after the other, until the end."""
        draw = random.Random(number)
        acts = [self.whole] * 4 + [self.stream] * 3 + [self.leaves, self.raw, self.garbage] * 2
        while not self.stop.is_set():
            self.counts["clients"] += 1
            with httpx.Client(base_url=self.address, timeout=120, verify=False) as client:
                for _ in range(draw.randrange(1, 40)):
                    if self.stop.is_set():
                        return
                    try:
                        draw.choice(acts)(client, draw)
                    except Exception as error:
                        self.fault(f"{type(error).__name__}: {error}")


_WRONG = [None, -1, 1e400, "x", [], {}, [{}], {"type": 5}, True, "\ud800", 1 << 70]


def _note(line: str, texts: dict[int, str]) -> None:
    """Add what an event says to the texts of its answers."""
    if not line.startswith("data: {"):
        return
    for choice in json.loads(line.removeprefix("data: ")).get("choices", ()):
        said = choice["delta"].get("content") or ""
        texts[choice["index"]] = texts.get(choice["index"], "") + said


def memory_bytes(pid: int) -> int:
    pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def metrics(address: str) -> dict[str, float]:
    text = httpx.get(address + "/metrics", timeout=30, verify=False).text
    lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}


def serve(model: Path, port: int) -> subprocess.Popen[bytes]:
    options = f"--port {port} --context {CONTEXT} --cache-tokens {CACHE_TOKENS} --threads 1"
    more = "--parallel 6 --max-queue 8 --timeout 60"
    command = [sys.executable, "-m", "edgedb", "serve", str(model), *options.split(), *more.split()]
    return subprocess.Popen(command)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def main() -> int:
    """Run it and say what was seen."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = args.model or write_model(Path(folder) / "tiny.dbb")
        port = free_port()
        server = serve(model, port)
        try:
            return watch(Soak(model, port, args.seed), server, args.seconds, args.clients)
        finally:
            if server.poll() is None:
                server.kill()
                server.wait()


def watch(soak: Soak, server: subprocess.Popen[bytes], seconds: float, clients: int) -> int:
    """Let the clients loose, then look at what is left."""
    pid = server.pid
    while True:
        try:
            if httpx.get(soak.address + "/health", verify=False).status_code == 200:
                break
        except httpx.TransportError:
            time.sleep(0.1)
    descriptors = len(os.listdir(f"/proc/{pid}/fd"))
    threads = [threading.Thread(target=soak.client, args=(n,)) for n in range(clients)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    early, slowest = 0, 0.0
    while (now := time.monotonic() - began) < seconds:
        asked = time.perf_counter()
        httpx.get(soak.address + "/health", timeout=60, verify=False)
        slowest = max(slowest, time.perf_counter() - asked)
        if now < seconds / 4:
            early = max(early, memory_bytes(pid))
        time.sleep(0.2)
    late = memory_bytes(pid)
    soak.stop.set()
    for thread in threads:
        thread.join()
    time.sleep(1)
    left = metrics(soak.address)
    for name in ("edgedb_open", "edgedb_running", "edgedb_waiting", "edgedb_held_pages"):
        if left[name]:
            soak.fault(f"{name} is {left[name]:g} with nobody there")
    after = len(os.listdir(f"/proc/{pid}/fd"))
    if after > descriptors + 2:  # one is the connection that asked for the metrics
        soak.fault(f"{after} descriptors are open; they were {descriptors}")
    if late > early * (1 + MAX_GROWTH) + SPARE_BYTES:
        soak.fault(f"memory grew from {early >> 20} to {late >> 20} MiB")
    server.send_signal(signal.SIGTERM)
    if (status := server.wait(30)) != 0:
        soak.fault(f"the server ended with {status}")
    for name, count in sorted(soak.counts.items()):
        print(f"  {name:24} {count:8}")
    print(f"memory {early >> 20} -> {late >> 20} MiB, descriptors {descriptors} -> {after}")
    print(f"slowest /health {1000 * slowest:.0f} ms; faults: {len(soak.faults)}")
    return 1 if soak.faults else 0


if __name__ == "__main__":
    sys.exit(main())
