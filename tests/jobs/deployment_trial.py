"""Asks a deployment of Ray Serve what it is asked to, on loopback, and prints what it says.

unshare -n python deployment_trial.py MODEL BODY
"""

from __future__ import annotations

import sys
import urllib.request

from ray_trial import raise_loopback


def main() -> None:
    """The answer to BODY, a chat completion, twice: whole and as a stream."""
    raise_loopback()
    import ray
    from ray import serve

    from edgedb.jobs.deployment import app

    ray.init(num_cpus=3, include_dashboard=False, object_store_memory=80 << 20)
    serve.run(app({"model": sys.argv[1], "parallel": "2", "key": "k"}))
    for stream in (b"false", b"true"):
        request = urllib.request.Request(
            "http://127.0.0.1:8000/v1/chat/completions",
            sys.argv[2].encode().replace(b'"STREAM"', stream),
            {"Authorization": "Bearer k", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as response:
            print(response.read().decode().replace("\n", ""), flush=True)
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
