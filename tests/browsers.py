"""The server's page in a headless Chromium."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

Found = TypeVar("Found")
_PATIENCE = 20.0  # seconds; a busy machine is no failure
_OPTIONS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")
# What the page asked for that its policy refused; the console says it too.
_WATCH = """
window.refused = [];
addEventListener("securitypolicyviolation", (event) => refused.push(event.violatedDirective));
"""


class Page:
    """One tab. Elements are found by CSS selectors; the last one that is seen counts."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver
        self.address = ""
        driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": _WATCH})

    def open(self, address: str, **settings: str) -> None:
        """``address`` with these settings and nothing else kept from before."""
        self.address = address
        self.size(1280, 800)
        everything = {"origin": address.rstrip("/"), "storageTypes": "all"}
        self.driver.get(address + "page.css")  # the same origin, and no script
        self.driver.execute_cdp_cmd("Storage.clearDataForOrigin", everything)
        self.complaints()  # that it has no icon
        self.js("localStorage.setItem('edgedb', arguments[0])", json.dumps(settings))
        self.driver.get(address)
        self.ready()

    def ready(self) -> None:
        """Wait until the page knows its server."""
        self.wait(lambda: self.text("#model") not in ("", "Connecting…"))

    def reload(self) -> None:
        self.driver.refresh()
        self.ready()

    def js(self, script: str, *arguments: Any) -> Any:
        """What ``script`` returns."""
        return self.driver.execute_script(script, *arguments)

    def module(self, expression: str, *arguments: Any) -> Any:
        """The value of ``expression``, which knows the page's module as ``page`` and
        ``arguments``; an error's message."""
        return self.driver.execute_async_script(
            "const done = arguments[arguments.length - 1]; import('/page.js')"
            f".then((page) => {expression}).then(done, (error) => done(error.message))",
            *arguments,
        )

    def wait(self, look: Callable[[], Found]) -> Found:
        """The first result of ``look`` that is true."""
        end = time.monotonic() + _PATIENCE
        while not (found := look()):
            if time.monotonic() > end:
                pytest.fail("waited in vain; the page shows:\n" + self.text("body")[-2000:])
            time.sleep(0.02)
        return found

    def find(self, selector: str) -> Any:
        """The last element that is seen, or None."""
        return self.js(
            "return [...document.querySelectorAll(arguments[0])]"
            ".filter((node) => node.checkVisibility({visibilityProperty: true})).at(-1)",
            selector,
        )

    def text(self, selector: str) -> str:
        """What its reader sees, on one line; empty if there is nothing."""
        shown = self.js(
            "return [...document.querySelectorAll(arguments[0])]"
            ".filter((node) => node.checkVisibility({visibilityProperty: true})).at(-1)?.innerText",
            selector,
        )
        return " ".join((shown or "").split())

    def click(self, selector: str) -> None:
        self.wait(lambda: self.find(selector)).click()

    def keys(self, *keys: str) -> None:
        """To whatever has the focus."""
        self.driver.switch_to.active_element.send_keys(*keys)

    def say(self, text: str) -> None:
        from selenium.webdriver.common.keys import Keys

        self.wait(lambda: self.find("#text")).send_keys(text, Keys.ENTER)
        self.wait(lambda: self.find("article.assistant"))

    def writing(self) -> bool:
        return self.find("#stop") is not None

    def idle(self) -> bool:
        return not self.writing()

    def kept(self, kind: str) -> list[dict[str, Any]]:
        """The conversations or messages that the browser has stored, in order of time."""
        found = self.driver.execute_async_script(
            "const [kind, done] = arguments; const opening = indexedDB.open('edgedb');"
            "opening.onsuccess = () => { const db = opening.result; const asked ="
            "db.transaction(kind).objectStore(kind).getAll();"
            "asked.onsuccess = () => { db.close(); done(asked.result); }; }",
            kind,
        )
        return sorted(found, key=lambda record: record["at"])

    def below(self) -> str:
        """What stands below the last answer."""
        return self.text("article.assistant .under")

    def size(self, width: int, height: int, scheme: str = "light") -> None:
        """The window's, in CSS pixels, and the system's colours."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        media = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})

    def complaints(self) -> list[str]:
        """What the console and the policy have said since the last time; not that somebody was
        quicker than the browser to put the cursor somewhere."""
        messages = [entry["message"] for entry in self.driver.get_log("browser")]
        said = [one for one in messages if "Autofocus processing was blocked" not in one]
        return said + [f"refused: {one}" for one in self.js("return window.refused ?? []")]

    def asked(self) -> list[str]:
        """Addresses that the page asked for since the last time."""
        events = [json.loads(entry["message"]) for entry in self.driver.get_log("performance")]
        sent = [e["message"] for e in events]
        return [
            e["params"]["request"]["url"]
            for e in sent
            if e["method"] == "Network.requestWillBeSent"
        ]


@contextmanager
def chromium(folder: Path) -> Iterator[Page]:
    """Skips where there is none; ``folder`` holds its profile."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    driver, browser = shutil.which("chromedriver"), shutil.which("chromium")
    if driver is None or browser is None:
        pytest.skip("needs Debian's packages chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for option in (*_OPTIONS, f"--user-data-dir={folder}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(driver, log_output=subprocess.DEVNULL)
    started = webdriver.Chrome(options=options, service=service)
    try:
        yield Page(started)
    finally:
        started.quit()
