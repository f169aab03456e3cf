"""`headrace bench`: how fast the mesh that runs is, in a quarter of a minute; nothing of it is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from headrace.cli.bench_compare import compare
from headrace.cli.completion import complete_flows
from headrace.cli.invocation import AddressOption, DataOption, JsonOption, print_json, run_with_client
from headrace.model.errors import WrongState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.api.flow.v1 import flow_pb2
    from headrace.cli.http_caller import HttpAnswer, HttpRequest
    from headrace.client import AsyncClient


class _RunByDefault(TyperGroup):
    """`headrace bench ORDERS` is `headrace bench run ORDERS`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(
            ctx, args if args[:1] in ([name] for name in ctx.help_option_names) else self._said(args)
        )

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        return super().resolve_command(ctx, self._said(args))

    def _said(self, args: list[str]) -> list[str]:
        return args if args and args[0] in self.commands else ["run", *args]


app = typer.Typer(
    cls=_RunByDefault,
    help="Measure latency and throughput of the mesh that runs (`run`, which need not be said); compare two files of "
    "the whole bench.",
)
app.command()(compare)

# Before anything is measured: imports and first allocations.
WARM_UP_S = 1.0
MOST_PER_S = 20_000
CALL_LIMIT_S = 10.0


@app.command()
def run(
    flow: Annotated[
        str,
        typer.Argument(
            help="A flow that runs, which really gets the requests; else one made for this.",
            autocompletion=complete_flows,
        ),
    ] = "",
    body: Annotated[str, typer.Option(metavar="TEXT", help="What is posted; default 256 bytes.")] = "",
    content_type: Annotated[str, typer.Option(help="Its media type.")] = "application/json",
    seconds: Annotated[float, typer.Option(min=1, max=600, help="Length of each of the two runs.")] = 5.0,
    rate: Annotated[float, typer.Option(min=1, max=5000, help="Requests a second while latency is measured.")] = 200.0,
    connections: Annotated[int, typer.Option(min=1, max=64, help="Connections while throughput is measured.")] = 16,
    as_json: JsonOption = False,
    address: AddressOption = None,
    data: DataOption = None,
) -> None:
    """Measure the mesh that runs: latency at a rate, then how many requests a second it answers.

    Requests go over HTTP through the gateway, by default to a flow of three steps that is made for it and removed
    afterwards. The whole bench, with floors, faults and many flows, is `make bench` in the repository."""
    message = body.encode() or (b'{"note": "' + b"x" * 244 + b'"}')

    async def work(client: AsyncClient) -> dict[str, Any]:
        from headrace.cli.bench_flow import bench_flow

        def say(line: str) -> None:
            if not as_json:
                print(f"  {line}", file=sys.stderr, flush=True)

        async with contextlib.AsyncExitStack() as stack:
            if flow:
                status = await client.get_status(flow)
            else:
                say("bringing in a flow of three steps")
                status = await stack.enter_async_context(bench_flow(client))
            load = _Load(status, message, content_type, connections)
            say(f"latency at {rate:g} requests/s for {seconds:g} s")
            await load.run(rate, WARM_UP_S)
            steady = await load.run(rate, seconds)
            hops = await client.hops(status.flow)
            say(f"throughput over {connections} connections for {seconds:g} s")
            full = await load.run(0, seconds)
        return {
            "flow": status.flow.removeprefix("flows/"),
            "profile": status.profile,
            "body_bytes": len(message),
            "latency": {"rate": rate, **figures(steady, seconds)},
            "hops": [
                _hop(row) for step in status.steps for row in hops.phases if (row.step, row.phase) == (step.step, "hop")
            ],
            "throughput": {"connections": connections, **figures(full, seconds)},
        }

    found = run_with_client(work, address=address, data=data, as_json=as_json)
    if as_json:
        print_json(found)
    else:
        print(_text(found))


