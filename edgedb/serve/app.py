"""The routes, and what is true of all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route, Router

from . import ollama, ollama_models
from .chat import read_chat
from .completions import read_completion
from .embeddings import read_embed, read_embeddings, read_old_embedding
from .errors import Refused
from .guard import PAGE_HEADERS, Guard
from .listing import health, model_entry, models
from .page_files import page_files
from .prompts import apply_template, detokenize, tokenize
from .responses import read_response
from .served import Served
from .service import Read, Service
from .transport import Sender, transport_of

_DONE = b"data: [DONE]\n\n"

# Route, what reads a request, what ends a stream.
_ANSWERS: tuple[tuple[str, Read, bytes], ...] = (
    ("/v1/chat/completions", read_chat, _DONE),
    ("/v1/completions", read_completion, _DONE),
    ("/v1/embeddings", read_embeddings, b""),
    ("/v1/responses", read_response, b""),
    ("/api/embed", read_embed, b""),
    ("/api/embeddings", read_old_embedding, b""),
    ("/api/chat", ollama.read_chat, b""),
    ("/api/generate", ollama.read_generate, b""),
)
# Route, what makes the document that answers a body.
_QUESTIONS: tuple[tuple[str, Callable[[Served, Any], Any]], ...] = (
    ("/tokenize", tokenize),
    ("/detokenize", detokenize),
    ("/apply-template", apply_template),
    ("/api/show", ollama_models.show),
)
# Route, what makes the document that answers anybody.
_LISTS: tuple[tuple[str, Callable[[Served], Any]], ...] = (
    ("/v1/models", models),
    ("/api/version", ollama_models.version),
    ("/api/tags", ollama_models.tags),
    ("/api/ps", ollama_models.running),
)


class App:
    """The ASGI application."""

    def __init__(
        self,
        service: Service,
        *,
        keys: Sequence[str] = (),
        only_local: bool = True,
        abort: Callable[[Any], None] = lambda scope: None,
    ) -> None:
        """``abort(scope)`` closes a connection at once."""
        self._service, self._abort = service, abort
        self._page = page_files()
        self._guard = Guard(keys, only_local=only_local, is_page=self._page.__contains__)
        routes = [self._route(path, ("GET",), self._listed(make)) for path, make in _LISTS]
        routes += [
            self._route(path, ("POST",), self._questioned(make)) for path, make in _QUESTIONS
        ]
        routes += [
            self._route(path, ("POST",), self._answered(read, last))
            for path, read, last in _ANSWERS
        ]
        routes += [
            self._route("/v1/models/{name:path}", ("GET",), self._model),
            self._route("/health", ("GET",), self._health),
            self._route("/v1/health", ("GET",), self._health),
            self._route("/metrics", ("GET",), self._metrics),
        ]
        routes += [self._route(path, ("GET",), self._file) for path in self._page]
        # llama-server has OpenAI's routes without /v1 as well.
        routes += [
            Route(
                route.path.removeprefix("/v1"), route.endpoint, methods=sorted(route.methods or ())
            )
            for route in routes
            if route.path.startswith("/v1/") and route.path != "/v1/health"
        ]
        self._router = Router(routes, redirect_slashes=False)
        self._known = {route.path for route in routes}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"{scope['type']}: only HTTP is spoken here")
        scope["app"] = self  # has the router raise for what it does not know
        sender = Sender(send, transport_of(scope["path"]), lambda: self._abort(scope))
        scope["edgedb"] = sender
        await self._service.carry(sender, self._come_in(scope, receive, send))
        path = scope["path"] if scope["path"] in self._known else "other"
        self._service.metrics.request(path, sender.status or 499)

    async def _come_in(self, scope: Any, receive: Any, send: Any) -> None:
        self._guard.check(scope)
        try:
            await self._router(scope, receive, send)
        except HTTPException as error:
            where = f"{scope['method']} {scope['path']}"[:200]
            what = "no such method for this route" if error.status_code == 405 else "no such route"
            headers = dict(error.headers or {})
            code = "method_not_allowed" if error.status_code == 405 else "not_found"
            raise Refused(
                error.status_code, f"{where}: {what}", code=code, headers=headers
            ) from None

    def _route(self, path: str, methods: Sequence[str], handle: Any) -> Route:
        return Route(path, _Endpoint(handle), methods=list(methods))

    def _listed(self, make: Callable[[Served], Any]) -> Any:
        async def handle(scope: Any, receive: Any, sender: Sender) -> None:
            await sender.document(200, make(self._service.ready()))

        return handle

    def _questioned(self, make: Callable[[Served, Any], Any]) -> Any:
        async def handle(scope: Any, receive: Any, sender: Sender) -> None:
            await sender.document(200, await self._service.read(scope, receive, make))

        return handle

    def _answered(self, read: Read, last: bytes) -> Any:
        async def handle(scope: Any, receive: Any, sender: Sender) -> None:
            await self._service.answer(scope, receive, sender, read, last)

        return handle

    async def _model(self, scope: Any, receive: Any, sender: Sender) -> None:
        served = self._service.ready()
        served.check_name(scope["path_params"]["name"])
        await sender.document(200, model_entry(served))

    async def _health(self, scope: Any, receive: Any, sender: Sender) -> None:
        self._service.ready()
        await sender.document(200, health(self._service.desk))

    async def _metrics(self, scope: Any, receive: Any, sender: Sender) -> None:
        service = self._service
        text = service.metrics.text(service.desk, service.served).encode()
        await sender.content(200, b"text/plain; version=0.0.4; charset=utf-8", text)

    async def _file(self, scope: Any, receive: Any, sender: Sender) -> None:
        kind, data = self._page[scope["path"]]
        await sender.content(200, kind.encode(), data, PAGE_HEADERS)


class _Endpoint:
    """An ASGI application for one route."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self._handle(scope, receive, scope["edgedb"])


def with_cors(app: App, origins: Sequence[str]) -> Any:
    """``app``, which pages from ``origins`` may ask too; ``*``: from anywhere."""
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=["GET", "POST", "HEAD"],
        allow_headers=["*"],
        expose_headers=["Retry-After"],
    )
