"""`headrace top`: where the time goes, live."""

from __future__ import annotations

import asyncio
import contextlib
import time
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.cli.completion import complete_flows
from headrace.cli.invocation import AddressOption, DataOption, print_json, run_with_client
from headrace.cli.top_feed import TopFeed
from headrace.cli.top_rows import FlowView
from headrace.cli.top_state import TopState
from headrace.cli.top_text import head_line, nothing_line, steps_table

if TYPE_CHECKING:
    from headrace.client import AsyncClient

# A watched second begins when the instances were asked for the first time.
FIRST_LIMIT_S = 10.0


class Sort(StrEnum):
    """One of SORTS."""

    flow = "flow"
    rate = "rate"
    p50 = "p50"
    p99 = "p99"
    errors = "errors"
    waiting = "waiting"
    oldest = "oldest"


class Window(StrEnum):
    one = "1"
    ten = "10"
    sixty = "60"


def top(
    flow: Annotated[
        str, typer.Argument(metavar="[FLOW]", help="One flow; all that run, if none.", autocompletion=complete_flows)
    ] = "",
    once: Annotated[bool, typer.Option("--once", help="Print once, after the first second watched, and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a time.")] = False,
    interval: Annotated[
        int, typer.Option("--interval", metavar="SECONDS", min=1, max=3600, help="How often; whole seconds.")
    ] = 1,
    window: Annotated[Window, typer.Option("--window", help="Figures of the last 1, 10 or 60 seconds.")] = Window.ten,
    sort: Annotated[Sort, typer.Option("--sort", help="What comes first.")] = Sort.flow,
    wanted: Annotated[str, typer.Option("--filter", metavar="TEXT", help="Only steps with it in their line.")] = "",
    address: AddressOption = None,
    data: DataOption = None,
) -> None:
    """Watch steps and hops: rates, latencies, errors, what waits. On a terminal with keys (press ?), elsewhere as
    text."""
    from headrace.cli.top_screen import is_a_screen

    state = TopState(seconds=int(window), sort=str(sort), wanted=wanted)

    async def work(client: AsyncClient) -> None:
        # A wrong name, or a mesh that is not there, is said at once.
        await (client.get_flow(flow) if flow else client.server_info())
        if once or as_json or not is_a_screen():
            await _print(client, flow, state, interval, once=once, as_json=as_json)
        else:
            await _show(client, flow, state, interval)

    try:
        run_with_client(work, address=address, data=data, as_json=as_json)
    finally:
        for command in state.traces:
            print(command)


async def _show(client: AsyncClient, flow: str, state: TopState, interval: int) -> None:
    from headrace.cli.top_screen import Screen

    ended, renew = asyncio.Event(), asyncio.Event()
    shown: list[FlowView] = []

    def heard() -> None:
        """What comes first is shown at once, the rest with the next frame."""
        if not shown or not all(view.status and view.hops for view in shown):
            renew.set()

    feed = TopFeed(client, flow, heard)

    def pressed(key: str) -> None:
        if not state.press(key, shown):
            ended.set()
        renew.set()

    def end() -> None:
        ended.set()
        renew.set()

    watching = asyncio.create_task(feed.run(), name="top")
    watching.add_done_callback(lambda _: end())
    try:
        with Screen(pressed, renew.set, end) as screen:
            while not ended.is_set():
                if not state.paused:
                    shown, state.left_out = feed.views, feed.left_out
                width, height = screen.size
                screen.draw(state.screen(shown, width, height, time.monotonic()))
                renew.clear()
                await _set_or_late(renew, interval)
        if watching.done():
            _raise_cause(watching)
    except asyncio.CancelledError:
        if (task := asyncio.current_task()) is not None:
            task.uncancel()  # Ctrl-C: it is how this ends
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def _set_or_late(event: asyncio.Event, limit_s: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(limit_s):
            await event.wait()


def _raise_cause(watching: asyncio.Task[None]) -> None:
    """The error itself, and not the group that it came in."""
    error: BaseException | None = watching.exception()
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if error is not None:
        raise error


async def _print(client: AsyncClient, flow: str, state: TopState, interval: int, *, once: bool, as_json: bool) -> None:
    news = asyncio.Event()
    feed = TopFeed(client, flow, news.set)
    watching = asyncio.create_task(feed.run(), name="top")
    watching.add_done_callback(lambda _: news.set())
    loop = asyncio.get_running_loop()
    begun, printed = loop.time(), 0
    try:
        while not watching.done():
            complete = all(view.problem or (view.status and view.window(state.seconds)) for view in feed.views)
            if (feed.chosen and complete) or loop.time() - begun > FIRST_LIMIT_S:
                if as_json:
                    print_json(facts_of(feed.views, state))
                else:
                    print(("\n" if printed else "") + text_of(feed.views, state, feed.left_out), flush=True)
                printed += 1
                if once:
                    return
                await asyncio.wait([watching], timeout=interval)
                continue
            news.clear()
            await _set_or_late(news, 1.0)
        _raise_cause(watching)
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


def text_of(views: list[FlowView], state: TopState, left_out: int = 0) -> str:
    """A table of each flow, or what there is to say instead."""
    if not views:
        return nothing_line(views, state.wanted)
    parts = []
    for view in views:
        rows = state.rows([view])
        lines = [view.problem or head_line(view, state.seconds)]
        if view.status is not None:
            lines += [f"problem: {problem}" for problem in view.status.problems]
        lines += steps_table(rows, 10_000, several=False) if rows else [nothing_line([view], state.wanted)]
        parts.append("\n".join(lines))
    if left_out:
        parts.append(f"and {left_out} more flows; name one")
    return "\n\n".join(parts)


def facts_of(views: list[FlowView], state: TopState) -> dict[str, Any]:
    """The same as plain data, and each phase."""
    from headrace.cli.flow_tables import state_word
    from headrace.cli.plain import plain

    flows = []
    for view in views:
        window = view.window(state.seconds)
        steps = [
            {name: getattr(row, name) for name in row.__slots__ if name not in ("flow", "order")}
            for row in state.rows([view])
        ]
        flows.append(
            {
                "flow": view.flow,
                "state": state_word(view.status) if view.status is not None else "",
                "window_s": state.seconds,
                "covered_s": window.covered.ToMicroseconds() / 1e6 if window is not None else 0.0,
                "problems": [*([view.problem] if view.problem else []), *(view.status.problems if view.status else ())],
                "steps": steps,
                "phases": [plain(line) for line in window.phases] if window is not None else [],
            }
        )
    return {"flows": flows}
