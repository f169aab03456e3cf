"""What a flow is: steps, edges, policies. Pure values; validation is in `flow_graph`."""

from __future__ import annotations

from typing import Any

import msgspec

from headrace.model.cron import DEFAULT_ZONE
from headrace.model.slots import DEFAULT_SLOTS

DEFAULT_PREFETCH = 64
DEFAULT_TIMEOUT_S = 60.0
DEFAULT_MAX_WAITING = 10_000
MAX_REPLY_TIMEOUT_S = 300.0
MAX_REPLICAS = 64
MAX_PREFETCH = 1_000
MAX_STEPS = 100
# Levels of a step's config; what is deeper does not fit protobuf.
MAX_CONFIG_NESTING = 25
# Of all keyed steps of a flow together: each slot is a consumer of the broker.
MAX_FLOW_SLOTS = 640
ORDINARY, REALTIME = "ordinary", "realtime"
# Of a timer.
MIN_EVERY_S = 0.01
MAX_EVERY_S = 86_400.0
# What becomes of ticks that nobody could send in time (an outage).
LATEST, NONE, ALL = "latest", "none", "all"
CATCH_UP = (LATEST, NONE, ALL)
# How long a step of an ordinary flow has nothing to do before it sleeps.
DEFAULT_IDLE_TIMEOUT_S = 30.0
MAX_IDLE_TIMEOUT_S = 1_800.0
# Messages per second.
MIN_RATE = 1 / 3600
MAX_RATE = 100_000.0
MAX_RETRIED_CODES = 32
# Of the stimuli that a flow keeps.
MAX_HISTORY_COUNT = 100_000
MIN_HISTORY_AGE_S = 60.0
MAX_HISTORY_AGE_S = 30 * 86_400.0
MAX_HISTORY_BYTES = 256 * 1024 * 1024
# What becomes of a message that fails for good.
DEAD_LETTER = "dead-letter"
SUSPEND_FLOW = "suspend-flow"
ON_ERROR = (DEAD_LETTER, SUSPEND_FLOW)


class RetryPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Attempts in all, first delay (doubling) and its cap, seconds.

    Up to `jitter` (0 to 1) of each delay is left out by chance, so that what failed together does not come again
    together. `on`: error codes that get another attempt, and no others do; empty: what the component calls
    retryable, and TIMEOUT.
    """

    attempts: int = 3
    backoff_s: float = 0.2
    max_delay_s: float = 30.0
    jitter: float = 0.2
    on: tuple[str, ...] = ()


class HistorySpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many of its stimuli a flow keeps, and how long (seconds); besides at most `MAX_HISTORY_BYTES`."""

    count: int = 10_000
    age_s: float = 7 * 86_400.0


class ErrorStep(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The step that gets what another step fails for good; with `dead_letter` a letter is kept besides."""

    step: str
    dead_letter: bool = False


class EdgeSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an edge does with a message, as JSONata: `condition` lets it through or not, `mapping` makes its body.
    Empty: everything passes, as it is."""

    condition: str = ""
    mapping: str = ""


class StepSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One step as written: `component` is a reference, not a digest; `every_s` makes a trigger a timer (0: none).

    A trigger without `component` is the mesh's own: a webhook or timer that runs no process (`model.mesh_trigger`).
    `key` (`header:NAME` or `body:/json/pointer`) keeps the order of messages with one key; `exactly_once` without
    it counts every message as a key of its own. `slots` 0 means the default.
    `rate_limit`: calls per second of all its replicas together (0: no limit).
    `on_error`: a message that fails for good becomes a dead letter, or waits and suspends the flow; `error_step`,
    instead of it: it goes to another step. With neither, the flow's `error_step` counts (`headrace.model.error_steps`).
    `cron` makes a trigger a timer too, with the clock of `time_zone`; `catch_up` says what becomes of ticks that an
    outage held up.
    `edges`: by receiver, those edges that have a condition or a mapping.
    `credential`: name of the credential that the component gets.
    `idle_timeout_s`: in an ordinary flow, how long it has nothing to do before it sleeps.
    """

    name: str
    component: str = ""
    function: str = ""
    config: dict[str, Any] = {}
    to: tuple[str, ...] = ()
    prefetch: int = DEFAULT_PREFETCH
    replicas: int = 1
    timeout_s: float = DEFAULT_TIMEOUT_S
    retry: RetryPolicy = RetryPolicy()
    every_s: float = 0.0
    rate_limit: float = 0.0
    key: str = ""
    slots: int = 0
    exactly_once: bool = False
    on_error: str = ""
    edges: dict[str, EdgeSpec] = {}
    cron: str = ""
    time_zone: str = DEFAULT_ZONE
    catch_up: str = LATEST
    idle_timeout_s: float = DEFAULT_IDLE_TIMEOUT_S
    credential: str = ""

    @property
    def has_process(self) -> bool:
        """Whether it is run by instances; the mesh's own trigger is not."""
        return bool(self.component)

    @property
    def runs(self) -> str:
        """What runs it, for people: its component as written, or the mesh itself."""
        return self.component or ("(timer)" if self.every_s or self.cron else "(webhook)")

    error_step: ErrorStep | None = None

    @property
    def keyed(self) -> bool:
        """Whether its messages go to slots, each with one owner at a time."""
        return bool(self.key) or self.exactly_once

    @property
    def slot_count(self) -> int:
        """Slots it has: 1 where it is not keyed."""
        return (self.slots or DEFAULT_SLOTS) if self.keyed else 1


class FlowSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A flow as written; `type` is `ordinary` or `realtime`; `reply_timeout_s` 0 means it does not reply.

    `rate_limit`: stimuli per second that are taken from outside (0: no limit); ticks do not count.
    `passthrough`: messages carry what the steps before have emitted. `error_step`: for steps that say nothing else.
    `history`: it keeps its stimuli."""

    type: str
    steps: tuple[StepSpec, ...]
    reply_timeout_s: float = 0.0
    max_waiting: int = DEFAULT_MAX_WAITING
    description: str = ""
    rate_limit: float = 0.0
    passthrough: bool = False
    error_step: ErrorStep | None = None
    history: HistorySpec | None = None
