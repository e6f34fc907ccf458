"""A worker that computes nothing: ``fake_peer.py RATE [HOW]`` answers as if it had run so fast."""

from __future__ import annotations

import json
import sys


def main() -> None:
    rate, how = float(sys.argv[1]), sys.argv[2:]
    if how == ["dead"]:
        raise SystemExit("no such model")
    print(json.dumps({"version": "fake 1", "isa": "none", "bytes_per_token": 1000}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if how == ["dies"]:
            raise SystemExit("out of memory")
        n = request.get("n", 100)
        rate_now = rate * request["threads"]  # twice the threads, twice the speed
        reply = {"n": n, "elapsed": n / rate_now}
        reply["stops"] = [stop / rate_now for stop in request.get("stops", [])]
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
