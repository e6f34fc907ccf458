"""Every public argument with values that it cannot have: one error that names it, at once."""

from __future__ import annotations

import inspect
import math
import tracemalloc
import warnings
from collections.abc import Callable
from dataclasses import fields
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import edgedb
from edgedb import EdgeDBError, SamplingParams, arguments, ops
from edgedb.choose.sampling import Sampler
from edgedb.measure import benchmark
from edgedb.measure.choices import Question, multiple_choice
from edgedb.measure.evaluate import perplexity
from edgedb.run.session import Session

WEIRD = [
    *(None, True, False, 0, 1, -1, 2.5, 10**9, 2**70, -(10**5000), 1e300, math.nan, math.inf),
    *("", "x", "\x1b[31m\n", "\ud800", b"abc", b"", bytearray(3), memoryview(b"ab"), object()),
    *((), [], {}, set(), [1], [2.5], ["a"], [b"a"], [None], [True], [[1]], [""], ["a", 5], [2**70]),
    *({1: 2.0}, {2**70: 1.0}, {-1: 1.0}, {"a": 1.0}, {1: math.nan}, {1: "x"}, {None: None}),
    *(np.int64(3), np.float32(0.5), np.bool_(True), np.array(2), np.array([1, 2])),
    *(np.array([0.5]), np.array([[1]]), np.array([2**63 - 1]), np.array(["a"]), Fraction(1, 3)),
    *(len, int, range(3), range(400), iter([1]), lambda *_: None, 3j, SamplingParams(), "\0", "/"),
]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> edgedb.Model:
    return edgedb.load(tiny_model, backend="numpy", context=64)


def refused(name: str, call: Callable[[], object], match: str = "expected") -> None:
    with pytest.raises(EdgeDBError, match=match) as error:
        call()
    assert name in str(error.value) and len(str(error.value)) < 300, str(error.value)


def attempt(name: str, value: object, call: Callable[[], object]) -> None:
    """``call`` works or refuses ``value`` in one line that names the argument."""
    try:
        call()
    except EdgeDBError as error:
        known = ["vocabulary", "empty", "no token", "context", "lone surrogate", "file", "fewer"]
        known += ["do not fit", "choices"]
        named = name in str(error) or any(word in str(error) for word in known)
        assert named and "\n" not in str(error), (name, value, str(error))


OPTIONS = [
    *(p for p in inspect.signature(Session.stream).parameters if p not in ("self", "sampling")),
    *(field.name for field in fields(SamplingParams)),
]


@pytest.mark.parametrize("name", [*OPTIONS, "n", "stream"])
def test_options_of_an_answer(model: edgedb.Model, name: str) -> None:
    if name in ("json_schema", "regex", "grammar"):
        pytest.importorskip("llguidance")
    for value in WEIRD:
        given: dict[str, Any] = {"prompt": "Hi", "max_tokens": 2, name: value}

        def answer(given: dict[str, Any] = given) -> None:
            found = model.generate(**given)
            if given.get("stream") or given["max_tokens"] is None:
                for _ in zip(found, range(3), strict=False):
                    pass

        if name == "max_tokens" and (value is None or (type(value) is int and value > 9)):
            continue  # valid, and long
        if name == "n" and type(value) is int and value > 9:
            continue
        if name in ("processors", "progress", "cancelled") and callable(value):
            continue  # what they do is the caller's
        attempt(name, value, answer)


def test_options_that_were_seen_to_go_wrong(model: edgedb.Model) -> None:
    for name, value in (
        ("max_tokens", 2.5),
        ("max_tokens", True),
        ("stop", 5),
        ("stop", ["a", 5]),
        ("stop", b"a"),
        ("stop_ids", "12"),
        ("stop_ids", [1.5]),
        ("logprobs", 2.5),
        ("prompt_lookup", 1.5),
        ("progress", 5),
        ("cancelled", True),
        ("processors", [5]),
        ("params", {"temperature": 1}),
        ("n", 2.5),
        ("n", True),
        ("stream", 1),
        ("logit_bias", {2**70: 1.0}),
        ("logit_bias", {1: None}),
        ("top_k", 2.5),
        ("seed", 1e3),
    ):
        refused(name, lambda name=name, value=value: model.generate("Hi", **{name: value}))  # type: ignore[misc]
    for name, value in (("stop_ids", [320]), ("logit_bias", {320: 1.0})):
        call = lambda name=name, value=value: model.stream("Hi", **{name: value})  # type: ignore[misc]  # noqa: E731
        refused(name, call, "token 320 is not in the vocabulary of 320")
    with pytest.raises(TypeError, match="max_token"):
        model.generate("Hi", max_token=5)


