"""The page of the server, in a browser, with a model that takes its time."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from browsers import Page, chromium

Keys = pytest.importorskip("selenium.webdriver.common.keys", reason="needs selenium").Keys
pytestmark = pytest.mark.usefixtures("slowly")  # a browser has to come between

# Texts that would be more than text if anything made markup of them.
HOSTILE = (
    "<img src=x onerror='window.hurt=1'>",
    "<script>window.hurt=1</script>",
    "<iframe srcdoc='<script>parent.hurt=1</script>'></iframe>",
    "[link](javascript:window.hurt=1) <javascript:window.hurt=1>",
    "![image](http://198.51.100.7/x.png)",
    "[data](data:text/html,<script>hurt=1</script>) [relative](/v1/models) [file](file:///etc/x)",
    "```<b>\"'\n<script>window.hurt=1</script>\n```",
    "|<svg onload=window.hurt=1>|b|\n|-|-|\n|`</td><script>window.hurt=1</script>`|[x](vbscript:)|",
    "# <a href=javascript:window.hurt=1>x</a>\n> <base href=//198.51.100.7>\n- <style>*{all:unset}",
    "<think><img src=x onerror=window.hurt=1></think>",
    "\u202e\x00\x1b[31m\ufeff",
)
MARKDOWN = {
    "**a *b* c** *a **b** c* ***x*** a_b_c _u_ ~~d~~": (
        "<p><strong>a <em>b</em> c</strong> <em>a <strong>b</strong> c</em> "
        "<strong><em>x</em></strong> a_b_c <em>u</em> <del>d</del></p>"
    ),
    "Use **`**kwargs`** \\*here\\* 5 * 3 * 2": (
        "<p>Use <strong><code>**kwargs</code></strong> *here* 5 * 3 * 2</p>"
    ),
    "1. a\n2. b\n   - c\n\n   d\n\ne\nf": (
        '<ol start="1"><li><p>a</p></li><li><p>b</p><ul><li><p>c</p></li></ul><p>d</p></li></ol>'
        "<p>e<br>f</p>"
    ),
    "# h\n> q\n\n---\n|a|b|\n|-|-:|\n|1|x \\| y|": (
        '<h3>h</h3><blockquote><p>q</p></blockquote><hr><div class="wide" tabindex="0"><table>'
        '<thead><tr><th data-align="">a</th><th data-align="right">b</th></tr></thead><tbody><tr>'
        '<td data-align="">1</td><td data-align="right">x | y</td></tr></tbody></table></div>'
    ),
    "[*x*](https://a.b/c_(d)) [y](javascript:z) https://a.b/c.": (
        '<p><a href="https://a.b/c_(d)" target="_blank" rel="noopener noreferrer"><em>x</em></a> '
        "[y](javascript:z) "
        '<a href="https://a.b/c" target="_blank" rel="noopener noreferrer">https://a.b/c</a>.</p>'
    ),
    "~~~py\n<b>\n": (
        '<div class="block"><div><span>py</span><button class="quiet">Copy</button></div>'
        '<pre tabindex="0"><code>&lt;b&gt;\n</code></pre></div>'
    ),
}
CANCELLED, RUNNING = r'edgedb_answers_total\{reason="cancelled"\}', "edgedb_running"
CONTROLS = ("button", "link", "textbox", "spinbutton", "combobox", "checkbox", "DisclosureTriangle")
# An answer of the tiny model that does not end by itself.
ENDLESS = {"more": json.dumps({"logit_bias": {"2": -100}})}
SHORT = {**ENDLESS, "max_tokens": "24"}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium(tmp_path_factory.mktemp("chromium")) as page:
        yield page


@pytest.fixture
def address(server: Any) -> str:
    """Of the page."""
    return f"{server.address}/"


@pytest.fixture
def page(browser: Page, address: str) -> Iterator[Page]:
    """The tab; afterwards nobody may have complained, and nobody else may have been asked."""
    browser.address = address
    browser.complaints(), browser.asked()
    yield browser
    assert browser.complaints() == []
    elsewhere = [url for url in browser.asked() if not url.startswith((address, "data:", "blob:"))]
    assert elsewhere == []


def metric(address: str, name: str) -> float:
    with urlopen(address + "metrics", timeout=10) as answer:
        text = answer.read().decode()
    return float(re.search(rf"^{name} ([0-9.e+]+)$", text, re.M)[1])


def answers(page: Page) -> list[dict[str, Any]]:
    return [m for m in page.kept("messages") if m["role"] == "assistant"]


def test_nothing_else_is_allowed(address: str) -> None:
    for name in ("", "page.css", "page.js"):
        with urlopen(address + name, timeout=10) as answer:
            policy = answer.headers["Content-Security-Policy"]
        rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
        assert rules["default-src"] == rules["frame-ancestors"] == rules["base-uri"] == "'none'"
        assert rules["require-trusted-types-for"] == "'script'" and rules["img-src"] == "data:"
        assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == "'self'"
        assert "unsafe" not in policy


def test_a_conversation(page: Page, address: str) -> None:
    page.open(address, **SHORT)
    page.say("Hello, model")
    page.wait(lambda: page.idle() and "tokens" in page.below())
    assert re.search(r"Replay seed \d+ cut at the limit of tokens · 24 tokens", page.below())
    assert re.search(r"[\d.]+ a second · read \d+ of \d+", page.below())
    assert re.fullmatch(r"[\d,]+ of 2,048 tokens", page.text("#context"))
    assert page.text("#list a") == "Hello, model" == page.js("return document.title.slice(0, 12)")
    page.say("And again")
    page.wait(lambda: page.idle() and len(answers(page)) == 2)
    first, second = answers(page)
    assert second["facts"]["prompt"] > first["facts"]["prompt"]


def test_same_seed_same_text(page: Page, address: str) -> None:
    page.open(address, **SHORT, temperature="1.5")
    page.say("Hello")
    page.wait(page.idle)
    page.click("[data-act=replay]")
    page.wait(lambda: "same seed, same text" in page.below())
    [answer] = answers(page)
    assert answer["repeated"] is True and answer["text"]
    page.click("[data-act=again]")
    page.wait(lambda: page.idle() and len(answers(page)) == 2)
    assert answers(page)[1]["fields"]["seed"] != answer["fields"]["seed"]
    assert answers(page)[1]["text"] != answer["text"]


def test_stop_stops_the_engine_and_continue_goes_on(page: Page, address: str) -> None:
    page.open(address, **ENDLESS)
    before = metric(address, CANCELLED)
    page.say("Hello")
    page.wait(lambda: "tokens a second" in page.below())
    assert metric(address, RUNNING) == 1
    page.click("#stop")
    page.wait(lambda: metric(address, RUNNING) == 0)
    page.wait(lambda: "stopped by you" in page.below())
    assert metric(address, CANCELLED) == before + 1
    [stopped] = answers(page)
    page.click("[data-act=resume]")
    page.wait(lambda: "tokens a second" in page.below())
    page.keys(Keys.ESCAPE)
    page.wait(page.idle)
    [longer] = answers(page)
    assert longer["text"].startswith(stopped["text"]) and longer["from"] == len(stopped["text"])
    assert len(longer["text"]) > len(stopped["text"])


def test_an_edited_message_begins_a_branch(page: Page, address: str) -> None:
    page.open(address, **SHORT)
    page.say("One")
    page.wait(page.idle)
    page.keys(Keys.ARROW_UP)
    page.keys(" and a half", Keys.ENTER)
    page.wait(lambda: page.idle() and len(answers(page)) == 2)
    versions = "article.user .versions"
    assert "2 of 2" in page.text(versions)
    assert page.text("article.user .body") == "One and a half"
    page.click("article.user [data-act=previous]")
    assert page.text("article.user .body") == "One"
    assert page.js("return document.activeElement.dataset.act") == "previous"
    page.click("article.assistant [data-act=again]")
    page.wait(lambda: page.idle() and len(answers(page)) == 3)
    assert "2 of 2" in page.below()
    page.reload()
    assert page.text("article.user .body") == "One" and "2 of 2" in page.below()


def test_a_reload_in_mid_answer_keeps_what_came(page: Page, address: str) -> None:
    page.open(address, **ENDLESS)
    page.say("Hello")
    page.wait(lambda: len(answers(page)) == 1 and len(answers(page)[0]["text"]) > 20)
    seen = answers(page)[0]["text"]
    page.js("sessionStorage.setItem('draft', 'half a thought')")
    page.reload()
    page.wait(lambda: "cut when the page was closed" in page.below())
    assert answers(page)[0]["text"].startswith(seen)
    assert page.js("return document.querySelector('#text').value") == "half a thought"
    page.wait(lambda: metric(address, RUNNING) == 0)
    page.js("document.querySelector('#text').value = ''")
    page.click("[data-act=resume]")
    page.wait(lambda: "tokens a second" in page.below())
    page.click("#stop")
    page.wait(page.idle)
    assert answers(page)[0]["text"].startswith(seen)


def exported(*texts: str) -> dict[str, Any]:
    """A file of one conversation in which every text is said, thought and a name."""
    conversation = {
        **{"id": "c" * 12, "title": texts[0][:200], "at": 1, "head": f"m{len(texts) - 1:011}"},
        **{"system": texts[0], "schema": ""},
    }
    messages = [
        {
            **{"id": f"m{i:011}", "parent": f"m{i - 1:011}" if i else None, "text": text, "at": i},
            **{"conversation": "c" * 12, "role": ("user", "assistant")[i % 2], "state": "done"},
            **{"reason": "", "thought": text, "model": text, "fields": {"seed": text}},
        }
        for i, text in enumerate(texts)
    ]
    return {
        **{"kind": "edgedb conversations", "version": 1},
        **{"conversations": [conversation], "messages": messages},
    }


def take(page: Page, folder: Path, document: dict[str, Any]) -> None:
    """Import a file."""
    file = folder / "<b>export.json"
    file.write_text(json.dumps(document), encoding="utf-8")
    page.js("return document.querySelector('#file')").send_keys(str(file))
    page.wait(lambda: page.text("#notice").startswith("1 of 1 conversations"))


def test_no_text_becomes_more_than_text(page: Page, address: str, tmp_path: Path) -> None:
    page.open(address)
    twice = [text for text in HOSTILE for _ in range(2)]  # once of the user, once of the model
    take(page, tmp_path, exported(*twice))
    assert page.js("return document.querySelectorAll('#path article').length") == len(twice)
    page.js("document.querySelectorAll('details').forEach((node) => (node.open = true))")
    assert page.js("return window.hurt") is None
    assert not page.js(
        "return [...document.querySelectorAll('main *, nav *')].filter((node) =>"
        " /^(script|style|img|iframe|base|object|embed|form)$/i.test(node.tagName) &&"
        " node.id !== 'composer' || [...node.attributes].some(({name}) => /^on/i.test(name)) ||"
        " node.href && !/^https?:/.test(node.href) && !node.href.animVal).map((n) => n.outerHTML)"
    )
    shown = page.js("return document.querySelector('article.assistant .body').textContent")
    assert shown == HOSTILE[0]


def test_what_is_exported_can_be_imported(page: Page, address: str, tmp_path: Path) -> None:
    page.open(address, **SHORT)
    page.say("Hello")
    page.wait(page.idle)
    page.js("URL.createObjectURL = (blob) => (blob.text().then((t) => (window.saved = t)), '#')")
    page.click("#export")
    text = page.wait(lambda: page.js("return window.saved"))
    kept = page.kept("messages")
    page.open(address)
    assert page.kept("messages") == []
    take(page, tmp_path, json.loads(text))
    assert page.kept("messages") == kept and page.text("#list a") == "Hello"


WRONG = {
    "it was not exported by this page": {"version": 2},
    "it has no list of messages": {"messages": {}},
    "conversations, number 1: bad title": {"conversations": [{"id": "c" * 12, "title": 3}]},
    "messages, number 1: bad id": {"messages": ["text"]},
}
WRONG_MESSAGE = {
    "messages, number 2: bad id": {"id": "../etc"},
    "messages, number 2: bad role": {"role": "system"},
    "messages, number 2: bad at": {"at": -1},
    "messages, number 2: bad facts": {"facts": {"tokens": "<b>"}},
    "messages, number 2: bad state": {"state": "odd"},
    "messages, number 2: it hangs on nothing": {"parent": "m00000000001"},
}


def test_a_damaged_export_is_refused_in_words(page: Page, address: str) -> None:
    page.open(address)
    read = "page.readExport(arguments[0])"
    for words, change in WRONG.items():
        assert page.module(read, json.dumps({**exported("a", "b"), **change})) == words
    for words, change in WRONG_MESSAGE.items():
        file = exported("a", "b")
        file["messages"][1].update(change)
        assert page.module(read, json.dumps(file)) == words
    found = page.module(read, json.dumps({**exported("a", "b"), "more": 1}))
    assert [m["text"] for m in found["messages"]] == ["a", "b"]
    assert "JSON" in page.module(read, "{")


def test_markdown(page: Page, address: str) -> None:
    page.open(address)
    page.js("window.box = document.createElement('div')")
    shown = "(page.markdown(box, arguments[0]), box.innerHTML)"
    for source, html in MARKDOWN.items():
        assert page.module(shown, source) == html
    # A growing text keeps the nodes of its finished blocks.
    assert page.module(
        "(page.markdown(box, 'a\\n\\nb'), window.first = box.firstChild,"
        " page.markdown(box, 'a\\n\\nb c'), box.firstChild === first && box.textContent)"
    ) == ("abc".replace("c", " c"))


@pytest.mark.parametrize("piece", ["*a ", "[a](", "` ``", "_~[`*", "> ", "- a\n "])
def test_no_text_takes_long(page: Page, address: str, piece: str) -> None:
    """What is not linear takes half a minute, what is linear a tenth of a second."""
    if page.driver.current_url.partition("#")[0] != address:
        page.open(address)
    shown = "page.markdown(document.createElement('div'), arguments[0])"
    page.driver.set_script_timeout(10)
    page.module(shown, piece * 60_000)


FAILURES = {
    401: "The server wants an API key",
    400: "the prompt has 9 tokens",
    500: "the prompt has 9 tokens",
    0: "No answer from",
}


@pytest.mark.parametrize("status", FAILURES)
def test_errors_are_said_in_words(page: Page, address: str, status: int) -> None:
    page.open(address)
    fail(page, status)
    page.say("Hello")
    page.wait(lambda: FAILURES[status] in page.text(".trouble"))
    assert bool(page.find("dialog")) == (status == 401)
    if status == 401:
        assert page.js("return document.activeElement.name") == "key"
        page.keys(Keys.ESCAPE)
    page.js("window.fetch = window.real")
    page.click("[data-act=retry]")
    page.wait(page.writing)
    page.click("#stop")
    page.wait(page.idle)
    assert not page.text(".trouble")


def test_a_busy_server_is_asked_again_when_it_says(page: Page, address: str) -> None:
    page.open(address, **SHORT)
    fail(page, 429, {"Retry-After": "1"})
    page.say("Hello")
    page.wait(lambda: "Asking again in 1 s" in page.text(".progress"))
    page.js("window.fetch = window.real")
    page.wait(lambda: page.idle() and "tokens" in page.below())


def fail(page: Page, status: int, headers: Mapping[str, str] | None = None) -> None:
    """Have every request answered like this; 0: not at all."""
    page.js(
        "const [status, headers] = arguments; window.real = window.fetch;"
        "const body = JSON.stringify({error: {message: 'the prompt has 9 tokens'}});"
        "window.fetch = async () => { if (!status) throw new TypeError('failed');"
        " return new Response(body, {status, headers}); }",
        status,
        headers or {},
    )


def test_an_answer_that_breaks_keeps_what_came(page: Page, address: str) -> None:
    """By chunks that come when the test says."""
    page.open(address)
    page.js(
        "window.real = window.fetch; window.fetch = async () => new Response(new ReadableStream({"
        " start(stream) { window.send = (chunk) => stream.enqueue(new TextEncoder().encode("
        "   ': ping\\n\\ndata: ' + JSON.stringify(chunk) + '\\n\\n')); } }))"
    )
    page.say("Hello")
    page.wait(lambda: page.js("return window.send !== undefined"))
    send = "window.send(arguments[0])"
    page.js(send, {"choices": [], "prompt_progress": {"processed": 1024, "total": 4096}})
    page.wait(lambda: page.text(".progress") == "Reading: 1,024 of 4,096 tokens")
    page.js(send, {"choices": [{"index": 0, "delta": {"reasoning_content": "Hm."}}]})
    for text in ("One.\n", "\nTwo."):
        page.js(send, {"choices": [{"index": 0, "delta": {"content": text}}]})
    spoken = "return document.querySelector('#spoken').innerText"
    page.wait(lambda: page.js(spoken).split() == ["One."])
    assert not page.text(".progress") and page.text(".thinking") == "Thinking"
    page.js(send, {"error": {"message": "the engine is gone"}})
    page.wait(lambda: page.text(".trouble") == "the engine is gone Try again")
    page.wait(lambda: page.js(spoken).split() == ["One.", "Two."])
    [answer] = answers(page)
    assert (answer["text"], answer["thought"]) == ("One.\n\nTwo.", "Hm.")
    page.js("window.fetch = window.real")
    page.click("[data-act=retry]")
    page.wait(lambda: "tokens a second" in page.below())
    page.click("#stop")
    page.wait(page.idle)
    assert answers(page)[0]["text"].startswith("One.\n\nTwo.")


def test_settings_reach_the_request(page: Page, address: str) -> None:
    page.open(address)
    page.click("#configure")
    for name, value in {"system": "Be brief.", "schema": '{"type": "object"}', "seed": "7"}.items():
        page.click(f"[name={name}]")
        page.keys(value, Keys.TAB)
    page.click("[name=more]")
    page.keys("[1]", Keys.TAB)
    assert page.js("return document.querySelector('[name=more]').validationMessage")
    page.keys(Keys.ESCAPE)
    assert page.text("#chosen") == "System prompt JSON schema Seed 7"
    page.js(
        "window.real = window.fetch; window.fetch = async (path, options) =>"
        "{ window.body = options.body; return new Response('', {status: 500}); }"
    )
    page.say("Hello")
    body = json.loads(page.wait(lambda: page.js("return window.body")))
    assert body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
    ]
    assert body["seed"] == 7 and "temperature" not in body
    assert body["response_format"]["json_schema"]["schema"] == {"type": "object"}
    page.reload()
    assert page.text("#chosen") == "System prompt JSON schema Seed 7"


@pytest.mark.parametrize("width", [360, 1280])
def test_every_control_has_a_name_and_nothing_is_cut_off(
    page: Page, address: str, width: int, tmp_path: Path
) -> None:
    page.open(address)
    wide = f"{'y' * 200}\n\n|a|b|\n|-|-|\n|{'z' * 200}|w|\n\n```\n{'code ' * 60}\n```"
    take(page, tmp_path, exported("x" * 300, wide))
    for scheme in ("light", "dark"):
        page.size(width, 740, scheme)
        assert page.js("return document.documentElement.scrollWidth") <= width
        assert page.js("const box = document.querySelector('#scroll'); return box.scrollWidth") <= (
            page.js("return document.querySelector('#scroll').clientWidth")
        )
    page.click("#configure")
    nodes = page.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    page.keys(Keys.ESCAPE)
    nodes += page.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    controls = [n for n in nodes if n.get("role", {}).get("value") in CONTROLS]
    nameless = [n["role"]["value"] for n in controls if not n.get("name", {}).get("value")]
    assert len(controls) > 20 and not nameless
