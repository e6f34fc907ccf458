"""``edgedb serve`` as a deployment of Ray Serve: one address for the machines of a cluster.

    serve run edgedb.jobs.deployment:app model=/models/model.dbb replicas=4

Every replica is the application of ``edgedb serve`` with the model in its memory. Answers do not
depend on which replica gives them.
"""

from __future__ import annotations

from typing import Any

from ray import serve

from ..serve.app import App
from ..serve.served import Served
from ..serve.service import Service
from .batch import Opening

MAX_QUEUE = 64  # requests that may wait in a replica, beside those that it answers
SECONDS = 600.0  # that a client may take to send a request, or to take its answer


@serve.ingress()
class EdgeDB:
    """A replica."""

    def __init__(self, model: str, parallel: int, keys: list[str]) -> None:
        self._served = Served(Opening(model, parallel).model())
        self._parallel, self._keys = parallel, keys

    def __serve_build_asgi_app__(self) -> Any:
        service = Service(parallel=self._parallel, max_queue=MAX_QUEUE, seconds=SECONDS)
        service.served = self._served
        http = App(service, keys=self._keys, only_local=False)

        async def asgi(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "lifespan":
                return await http(scope, receive, send)
            for event in ("startup", "shutdown"):  # with which Ray Serve begins and ends
                await receive()
                await send({"type": f"lifespan.{event}.complete"})

        return asgi


def app(arguments: dict[str, Any]) -> serve.Application:
    """``model``: a path or name that is the same on every machine; ``replicas`` (1): at best one a
    machine; ``parallel`` (16): answers at once in each; ``key``: that clients must send."""
    parallel = int(arguments.get("parallel", 16))
    options = {
        "num_replicas": int(arguments.get("replicas", 1)),
        "max_replicas_per_node": 1,
        "max_ongoing_requests": parallel + MAX_QUEUE,
    }
    keys = [arguments["key"]] if arguments.get("key") else []
    return serve.deployment(EdgeDB, **options).bind(arguments["model"], parallel, keys)
