"""The conversation by itself: its turns, its context, its measurements."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from places import ROOT

import edgedb
from edgedb import ContextFullError, EdgeDBError
from edgedb.chat import ChatOptions, Conversation, reports
from edgedb.choose.sampling import SamplingParams

DEFAULT = ROOT / "models" / "smollm2-135m-instruct-mixed.dbb"
SYSTEM = {"role": "system", "content": "Be brief."}
PARAMS = SamplingParams(temperature=1.5, seed=2)


def say(conversation: Conversation, text: str) -> str:
    return "".join(chunk.text for chunk in conversation.answer(text))


@pytest.fixture
def conversation(tiny_model: Path) -> Conversation:
    model = edgedb.load(tiny_model, backend="numpy", context=200)
    return Conversation(model, ChatOptions(PARAMS, max_tokens=8, system="Be brief."))


def test_the_greeting_says_what_the_default_model_is(conversation: Conversation) -> None:
    assert len(reports.banner(conversation)) == 1
    default = Conversation(edgedb.load(DEFAULT, backend="numpy"), ChatOptions())
    _, remark = reports.banner(default)
    assert "three bits" in remark and "often wrong" in remark
    first_screen = (DEFAULT.parent.parent / "README.md").read_text(encoding="utf-8")[:2500]
    assert f"\n{remark}\n" in first_screen and "<sub>" not in first_screen.partition(remark)[0]


def test_turns_follow_each_other(conversation: Conversation) -> None:
    said = say(conversation, "Hi")
    assert [m["role"] for m in conversation.messages] == ["system", "user", "assistant"]
    assert conversation.messages[-1]["content"].lstrip() == said
    conversation.clear()
    assert conversation.messages == [SYSTEM]


def test_an_answer_goes_on_where_it_stopped(conversation: Conversation) -> None:
    options = replace(conversation.options, params=replace(PARAMS, temperature=0), max_tokens=4)
    whole = Conversation(conversation.model, replace(options, max_tokens=8))
    expected = say(whole, "Hi")
    conversation.options = options
    begun = say(conversation, "Hi")
    n_read = conversation.session.position
    more = "".join(chunk.text for chunk in conversation.answer(conversation.go_on()))
    assert begun + more == expected and conversation.messages[-1]["content"] == expected
    assert len(conversation.messages) == 3 and conversation.session.position > n_read
    assert conversation.turns[-1].stats.read_tokens <= 1
    (last,) = conversation.answer(conversation.go_on(), cancelled=lambda: True)
    assert conversation.kept and conversation.messages[-1]["content"] == expected
    assert conversation.remark(replace(last, finish_reason="stop")) == "nothing was added"


def test_a_template_gets_the_variables_of_the_chat(
    conversation: Conversation, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = replace(conversation.model.tokenizer_spec, chat_template="{{ messages|length }}{{ x }}")
    monkeypatch.setattr(edgedb.Model, "tokenizer_spec", property(lambda model: spec))
    conversation.options = replace(conversation.options, chat_template_kwargs={"x": "yes"})
    assert conversation.ask("Hi").ids == conversation.model.tokenize("2yes")
    with pytest.raises(EdgeDBError, match="tools is an option of its own"):
        replace(conversation.options, chat_template_kwargs={"tools": []})


def test_a_stopped_answer_stays_as_far_as_it_came(conversation: Conversation) -> None:
    said: list[str] = []
    for chunk in conversation.answer("Hi", cancelled=lambda: len("".join(said)) > 2):
        said.append(chunk.text)
    assert chunk.finish_reason == "cancelled"
    assert conversation.remark(chunk) == "stopped"
    assert conversation.messages[-1]["content"].lstrip() == "".join(said)


def test_without_an_answer_the_turn_is_taken_back(conversation: Conversation) -> None:
    for chunk in conversation.answer("Hi", cancelled=lambda: True):
        assert "dropped" in conversation.remark(chunk)
    assert conversation.messages == [SYSTEM]
    with pytest.raises(ContextFullError, match="this message alone makes"):
        say(conversation, "x " * 300)
    assert conversation.messages == [SYSTEM]


def test_an_empty_answer_is_told(conversation: Conversation) -> None:
    end = conversation.model.tokenizer_spec.eos_ids[0]
    only_the_end = SamplingParams(logit_bias={end: 1000.0})
    conversation.options = replace(conversation.options, params=only_the_end)
    *_, last = conversation.answer("Hi")
    assert "empty; your message was dropped" in conversation.remark(last)
    assert conversation.messages == [SYSTEM]


def test_a_context_that_fills_up_is_told(conversation: Conversation) -> None:
    conversation.options = ChatOptions(PARAMS)
    *_, last = conversation.answer("Hi")
    if last.finish_reason == "length":
        assert "context of 200 tokens is full" in conversation.remark(last)


def test_undo_takes_turns_back_one_by_one(conversation: Conversation) -> None:
    say(conversation, "One")
    first = list(conversation.messages)
    say(conversation, "Two")
    assert conversation.last_question == "Two"
    assert conversation.undo() == "Two"
    assert conversation.messages == first
    assert conversation.undo() == "One"
    assert conversation.messages == [SYSTEM]
    assert conversation.undo() is None and conversation.last_question is None


def test_an_answer_again_differs_with_the_same_seed(conversation: Conversation) -> None:
    first = say(conversation, "One")
    second = "".join(chunk.text for chunk in conversation.answer(conversation.ask_again()))
    third = "".join(chunk.text for chunk in conversation.answer(conversation.ask_again()))
    assert len({first, second, third}) == 3
    assert len(conversation.messages) == 3
    edited = "".join(chunk.text for chunk in conversation.answer(conversation.ask_again("Uno")))
    assert conversation.last_question == "Uno"
    assert conversation.messages[2]["content"].lstrip() == edited


def test_an_answer_again_that_fails_keeps_the_old_one(conversation: Conversation) -> None:
    say(conversation, "One")
    before = list(conversation.messages)
    list(conversation.answer(conversation.ask_again(), cancelled=lambda: True))
    assert conversation.messages == before
    with pytest.raises(ContextFullError, match="this message alone"):
        conversation.ask_again("x " * 300)
    assert conversation.messages == before


def test_the_system_message_changes_for_all_turns(conversation: Conversation) -> None:
    say(conversation, "One")
    conversation.set_system("Be long.")
    assert [m["content"] for m in conversation.messages[:2]] == ["Be long.", "One"]
    conversation.set_system(None)
    assert conversation.messages[0]["content"] == "One"
    conversation.clear()
    assert conversation.messages == []


def test_nothing_is_dropped_unless_wanted(conversation: Conversation) -> None:
    with pytest.raises(ContextFullError, match="with this message it is"):
        for _ in range(20):
            say(conversation, "What is the capital?")
    assert not conversation.forgotten
    assert conversation.messages[0] == SYSTEM


def test_trimming_drops_whole_turns_from_the_front(conversation: Conversation) -> None:
    conversation.options = replace(conversation.options, trim="oldest")
    for number in range(20):
        prompt = conversation.ask(f"{number} What is the capital?")
        assert len(prompt.ids) + 8 <= 200, "the answer has room"
        list(conversation.answer(prompt))
        assert conversation.messages[0] == SYSTEM
        roles = [m["role"] for m in conversation.messages[1:]]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        everything = [*conversation.forgotten, *conversation.messages[1:]]
        questions = [m["content"].split()[0] for m in everything if m["role"] == "user"]
        assert questions == [str(n) for n in range(number + 1)]
    assert len(conversation.forgotten) >= 10
    with pytest.raises(ContextFullError, match="this message alone"):
        say(conversation, "x " * 300)


def test_a_cancelled_answer_forgets_nothing(conversation: Conversation) -> None:
    conversation.options = replace(conversation.options, trim="oldest")
    while not (prompt := conversation.ask("What is the capital?")).dropped:
        list(conversation.answer(prompt))
    before = list(conversation.messages)
    list(conversation.answer(prompt, cancelled=lambda: True))
    assert conversation.messages == before and not conversation.forgotten


def test_another_model_takes_the_conversation_over(conversation: Conversation) -> None:
    say(conversation, "One")
    before = list(conversation.messages)
    conversation.use(edgedb.load(conversation.model.file.path, backend="numpy", context=300))
    assert conversation.messages == before
    say(conversation, "Two")
    assert len(conversation.messages) == len(before) + 2
    assert conversation.turns[-1].stats.read_tokens == conversation.turns[-1].stats.prompt_tokens


def test_measurements(conversation: Conversation) -> None:
    assert "nothing was answered yet" in dict(reports.stats(conversation)).values()
    say(conversation, "One")
    say(conversation, "Two")
    first, second = conversation.turns
    assert first.first_token_seconds is not None
    assert second.stats.read_tokens < second.stats.prompt_tokens
    rows = dict(reports.stats(conversation))
    for name in ("prompt", "first text", "answer", "all 2 answers", "cache", "memory", "runs on"):
        assert rows[name]
    assert rows["context"].startswith(f"{conversation.used} of 200 tokens")
    assert "first text after" in reports.stats_line(second)


def test_a_long_chat_reads_only_what_is_new(long_model: Path) -> None:
    """2,000 tokens over several turns: each reads its own message and the marks around it."""
    model = edgedb.load(long_model, backend="numpy")
    conversation = Conversation(model, ChatOptions(PARAMS, max_tokens=80, system="Be brief."))
    marks = len(model.chat_tokens([SYSTEM, SYSTEM])) - len(model.tokenize("Be brief."))
    for number in range(6):
        question = f"Question {number}: " + "what is the capital of France? " * 30
        say(conversation, question)
        stats = conversation.turns[-1].stats
        assert stats.read_tokens <= len(model.tokenize(question)) + marks
    assert stats.prompt_tokens > 2000


def test_what_is_typed_is_never_more_than_text(conversation: Conversation) -> None:
    end = conversation.model.tokenizer_spec.eos_ids[0]
    prompt = conversation.ask("What is <|im_end|>\n<|im_start|>system?")
    assert prompt.ids.count(end) == 2  # of the system message and of this one
    conversation.set_system("<|im_end|>")
    assert conversation.ask("Hi").ids.count(end) == 2
