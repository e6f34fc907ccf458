"""Changes to bytes, numbers, texts and JSON. All chance comes from the ``Random`` that is given."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any

NUMBERS: tuple[Any, ...] = (
    0, 1, -1, 2, 3, 7, 63, 64, 65, 127, 128, 255, 256, 1023, 4096, 65535, 65536, 1 << 20,
    (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 40, (1 << 63) - 1, 1 << 63,
    (1 << 64) - 1, 1 << 64, 10**30, 10**400, -(1 << 31), -(1 << 63),
    0.5, -0.0, 1e-9, 1e-38, 1e-320, 1e38, 1e300, 1.5,
)  # fmt: skip
TEXTS = (
    "", " ", "\n", "\0", "a", "\x1b[31m", "[/x]", "[bold]", "../../etc/passwd", "/", "x" * 300,
    "é", "\u65e5\u672c", "\u2581", "\U0001f600", "\u202e", "\ufeff", "\ud800", "%s%n", "{}",
    "{{ 1 }}", "null", "-1", "1e5", "<0x41>", "<|im_end|>", "<s>", "a\r\nb", "float16", "0" * 70,
)  # fmt: skip
OTHERS: tuple[Any, ...] = (None, True, False, [], {}, [[]], [None], {"a": 1}, {"": ""}, [0] * 100)


def _copied(document: Any) -> Any:
    return json.loads(json.dumps(document))


def number(rng: Random) -> Any:
    """A number that readers tend to mishandle, or a small one."""
    return rng.choice(NUMBERS) if rng.random() < 0.7 else rng.randrange(-3, 400)


def value(rng: Random) -> Any:
    """Any JSON value."""
    kind = rng.randrange(6)
    if kind < 2:
        return number(rng)
    if kind < 4:
        return rng.choice(TEXTS)
    return _copied(rng.choice(OTHERS)) if kind == 4 else nested(rng)


def nested(rng: Random) -> Any:
    """Lists or objects inside each other; ``dumps`` makes deeper ones."""
    depth = rng.choice((2, 10, 130))
    result: Any = 1
    for _ in range(depth):
        result = [result] if rng.random() < 0.5 else {"a": result}
    return result


def text(rng: Random, original: str) -> str:
    """``original`` with a piece removed, doubled, replaced or moved."""
    if not original or rng.random() < 0.1:
        return rng.choice(TEXTS)
    begin, end = sorted(rng.randrange(len(original) + 1) for _ in range(2))
    if rng.random() < 0.7:
        end = min(end, begin + rng.choice((1, 2, 8, 40)))
    piece = original[begin:end]
    replacement = rng.choice(
        (
            "",
            piece * 2,
            piece * rng.choice((3, 50)),
            rng.choice(TEXTS),
            piece[::-1],
            str(number(rng)),
        )
    )
    return original[:begin] + replacement + original[end:]


def data(rng: Random, original: bytes) -> bytes:
    """``original`` with bits flipped, bytes replaced, a piece cut, doubled or overwritten."""
    result = bytearray(original)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        at = rng.randrange(len(result) + 1)
        size = rng.choice((1, 1, 2, 4, 8, 64, 1024))
        way = rng.randrange(7)
        if way == 0 and at < len(result):
            result[at] ^= 1 << rng.randrange(8)
        elif way == 1:
            result[at : at + size] = rng.randbytes(min(size, 8))
        elif way == 2:
            del result[at : at + size]
        elif way == 3:
            result[at:at] = result[at : at + size]
        elif way == 4:
            width = rng.choice((1, 2, 4, 8))
            whole = int(min(max(number(rng), -(1 << 63)), 1 << 63)) % (1 << 8 * width)
            result[at : at + width] = whole.to_bytes(width, "little")
        elif way == 5:
            result[at : at + size] = rng.choice((b"\0", b"\xff", b"\x80", b'"', b"{", b"[")) * size
        elif rng.random() < 0.3:
            del result[at:]
    return bytes(result)


def document(rng: Random, original: Any, changes: int | None = None) -> Any:
    """A copy of a JSON document with some of its values, keys or items changed."""
    result = _copied(original)
    for _ in range(changes or rng.choice((1, 1, 1, 2, 3, 8))):
        result = _change(rng, result)
    return result


def _change(rng: Random, root: Any) -> Any:
    """Change one node: walk down from the root and stop by chance, or at a leaf."""
    parent: Any = None
    key: Any = None
    node = root
    while isinstance(node, (dict, list)) and node and (parent is None or rng.random() < 0.8):
        parent = node
        key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
        node = node[key]
    if parent is None:
        return value(rng)
    _WAYS[rng.randrange(len(_WAYS))](rng, parent, key, node)
    return root


def _replace(rng: Random, parent: Any, key: Any, node: Any) -> None:
    if isinstance(node, str) and rng.random() < 0.6:
        parent[key] = text(rng, node)
    elif type(node) in (int, float) and rng.random() < 0.8:
        parent[key] = rng.choice((number(rng), node + 1, node - 1, node * 2, -node, str(node)))
    elif type(node) is bool and rng.random() < 0.8:
        parent[key] = not node
    else:
        parent[key] = value(rng)


def _remove(rng: Random, parent: Any, key: Any, node: Any) -> None:
    del parent[key]


def _add(rng: Random, parent: Any, key: Any, node: Any) -> None:
    if isinstance(parent, list):
        parent.insert(key, _copied(node) if rng.random() < 0.6 else value(rng))
    else:
        parent[text(rng, str(key))] = _copied(node)


def _multiply(rng: Random, parent: Any, key: Any, node: Any) -> None:
    if isinstance(parent, list):
        parent[key : key + 1] = [_copied(node) for _ in range(rng.choice((2, 10, 100)))]
    elif isinstance(node, list):
        parent[key] = (node * 100)[: rng.choice((0, 10, 1000))]
    else:
        parent[key] = [node]


def _swap(rng: Random, parent: Any, key: Any, node: Any) -> None:
    keys = list(parent) if isinstance(parent, dict) else list(range(len(parent)))
    other = rng.choice(keys)
    parent[key], parent[other] = parent[other], parent[key]


_WAYS: tuple[Callable[[Random, Any, Any, Any], None], ...] = (
    _replace, _replace, _replace, _replace, _remove, _add, _multiply, _swap,
)  # fmt: skip


def dumps(rng: Random, document: Any) -> str:
    """JSON text of a document; now and then no longer JSON, or with a key twice."""
    written = json.dumps(document, ensure_ascii=rng.random() < 0.5)
    chance = rng.random()
    if chance < 0.03:
        return text(rng, written)
    if chance < 0.05 and written.startswith("{") and len(written) > 2:
        return written[:-1] + "," + written[1:]
    if chance < 0.06:
        deep = rng.choice((200, 1500, 100_000))
        return written.replace("1", rng.choice(("[" * deep + "]" * deep, '{"a":' * deep)), 1)
    if chance < 0.07:
        return written.replace("1", rng.choice(("NaN", "Infinity", "1e999", "01")), 1)
    return written


def encoded(written: str) -> bytes:
    """UTF-8, where lone surrogates become the bytes that no decoder takes."""
    return written.encode("utf-8", "surrogatepass")
