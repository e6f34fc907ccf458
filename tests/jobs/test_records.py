"""What becomes of a line, in the form in which it asked."""

from __future__ import annotations

import json

from edgedb.jobs.lines import parse_line
from edgedb.jobs.records import answered, failure, responded

PLAIN = parse_line(7, '{"id": "é", "prompt": "x"}')
CALL = {"custom_id": "é", "method": "POST", "url": "/v1/completions", "body": {"prompt": "x"}}
OPENAI = parse_line(7, json.dumps(CALL))


def test_a_plain_line() -> None:
    record = answered(PLAIN, {"text": "a\nb"}, 3)
    assert (record.number, record.failed, record.tokens) == (7, False, 3)
    assert record.text == '{"id": "é", "text": "a\\nb"}'
    record = failure(PLAIN, "no\x1b[1m good")
    assert (record.number, record.failed, record.tokens) == (7, True, 0)
    assert json.loads(record.text) == {"id": "é", "line": 7, "error": "no\\x1b[1m good"}


def test_a_line_in_openai_s_form() -> None:
    record = responded(OPENAI, 200, {"choices": []}, 3)
    assert (record.number, record.failed, record.tokens) == (7, False, 3)
    found = json.loads(record.text)
    assert found["custom_id"] == "é" and found["error"] is None
    assert found["response"]["status_code"] == 200 and found["response"]["body"] == {"choices": []}
    assert record.text == responded(OPENAI, 200, {"choices": []}, 3).text  # nothing of chance
    assert responded(OPENAI, 400, {}).failed
    found = json.loads(failure(OPENAI, "no").text)
    assert found["custom_id"] == "é" and found["response"] is None
    assert found["error"] == {"code": "failed", "message": "no", "line": 7}
