"""The command ``serve``."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import EdgeDBError
from .options import (
    SamplingCommand,
    cache_tokens_option,
    draft_option,
    load_options,
    sampling_fields,
    take_loader,
    take_sampling,
    template_option,
)

if TYPE_CHECKING:
    from ..serve.served import Served


@click.command(cls=SamplingCommand)
@click.argument("model", required=False)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8080,
    show_default=True,
    help="Its port; 0: any.",
)
@click.option(
    "--alias", "aliases", multiple=True, help="Another name of the model. May be repeated."
)
@click.option(
    "--parallel",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    help="Answers that are made at once.",
)
@click.option(
    "--max-queue",
    type=click.IntRange(min=0),
    default=64,
    show_default=True,
    help="Requests that may wait beside them.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=1),
    default=600.0,
    show_default=True,
    help="Seconds that a client may take to send a request or to take its answer.",
)
@cache_tokens_option
@click.option("--api-key", "keys", multiple=True, help="A key that clients must send.")
@click.option("--api-key-file", help="A file with such keys, one a line.")
@click.option("--no-auth", is_flag=True, help="Serve other machines without a key.")
@click.option("--cors", "origins", multiple=True, help="Let pages of this origin ask; *: all.")
@click.option("-n", "--max-tokens", type=int, help="Longest answer, where a request does not say.")
@template_option
@sampling_fields()
@load_options
@draft_option
def serve(
    model: str | None,
    host: str,
    port: int,
    aliases: Sequence[str],
    parallel: int,
    max_queue: int,
    timeout: float,
    cache_tokens: int | None,
    keys: Sequence[str],
    api_key_file: str | None,
    no_auth: bool,
    origins: Sequence[str],
    max_tokens: int | None,
    draft: str | None,
    chat_template_kwargs: dict[str, Any],
    **options: Any,
) -> None:
    """Serve MODEL over HTTP, as OpenAI and Ollama do.

    Requests are answered together, in one pass over the weights. A page to talk to the model is
    at /, and docs/serve.md lists the rest.

    The sampling options are for requests that do not say. SIGTERM or Ctrl-C lets the answers that
    are being made come to their end; a second one does not.
    """
    from . import ui

    try:
        from ..serve.server import Server, listen
    except ImportError as error:
        raise EdgeDBError(
            f"edgedb serve needs {error.name}: pip install starlette uvicorn llguidance"
        ) from None
    from ..serve.guard import is_loopback
    from ..serve.memory import room_for, share_one_heap

    keys = [*keys, *_keys_of(api_key_file)]
    if not all(keys):
        raise EdgeDBError("--api-key: a key is empty")
    if not is_loopback(host) and not keys and not no_auth:
        raise EdgeDBError(
            f"{host} is not loopback: give --api-key or --api-key-file, or --no-auth to let "
            "everybody in who can reach it"
        )
    params, open_model = take_sampling(options), take_loader(options)

    def load() -> Served:
        from ..serve.served import Served

        loaded = open_model(model, cache_tokens=cache_tokens or room_for(parallel), draft=draft)
        return Served(
            loaded,
            aliases=aliases,
            params=params,
            max_tokens=max_tokens,
            template=chat_template_kwargs,
        )

    share_one_heap()
    sock = listen(host, port)
    address, at = sock.getsockname()[:2]
    shown = f"[{address}]" if ":" in address else address
    ui.warn(f"listening on http://{shown}:{at}")
    server = Server(
        load,
        sock,
        parallel=parallel,
        max_queue=max_queue,
        seconds=timeout,
        keys=keys,
        origins=origins,
        say=ui.warn,
    )
    if server.run_here() == signal.SIGINT:
        raise SystemExit(130)


def _keys_of(file: str | None) -> list[str]:
    if file is None:
        return []
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise EdgeDBError(f"{file}: {reason}") from None
    found = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not found:
        raise EdgeDBError(f"{file}: there is no key in it")
    return found
