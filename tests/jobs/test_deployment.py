"""The server as a deployment of Ray Serve."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import edgedb

TRIAL = Path(__file__).with_name("deployment_trial.py")


@pytest.mark.skipif(not os.environ.get("EDGEDB_SLOW"), reason="takes a minute: set EDGEDB_SLOW")
def test_a_deployment_answers_as_the_server(tiny_model: Path) -> None:
    try:
        from ray import serve  # noqa: F401
    except ImportError as error:
        pytest.skip(f"needs Ray Serve ({error}): pip install 'ray[serve]'")
    if not shutil.which("unshare") or subprocess.run(["unshare", "-n", "true"]).returncode:
        pytest.skip("may not make a network namespace here (unshare -n)")
    messages = [{"role": "user", "content": "Hi"}]
    body = {"messages": messages, "max_tokens": 6, "temperature": 0, "stream": "STREAM"}
    done = subprocess.run(
        ["unshare", "-n", sys.executable, str(TRIAL), str(tiny_model), json.dumps(body)],
        env=os.environ | {"RAY_USAGE_STATS_ENABLED": "0"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    whole, stream = [line for line in done.stdout.splitlines() if "chat.completion" in line]
    expected = edgedb.load(tiny_model).chat(messages, max_tokens=6, temperature=0).text
    assert json.loads(whole)["choices"][0]["message"]["content"] == expected
    events = [json.loads(part) for part in stream.split("data: ")[1:-1]]
    deltas = [event["choices"][0]["delta"].get("content", "") for event in events]
    assert "".join(deltas) == expected and stream.endswith("[DONE]")
