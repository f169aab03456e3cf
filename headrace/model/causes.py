"""Why a flow stands still or is slow: the causes that `headrace why` can name, most fundamental first.

One table. The orchestrator's findings, the words of the command line and docs/troubleshooting.md are made from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType


class Cause(StrEnum):
    """Names of causes; part of the API."""

    MESH_NOT_RUNNING = "MESH_NOT_RUNNING"
    ORCHESTRATOR_UNREACHABLE = "ORCHESTRATOR_UNREACHABLE"
    BROKER_REFUSES = "BROKER_REFUSES"
    BROKER_UNREACHABLE = "BROKER_UNREACHABLE"
    BROKER_FULL = "BROKER_FULL"
    BROKER_SLOW = "BROKER_SLOW"
    NO_LEADER = "NO_LEADER"
    AGENT_GONE = "AGENT_GONE"
    GATEWAY_GONE = "GATEWAY_GONE"
    FLOW_STOPPED = "FLOW_STOPPED"
    SUSPENDED_BY_MESSAGE = "SUSPENDED_BY_MESSAGE"
    FLOW_SUSPENDED = "FLOW_SUSPENDED"
    NOT_SCHEDULED = "NOT_SCHEDULED"
    SIDECAR_GONE = "SIDECAR_GONE"
    SIDECAR_SILENT = "SIDECAR_SILENT"
    SIDECAR_CUT_OFF = "SIDECAR_CUT_OFF"
    POISON_MESSAGE = "POISON_MESSAGE"
    START_FAILED = "START_FAILED"
    CRASH_LOOP = "CRASH_LOOP"
    COMPONENT_DEAD = "COMPONENT_DEAD"
    COMPONENT_STOPPED = "COMPONENT_STOPPED"
    COMPONENT_BLOCKED = "COMPONENT_BLOCKED"
    WARM_UP_SLOW = "WARM_UP_SLOW"
    COMPONENT_BUSY = "COMPONENT_BUSY"
    WRONG_CREDENTIALS = "WRONG_CREDENTIALS"
    RETRY_DELAY = "RETRY_DELAY"
    REBOUND_DELAY = "REBOUND_DELAY"
    STEP_RATE_LIMIT = "STEP_RATE_LIMIT"
    NOTHING_DELIVERED = "NOTHING_DELIVERED"
    OUTPUT_UNANSWERED = "OUTPUT_UNANSWERED"
    STEP_TOO_SLOW = "STEP_TOO_SLOW"
    DOWNSTREAM_FULL = "DOWNSTREAM_FULL"
    DRAINING_TOO_LONG = "DRAINING_TOO_LONG"
    OPERATION_WAITS = "OPERATION_WAITS"
    FLOW_RATE_LIMIT = "FLOW_RATE_LIMIT"
    MESSAGES_FAIL = "MESSAGES_FAIL"
    CLOCK_SKEW = "CLOCK_SKEW"
    UNEXPLAINED = "UNEXPLAINED"
    TIMER_LATE = "TIMER_LATE"
    NO_INPUT = "NO_INPUT"
    NOTHING_WRONG = "NOTHING_WRONG"


@dataclass(frozen=True, slots=True)
class CauseRule:
    """What people see, what it comes from, what it is known by, and what they type next (`{flow}`, `{step}`,
    `{deployment}`, and `{more}`, one instance more than there are, are filled in)."""

    symptom: str
    meaning: str
    evidence: str
    commands: tuple[str, ...]


_LOGS = "headrace logs {flow} --step {step}"
_STATUS = "headrace flow status {flow}"

CAUSES: Mapping[Cause, CauseRule] = MappingProxyType(
    {
        Cause.MESH_NOT_RUNNING: CauseRule(
            "every command fails",
            "no mesh runs on the data directory, or its supervisor is gone",
            "what the data directory says, and whether the process that it names is there",
            ("headrace up", "headrace doctor"),
        ),
        Cause.ORCHESTRATOR_UNREACHABLE: CauseRule(
            "messages go on, but flows cannot be looked at or changed",
            "no orchestrator answers at the addresses that are known; steps that run need none",
            "what the connection says; which of the mesh's processes are there, and whether the broker answers",
            ("headrace status",),
        ),
        Cause.BROKER_REFUSES: CauseRule(
            "nothing moves; processes say that they are not let in",
            "the broker does not take the credentials that the mesh has (any more)",
            "the broker's own answer to the connection",
            ("headrace status", "headrace up --nats URL"),
        ),
        Cause.BROKER_UNREACHABLE: CauseRule(
            "nothing moves; callers get 503 or 504",
            "the NATS server does not answer: it is down, stopped, or the network between is",
            "an unanswered ping of the broker, and for how long the connection has been down",
            ("headrace status", "headrace doctor"),
        ),
        Cause.BROKER_FULL: CauseRule(
            "nothing is accepted; callers get 504",
            "the broker answers but stores nothing: its disk is full, or a limit of its storage is reached",
            "a message that it was given to store and did not acknowledge, or refused",
            ("df -h", "headrace status"),
        ),
        Cause.BROKER_SLOW: CauseRule(
            "everything is slow",
            "the broker takes long to answer, or to store: no processor, a slow disk, a slow network",
            "how long a ping and a stored message took, beside what is usual",
            ("headrace status",),
        ),
        Cause.NO_LEADER: CauseRule(
            "messages go on, but nothing is started, stopped, switched, or woken; timers do not tick",
            "no orchestrator leads, or the one that does cannot be reached",
            "the lease, and whether who holds it answers",
            ("headrace status", "headrace flow history"),
        ),
        Cause.AGENT_GONE: CauseRule(
            "steps do not start; what died does not come back",
            "the agent that starts and stops instances does not answer",
            "the orchestrator's connection to it",
            ("headrace status",),
        ),
        Cause.GATEWAY_GONE: CauseRule(
            "HTTP callers cannot connect",
            "no gateway answers",
            "nobody answers where gateways are asked for their addresses",
            ("headrace status",),
        ),
        Cause.FLOW_STOPPED: CauseRule(
            "callers get 503 FLOW_STOPPED, nothing runs",
            "a person stopped the flow, or its start failed",
            "the flow's state, the last thing that was decided, and what waits for the next start",
            ("headrace flow start {flow}", "headrace flow history {flow}"),
        ),
        Cause.SUSPENDED_BY_MESSAGE: CauseRule(
            "messages are accepted and not worked on",
            "a message failed for good in a step with `on_error: suspend-flow`",
            "the step, the message, its execution and its error",
            ("headrace logs {flow} --step {step}", "headrace flow resume {flow}"),
        ),
        Cause.FLOW_SUSPENDED: CauseRule(
            "messages are accepted and not worked on",
            "a person suspended the flow",
            "since when, how many are kept, and whether a limit was reached",
            ("headrace flow resume {flow}",),
        ),
        Cause.NOT_SCHEDULED: CauseRule(
            "messages wait for a step that nobody runs",
            "fewer instances run than are wanted",
            "instances wanted and known to the agent",
            ("headrace status", _STATUS),
        ),
        Cause.SIDECAR_GONE: CauseRule(
            "messages wait for a step; its instance restarts",
            "the sidecar's process ended and is being started again",
            "how often it was started, and how it ended",
            (_LOGS, _STATUS),
        ),
        Cause.SIDECAR_SILENT: CauseRule(
            "messages wait for a step that looks RUNNING",
            "the sidecar's process is there and does not answer: it is stopped, or has no processor",
            "a question that it has not answered, and its process id",
            ("ps -o pid,stat,pcpu,args -p {pid}", "kill -9 {pid}"),
        ),
        Cause.SIDECAR_CUT_OFF: CauseRule(
            "messages wait for a step that looks RUNNING",
            "the sidecar does not reach the broker, which others do",
            "its connection's state, and the broker's answers to others",
            ("headrace status", _STATUS),
        ),
        Cause.POISON_MESSAGE: CauseRule(
            "a step's component dies again and again",
            "one message takes the component down; it is tried alone, and is a dead letter at its third crash",
            "the message that was in work at each crash",
            ("headrace dead-letters list {flow}", _LOGS),
        ),
        Cause.START_FAILED: CauseRule(
            "a step is FAILED",
            "its component cannot be started or initialised",
            "where it failed, with the component's own words",
            (_LOGS, "headrace flow publish {flow}"),
        ),
        Cause.CRASH_LOOP: CauseRule(
            "a step is FAILED, its component restarts",
            "its component dies again and again, whatever the message",
            "how often, how it ended, and the last line it wrote",
            (_LOGS, "headrace flow rollback {flow}"),
        ),
        Cause.COMPONENT_DEAD: CauseRule(
            "messages wait for a step",
            "its component's process is gone and is being started again",
            "how it ended, and how often it was started",
            (_LOGS,),
        ),
        Cause.COMPONENT_STOPPED: CauseRule(
            "messages wait for a step",
            "its component's process is stopped (SIGSTOP, a debugger)",
            "the state of its process, as the system has it",
            ("kill -CONT {pid}", "kill -9 {pid}"),
        ),
        Cause.COMPONENT_BLOCKED: CauseRule(
            "messages wait for a step; after the step's timeout its component is restarted",
            "plain code blocks the component's event loop: every call of it waits",
            "since when it has not answered, and the stack of its threads",
            (_LOGS,),
        ),
        Cause.WARM_UP_SLOW: CauseRule(
            "a start, publish or restart takes long",
            "an instance is stuck in one phase of getting ready",
            "the phase, since when, and the component's stack where it runs its init hook",
            (_LOGS, "headrace flow cancel {flow}"),
        ),
        Cause.COMPONENT_BUSY: CauseRule(
            "messages wait for a step",
            "calls of its component take long",
            "the call that runs for longest, its message, and where it stands",
            ("headrace flow scale {flow} {step}={more}", _LOGS),
        ),
        Cause.WRONG_CREDENTIALS: CauseRule(
            "calls of a step fail, or it does not start",
            "what the component talks to does not take its credentials",
            "the component's error, which says so",
            (_LOGS, "headrace flow restart {flow}"),
        ),
        Cause.RETRY_DELAY: CauseRule(
            "messages of a step take long",
            "calls failed and wait for their next attempt",
            "what they failed with, and when the next attempt is due",
            (_LOGS, "headrace flow status {flow} --policy"),
        ),
        Cause.REBOUND_DELAY: CauseRule(
            "messages of a step take long",
            "the component asked to be called again later",
            "its words, and when the next attempt is due",
            (_LOGS,),
        ),
        Cause.STEP_RATE_LIMIT: CauseRule(
            "messages wait for a step that has nothing to do",
            "the step's rate limit lets no more through",
            "the limit, and how many wait",
            ("headrace flow status {flow} --policy",),
        ),
        Cause.NOTHING_DELIVERED: CauseRule(
            "messages wait for a step that has nothing to do",
            "the broker gives the step nothing, or another instance has its slot",
            "what the sidecar says of its consumer",
            (_STATUS, "headrace flow restart {flow}"),
        ),
        Cause.OUTPUT_UNANSWERED: CauseRule(
            "a step's messages stay in flight",
            "the broker does not acknowledge what the step sends",
            "since when, and to which step",
            ("df -h", "headrace status"),
        ),
        Cause.STEP_TOO_SLOW: CauseRule(
            "more and more messages wait for a step; callers get 429",
            "more comes than the step gets done",
            "how many wait, for how long, and how many are done per second",
            ("headrace flow scale {flow} {step}={more}", "headrace flow status {flow} --policy"),
        ),
        Cause.DOWNSTREAM_FULL: CauseRule(
            "a step's messages stay in flight though its calls are done",
            "a step that it sends to has as many messages waiting as it may; the cause is there",
            "the edge, since when it is full, and how many outputs wait",
            ("headrace why {flow}/{receiver}",),
        ),
        Cause.DRAINING_TOO_LONG: CauseRule(
            "a stop or a publish takes long",
            "an old deployment has not finished its messages within its limit",
            "what waits and what is in flight there",
            ("headrace flow drain-choice {flow} --deployment {deployment} dead-letter", _STATUS),
        ),
        Cause.OPERATION_WAITS: CauseRule(
            "a verb takes long",
            "an operation is at work on the flow",
            "which one, since when, and what it waits for",
            ("headrace flow status {flow}", "headrace flow cancel {flow}"),
        ),
        Cause.FLOW_RATE_LIMIT: CauseRule(
            "callers get 429 RATE_LIMITED",
            "more comes from outside than the flow's rate limit lets in",
            "the limit, and how many were refused in the last minute",
            ("headrace flow status {flow} --policy",),
        ),
        Cause.MESSAGES_FAIL: CauseRule(
            "results are missing",
            "messages fail for good and go to the dead letters",
            "how many lately, where, and with which reason",
            ("headrace dead-letters list {flow}", "headrace dead-letters replay {flow} --all"),
        ),
        Cause.CLOCK_SKEW: CauseRule(
            "latencies look negative or far too long; timers tick at odd times",
            "clocks of two machines (or of a process and its broker) differ",
            "by how much, and between whom",
            ("date -u", "timedatectl"),
        ),
        Cause.UNEXPLAINED: CauseRule(
            "messages wait and nothing goes on",
            "none of the known causes was found; please report it with what is said here",
            "all that was seen",
            (_STATUS, _LOGS),
        ),
        Cause.TIMER_LATE: CauseRule(
            "a timer's flow does nothing",
            "ticks are due and do not come",
            "the interval, and when the last tick came",
            ("headrace status", _STATUS),
        ),
        Cause.NO_INPUT: CauseRule(
            "nothing happens",
            "nothing comes in: no request, tick or emit",
            "when the trigger got its last message",
            ("headrace inject {flow} '{{}}'", _STATUS),
        ),
        Cause.NOTHING_WRONG: CauseRule(
            "none",
            "nothing that stalls or slows the flow was found",
            "messages per second, what waits, and the oldest of it",
            ("headrace flow status {flow}",),
        ),
    }
)


def rank(cause: Cause) -> int:
    """How fundamental a cause is, within its severity: lower first."""
    return _RANKS[cause]


_RANKS = {cause: number for number, cause in enumerate(CAUSES)}
