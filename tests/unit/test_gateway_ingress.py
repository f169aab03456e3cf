"""A gateway whose route is out of date publishes by the new one as soon as the broker says that nobody listens."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from headrace.model.route import Route
from headrace.ports import PublishUnknown, Stored
from services.gateway.domain.refusals import Refusal
from services.gateway.ingress import Ingress, Placement, Stimulus

OLD = Route("orders", "RUNNING", trigger="order")
NEW = Route("orders", "RUNNING", trigger="entry", key="header:customer", slots=4)


class Lane:
    """Takes what goes to `listed`; nobody answers anything else, or (`silent`) it is not known what became of it."""

    def __init__(self, listed: str, *, silent: bool = False) -> None:
        self.listed = listed
        self.silent = silent
        self.tried: list[tuple[str, str]] = []

    async def publish(self, subject: str, payload: bytes, *, message_id: str, **_: Any) -> Stored:
        self.tried.append((subject, message_id))
        if subject == self.listed:
            return Stored(1, duplicate=False)
        if self.silent:
            self.silent = False
            raise PublishUnknown("no answer")
        raise PublishUnknown("no responders", no_responders=True)


class Table:
    def __init__(self, route: Route) -> None:
        self.route = route

    async def read_again(self, flow: str) -> Route | None:
        return self.route


def stimulus() -> Stimulus:
    return Stimulus(
        route=OLD,
        execution="e",
        shared=b"",
        deadline=asyncio.get_running_loop().time() + 0.5,
        place=lambda route: Placement(route.trigger, f"id for {route.trigger}", "", 3 if route.slots > 1 else 0),
    )


async def test_it_goes_to_the_trigger_and_slot_of_the_route_read_again() -> None:
    lane: Any = Lane("hr.default.orders.in.entry.3")
    await Ingress(lane, "default", Table(NEW)).publish(stimulus(), lambda: False)
    assert lane.tried == [
        ("hr.default.orders.in.order.0", "id for order"),
        ("hr.default.orders.in.entry.3", "id for entry"),
    ]


async def test_what_may_have_been_stored_keeps_its_id_and_place() -> None:
    """Else it could be stored twice; where it lies, it is a stray that the orchestrator moves."""
    lane: Any = Lane("hr.default.orders.in.entry.3", silent=True)
    with pytest.raises(Refusal) as refused:
        await Ingress(lane, "default", Table(NEW)).publish(stimulus(), lambda: False)
    assert refused.value.status == 504
    assert set(lane.tried) == {("hr.default.orders.in.order.0", "id for order")}


@pytest.mark.parametrize(("route", "status"), [(Route("orders", "STOPPED", trigger="entry"), 503)])
async def test_a_flow_that_was_stopped_meanwhile_is_refused_at_once(route: Route, status: int) -> None:
    lane: Any = Lane("nothing")
    with pytest.raises(Refusal) as refused:
        await Ingress(lane, "default", Table(route)).publish(stimulus(), lambda: False)
    assert refused.value.status == status
    assert len(lane.tried) == 1
