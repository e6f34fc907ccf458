"""Many streams at once: tokens a second together, how soon and how evenly they come.

    python -m bench.serve MODEL --streams 1 4 16             # in this process
    python -m bench.serve http://127.0.0.1:8080 --streams 1 4 16 --seconds 60
    python -m bench.serve http://127.0.0.1:8080 --poisson 0.5 2 --shared 512 --systems 4
    python -m bench.serve http://127.0.0.1:8080 --streams 8 --intruder 4000
    python -m bench.serve http://127.0.0.1:8080 --cancel 50 --intruder 4000

Of a server of OpenAI's API, whichever it is: streams in a closed loop (each asks again when it has
its answer), or arrivals at random (``--poisson``, a second); a system prompt that requests share;
one long prompt after the other beside them (``--intruder``, from a quarter of the time on). Prompts
are random token ids, or words with ``--chat``. The figures are of the time asked for; what runs
at its end is left. ``cores`` are processor time over the time: client and server share the machine,
and who asks must not be what is measured. ``same`` are answers that equal those that the server
gives to the same request alone, asked afterwards.

With ``--cancel`` clients close their connections one after the other, once tokens have come or
while a long prompt is read: how long until the server's metrics count their answer no more.

In this process, each line is the median of ``--rounds`` rounds in which streams begin together.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from .client import Server
from .figures import Load, line, percentiles, summary
from .inside import measure_inside
from .loads import Bench, Questions

_READY_SECONDS = 120  # that a server may take to load a model


def main() -> None:
    """Print a line for each load."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.serve",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("target", metavar="MODEL or URL")
    parser.add_argument("--streams", type=int, nargs="*", default=None, help="[1 4 16]")
    parser.add_argument("--tokens", type=int, default=32, help="of an answer at most [32]")
    parser.add_argument("--prompt", type=int, default=32, help="tokens [32]")
    parser.add_argument("--intruder", type=int, default=0, help="tokens of its prompt")
    inside = parser.add_argument_group("in this process")
    inside.add_argument("--threads", type=int, default=None)
    inside.add_argument("--draft", default=None, help="a model that guesses")
    inside.add_argument("--rounds", type=int, default=3)
    inside.add_argument("--shape", default="", help="MODEL are random weights, made if missing")
    server = parser.add_argument_group("of a server")
    server.add_argument("--name", default="", help="for the lines; what it calls its model")
    server.add_argument("--key", default="", help="its API key")
    server.add_argument("--pid", type=int, help="its process, to tell the time that it takes")
    server.add_argument("--seconds", type=float, default=60.0, help="of each load [60]")
    server.add_argument("--poisson", type=float, nargs="+", default=[], help="arrivals a second")
    server.add_argument("--shared", type=int, default=0, help="tokens of a system prompt")
    server.add_argument("--systems", type=int, default=1, help="different ones [1]")
    server.add_argument("--chat", action="store_true", help="conversations in place of ids")
    server.add_argument("--vocabulary", type=int, default=30000, help="ids are below it [30000]")
    server.add_argument("--temperature", type=float, default=0.0)
    server.add_argument("--cancel", type=int, default=0, help="so many clients leave instead")
    server.add_argument("--compare", type=int, default=8, help="answers with those alone [8]")
    server.add_argument("--json", type=Path, help="add a line of JSON for each load to this file")
    args = parser.parse_args()
    if args.target.startswith("http"):
        _measure_server(args)
    else:
        args.streams = args.streams or [1, 4, 16]
        measure_inside(args)


def _measure_server(args: argparse.Namespace) -> None:
    server = Server(args.target, args.key, pid=args.pid)
    server.wait(_READY_SECONDS)
    model = server.model()
    questions = Questions(
        model,
        args.prompt,
        args.tokens,
        args.shared,
        args.systems,
        args.vocabulary,
        args.chat,
        args.temperature,
    )
    bench = Bench(server, questions)
    first = bench.ask(2**29)  # warm
    if first.error:
        raise SystemExit(f"{args.target}: {first.error}")

    def report(load: Load) -> None:
        found = summary(bench.compared(load, args.compare))
        print(line(args.name or model, found), flush=True)
        if args.json:
            with args.json.open("a") as file:
                settings = {k: v for k, v in vars(args).items() if k not in ("key", "json")}
                file.write(json.dumps({"server": args.name or model, **settings, **found}) + "\n")

    if args.cancel:
        for name, seconds in zip(
            ("writing", f"reading {args.intruder or 1500} tokens"),
            bench.leaving(args.cancel, args.intruder or 1500),
            strict=True,
        ):
            p50, _, p99 = percentiles(seconds)
            most = 1000 * max(seconds)
            print(
                f"{args.name or model}, {name}: gone {p50:.0f} / {p99:.0f} / {most:.0f} ms after "
                "its client (p50, p99, most)"
            )
        return
    asked = 0
    streams = args.streams if args.streams is not None else [] if args.poisson else [1, 4, 16]
    for n in streams:
        report(bench.closed(n, args.seconds, asked, args.intruder))
        asked += 1 << 16
    for rate in args.poisson:
        report(bench.poisson(rate, args.seconds, asked, args.intruder))
        asked += 1 << 16


if __name__ == "__main__":
    main()
