"""Records of hops and stimuli as a mesh would make them, for tests."""

from __future__ import annotations

from headrace.model import message_ids
from headrace.model.hop_record import HopOutcome, HopRecord, RootRecord, Site

GATEWAY = Site("headrace-gateway", "default", "orders", step="gateway", instance="gateway-1")
PRICE = Site(
    "pricing", "default", "orders", 2, 3, "price", "pricing", "sha256:" + "ab" * 32, 7, "default.orders.d3.price.0"
)
START = 1_700_000_000_000_000_000


def execution(number: int) -> str:
    return message_ids.execution_id(str(number))


def hop(
    number: int = 0,
    *,
    site: Site = PRICE,
    sender: Site | None = GATEWAY,
    at_ns: int = START,
    took_ns: int = 1_000_000,
    outcome: HopOutcome = HopOutcome.PROCESSED,
    attempt: int = 1,
    code: str = "",
    sampled: bool = False,
) -> HopRecord:
    """One attempt of execution `number`: stored at `at_ns`, read and begun 100 us later, over after `took_ns`."""
    message = message_ids.first_message_id(str(number), site.step)
    read, mono = at_ns + 100_000, 5_000_000_000
    ended = mono + took_ns - 100_000
    return HopRecord(
        site=site, sender=sender, trace_id=execution(number), parent_id=message[:16], span_id=message[16:],
        sampled=sampled, message_id=message, execution_id=execution(number), attempt=attempt, opens=attempt == 1,
        delivered=1, in_doubt=False, outputs=1, replied=False, outcome=outcome, code=code,
        problem="it failed" if code else "", retry_after_ns=0, slot=-1, sent_at_unix_ns=at_ns - 200_000,
        stored_at_unix_ns=at_ns, received_at_unix_ns=read, received_at_mono_ns=mono, began_at_mono_ns=mono,
        entered_at_mono_ns=mono + 100_000, left_at_mono_ns=ended - 100_000, written_at_mono_ns=ended,
        ended_at_mono_ns=ended,
    )  # fmt: skip


def root(
    number: int = 0, *, at_ns: int = START, took_ns: int = 5_000_000, status: int = 200, code: str = ""
) -> RootRecord:
    """The request that execution `number` began with."""
    phases = (("gateway-in", at_ns, at_ns + 50_000),)
    problem = "late" if code else ""
    return RootRecord(
        GATEWAY, "webhook", "POST /hook/orders", execution(number), "", execution(number)[:16], False,
        execution(number), at_ns, at_ns + took_ns, phases, None, "", status, code, problem,
    )  # fmt: skip