def test_none_is_the_default(model: edgedb.Model) -> None:
    names = [name for name in OPTIONS if name not in vars(SamplingParams()) and name != "prompt"]
    nothing = dict.fromkeys([*names, "max_tokens", "n"])
    answer = model.generate("Hi", **{**nothing, "max_tokens": 3}, temperature=0)
    assert answer.tokens == model.generate("Hi", max_tokens=3, temperature=0).tokens


def test_integers_of_numpy_are_integers(model: edgedb.Model) -> None:
    options = {"max_tokens": 3, "top_k": 5, "seed": 7, "logprobs": 2, "n": 2}
    plain = model.generate([1, 2, 3], **options, stop_ids=[5], logit_bias={7: 1.0})
    same = model.generate(
        np.array([1, 2, 3], np.uint16),
        **{name: np.int32(value) for name, value in options.items()},
        stop_ids=np.array([5]),
        logit_bias={np.int64(7): np.float32(1)},
        temperature=np.float64(0.7),
    )
    assert [answer.tokens for answer in same] == [answer.tokens for answer in plain]
    assert type(SamplingParams(top_k=np.int64(3)).top_k) is int
    assert type(SamplingParams(temperature=1).temperature) is float


@pytest.mark.parametrize(
    "prompt", [b"abc", bytearray(b"a"), memoryview(b"a"), 5, None, {1: 2}, [1.5], [True], ["a"]]
)
def test_what_is_no_prompt(model: edgedb.Model, prompt: Any) -> None:
    session = model.session()
    for call in (model.generate, model.stream, session.generate, session.stream):
        refused("prompt", lambda call=call: call(prompt))  # type: ignore[misc]
    for call in (model.detokenize, model.logits, session.prefill, session.logits_of):
        refused("ids", lambda call=call: call(prompt))  # type: ignore[misc]
    assert session.position == 0


def test_ids_outside_the_vocabulary(model: edgedb.Model) -> None:
    for ids in ([0, 320], [-1], [2**70], np.array([2**40])):
        for call in (model.generate, model.detokenize, model.logits, model.session().prefill):
            refused("token id from 0 to 319", lambda call=call, ids=ids: call(ids))  # type: ignore[misc]
    refused("prompt[1] = 320", lambda: model.generate([0, 320]))


def test_unknown_ids_take_no_memory(model: edgedb.Model) -> None:
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    assert model.tokenizer.decode(range(10**6, 10**6 + 200_000)) == ""
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 100_000


@pytest.mark.parametrize(
    "name", ["threads", "isa", "context", "kv_dtype", "head", "cache_tokens", "verify", "memory"]
)
def test_options_of_load(tiny_model: Path, name: str) -> None:
    for value in WEIRD:
        options: dict[str, Any] = {"backend": "numpy", name: value}
        attempt(name.replace("isa", ""), value, lambda o=options: edgedb.load(tiny_model, **o))  # type: ignore[misc]
    for value in WEIRD:
        backend: Any = value
        attempt("backend", value, lambda b=backend: ops.create(b))  # type: ignore[misc]


def test_options_of_load_that_were_seen_to_go_wrong(tiny_model: Path) -> None:
    for name, value in (
        ("context", 0),
        ("context", True),
        ("context", 1.5),
        ("threads", 1.5),
        ("threads", 0),
        ("kv_dtype", ["float16"]),
        ("head", 1),
        ("cache_tokens", 255),
        ("verify", "yes"),
        ("memory", "disk"),
        ("backend", "cuda"),
        ("backend", ["numpy"]),
    ):
        given: dict[str, Any] = {"backend": "numpy", name: value}
        refused(name, lambda given=given: edgedb.load(tiny_model, **given))  # type: ignore[misc]
    for path in (5, None, b"a.dbb", "a\0b", [tiny_model]):
        refused("path", lambda path=path: edgedb.load(path))  # type: ignore[misc, arg-type]


def test_the_environment_is_checked_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in (
        ("EDGEDB_THREADS", "many"),
        ("EDGEDB_THREADS", "0"),
        ("EDGEDB_THREADS", "2.5"),
        ("EDGEDB_BACKEND", "cuda"),
    ):
        with monkeypatch.context() as patch:
            patch.setenv("EDGEDB_BACKEND", "numpy")
            patch.setenv(variable, value)
            refused(f"{variable} = ", ops.create)
    monkeypatch.setenv("EDGEDB_BACKEND", "numpy")
    monkeypatch.setenv("EDGEDB_THREADS", " 2 ")
    ops.create()