class _Load:
    """Posts one message over and over to a flow's webhook."""

    def __init__(self, status: flow_pb2.FlowStatus, body: bytes, content_type: str, connections: int) -> None:
        if not status.webhook_url:
            raise WrongState(
                f"flow {status.flow.removeprefix('flows/')!r} takes no HTTP requests now",
                reason="NO_WEBHOOK",
                next_step="Name a flow with a webhook that runs, or none",
            )
        from headrace.cli.http_caller import HttpRequest

        where, _, path = status.webhook_url.removeprefix("http://").partition("/")
        self._host, _, port = where.rpartition(":")
        self._port = int(port)
        self._request: HttpRequest = HttpRequest(f"/{path}", body, {"content-type": content_type})
        self._connections = connections

    async def run(self, rate: float, seconds: float) -> Sequence[HttpAnswer]:
        """Answers of so many seconds; `rate` 0: as fast as they come."""
        from headrace.cli.http_caller import call_all

        stopping = threading.Event()
        count = int((rate or MOST_PER_S) * seconds)

        def call() -> Sequence[HttpAnswer]:
            with _after(seconds, stopping):
                return call_all(
                    [self._request] * count,
                    host=self._host.strip("[]"),
                    port=self._port,
                    connections=self._connections,
                    rate=rate,
                    timeout_s=CALL_LIMIT_S,
                    stopping=stopping,
                )

        try:
            answers = await asyncio.to_thread(call)
        finally:
            stopping.set()
        return [answer for answer in answers if answer.received_ns]


@contextlib.contextmanager
def _after(seconds: float, event: threading.Event) -> Any:
    timer = threading.Timer(seconds, event.set)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def figures(answers: Sequence[HttpAnswer], seconds: float) -> dict[str, Any]:
    """What callers saw: answers a second, percentiles of their latency in milliseconds, errors by status."""
    good = sorted(answer.latency_us / 1000 for answer in answers if 200 <= answer.status < 300)
    errors: dict[str, int] = {}
    for answer in answers:
        if not 200 <= answer.status < 300:
            errors[str(answer.status)] = errors.get(str(answer.status), 0) + 1
    shares = {"p50_ms": 0.5, "p95_ms": 0.95, "p99_ms": 0.99}
    percentiles = {
        name: round(good[min(len(good) - 1, int(share * len(good)))], 2) if good else 0.0
        for name, share in shares.items()
    }
    return {"answers": len(good), "answers_per_s": round(len(good) / seconds, 1), **percentiles, "errors": errors}


def _hop(row: Any) -> dict[str, Any]:
    values = {"p50_ms": row.p50_us, "p95_ms": row.p95_us, "p99_ms": row.p99_us}
    return {"step": row.step, **{name: round(value / 1000, 2) for name, value in values.items()}}


def _text(found: dict[str, Any]) -> str:
    from headrace.cli.tables import table

    latency, throughput = found["latency"], found["throughput"]
    rows = [
        (f"request to answer at {latency['rate']:g}/s", *_cells(latency)),
        *[(f"hop {hop['step']}", *_cells(hop)) for hop in found["hops"]],
        (f"saturated, {throughput['connections']} connections", *_cells(throughput)),
    ]
    lines = [
        f"flow {found['flow']}, profile {found['profile']}, bodies of {found['body_bytes']} bytes",
        "",
        table(("", "P50 MS", "P95 MS", "P99 MS"), rows),
        "",
        f"{throughput['answers_per_s']:g} answers/s",
    ]
    for name, run in (("at a rate", latency), ("saturated", throughput)):
        if run["errors"]:
            words = ", ".join(f"{count} of status {status}" for status, count in sorted(run["errors"].items()))
            lines.append(f"errors {name}: {words}")
    return "\n".join(lines)


def _cells(values: dict[str, Any]) -> tuple[float, float, float]:
    return values["p50_ms"], values["p95_ms"], values["p99_ms"]