def test_calls_of_a_model_and_a_session(model: edgedb.Model, tmp_path: Path) -> None:
    session = model.session()
    session.prefill([1, 2, 3])
    sampler = Sampler(SamplingParams())
    calls: dict[str, Callable[[Any], object]] = {
        "text": model.tokenize,
        "add_bos": lambda value: model.tokenize("a", add_bos=value),
        "texts": model.embed,
        "ids": lambda value: model.session().prefill(value),
        "progress": lambda value: model.session().prefill([1], progress=value),
        "cancelled": lambda value: model.session().prefill([1], cancelled=value),
        "sampler": lambda value: session.fork().decode(value),
        "position": lambda value: session.fork().rewind(value),
        "path": lambda value: model.load_session(value),
        "window": lambda value: perplexity(model, "Once upon a time", window=value),
        "max_windows": lambda value: perplexity(model, "Once", max_windows=value),
        "repetitions": lambda value: _bench(model, repetitions=value),
        "prompt": lambda value: _bench(model, prompt=value),
        "decode": lambda value: _bench(model, decode=value),
        "threads": lambda value: _bench(model, threads=[value]),
        "contexts": lambda value: Question(value, ("a", "b"), 0),
        "choices": lambda value: Question(("a", "b"), value, 0),
        "gold": lambda value: Question(("a", "b"), ("a", "b"), value),
    }
    for name, call in calls.items():
        for value in WEIRD:
            if name == "repetitions" and type(value) is int and value > 9:
                continue
            if name in ("progress", "cancelled") and callable(value):
                continue
            attempt(name, value, lambda call=call, value=value: call(value))  # type: ignore[misc]
    session.decode(sampler)
    refused("path", lambda: session.save(5))  # type: ignore[arg-type]
    refused("path", lambda: session.save("a\0b"))
    refused("questions", lambda: multiple_choice(model, []), "no questions")
    for extra in ({"a": math.nan}, {"a": object()}, _nested(1000), _nested(100_000)):
        session.extra = extra
        refused("extra", lambda: session.save(tmp_path / "s"), "extra")


def _bench(model: edgedb.Model, **options: Any) -> None:
    given = {"prompt": [2], "decode": [], "repetitions": 1, "backend": "numpy", **options}
    benchmark.run(model.file.path, **given)


def _nested(depth: int) -> Any:
    value: Any = {}
    for _ in range(depth):
        value = {"a": value}
    return value


NUMBERS = st.sampled_from([0, 1e-30, 1e-9, 0.3, 1, 1.0, 64, 1e9, 1e30, 2**31, 2**70]) | st.floats()
VALUES = st.fixed_dictionaries(
    {},
    optional={
        **{f.name: NUMBERS for f in fields(SamplingParams) if f.name not in ("dry_breakers",)},
        "mirostat": st.sampled_from([0, 2]),
        "logit_bias": st.dictionaries(st.integers(0, 9), NUMBERS | NUMBERS.map(lambda x: -x)),
    },
)


@given(VALUES)
@settings(max_examples=300)
@example({"repetition_penalty": 1e-30, "logit_bias": {0: 1e30}})
@example({"frequency_penalty": -1e30, "presence_penalty": 1e30, "logit_bias": {0: -math.inf}})
@example({"temperature": 5e-324, "top_k": 2**70, "repetition_window": 2**70})
@example({"dry_multiplier": 1e-30, "dry_base": 1e30, "dry_allowed_length": 2**70})
@example({"mirostat": 2, "mirostat_tau": 1e30, "mirostat_eta": 1, "temperature": 1e30})
def test_what_is_accepted_can_be_sampled(values: dict[str, Any]) -> None:
    try:
        params = SamplingParams(**values)
    except EdgeDBError:
        return
    logits = np.linspace(-20, 20, 10, dtype=np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sampler = Sampler(params)
        history = [1, 2, 3, 1, 2, 3, 1, 2]
        try:
            for _ in range(3):
                history.append(sampler.sample(logits, history))
        except EdgeDBError as error:
            assert "no token is left" in str(error) and -math.inf in params.logit_bias.values()


def test_rules_say_what_is_expected() -> None:
    for rule, value, expected in (
        (arguments.whole(), -1, "x = -1: expected a whole number of at least 0"),
        (arguments.whole(1, 5), 6, "x = 6: expected a whole number from 1 to 5"),
        (arguments.number(0, 1), "1", "x = '1': expected a number from 0 to 1"),
        (arguments.number(also=-math.inf), math.inf, "x = inf: expected .* to 1e.30 or -inf"),
        (arguments.choice("a", "b", "c"), "d", "x = 'd': expected a, b or c"),
        (arguments.choice(0, 2), False, "x = False: expected 0 or 2"),
        (arguments.each(arguments.words, "texts"), ["a", ""], r"x\[1\] = '': expected a text that"),
        (arguments.token_ids(9), [1, 9], r"x\[1\] = 9: expected a token id from 0 to 8"),
        (arguments.text, b"\x00" * 10**6, "x = b'.{70,80}': expected a text"),
        (arguments.path, 5, "x = 5: expected the path of a file"),
        (arguments.flag, 1, "x = 1: expected True or False"),
        (arguments.function, 1, "x = 1: expected a function"),
    ):
        with pytest.raises(EdgeDBError, match=f"^{expected}"):
            rule("x", value)
