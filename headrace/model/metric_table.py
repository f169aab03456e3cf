"""The one table of metrics: name, type, unit, labels, meaning. Exposition, docs, dashboards and rules go by it.

Names are those of Prometheus: base units, `_total` for counters. Labels are few and their values come from what the
mesh itself names (flows, steps, phases, ...), never from a caller: the number of series follows from what is deployed.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

PREFIX = "headrace_"


class Kind(StrEnum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    """`name` as it is exposed, without what a histogram adds. `area` is the heading in the documentation."""

    name: str
    kind: Kind
    unit: str
    labels: tuple[str, ...]
    meaning: str
    area: str

    @property
    def family(self) -> str:
        """OpenMetrics' name of the family: a counter's without `_total`."""
        return self.name.removesuffix("_total") if self.kind is Kind.COUNTER else self.name

    def sample_names(self) -> tuple[str, ...]:
        """Names that queries may use."""
        if self.kind is Kind.HISTOGRAM:
            return (f"{self.name}_bucket", f"{self.name}_count", f"{self.name}_sum")
        return (self.name,)


_COLUMNS = {"c": Kind.COUNTER, "g": Kind.GAUGE, "h": Kind.HISTOGRAM}
_STEP = "flow step"


def _metric(area: str, name: str, kind: str, labels: str, meaning: str) -> Metric:
    unit = next((unit for unit in ("seconds", "bytes") if name.removesuffix("_total").endswith(unit)), "")
    return Metric(PREFIX + name, _COLUMNS[kind], unit, tuple(labels.split()), meaning, area)


def _area(area: str, *rows: tuple[str, str, str, str]) -> tuple[Metric, ...]:
    return tuple(_metric(area, *row) for row in rows)


METRICS: tuple[Metric, ...] = (
    *_area(
        "Hops",
        (
            "hop_phase_duration_seconds",
            "h",
            "flow step phase receiver revision",
            "Time of a hop's phase (ARCHITECTURE, clocks and phases), `hop` for the whole; bounds within 3.2 %",
        ),
        ("hop_clock_skew_total", "c", "flow step phase", "Phases that two clocks made negative; they count as zero"),
    ),
    *_area(
        "Steps",
        ("step_messages_total", "c", "flow step outcome", "Inputs done with: processed, rejected, handed_over (to the error step), dead_lettered"),
        ("step_dead_letters_total", "c", "flow step reason", "Dead letters that the step's instances wrote, by reason: the mesh's own (TIMEOUT, "
         "COMPONENT_DIED, ...) by name, codes of a component's own together as `component`"),
        ("step_received_total", "c", _STEP, "Deliveries of inputs, repeated ones too"),
        ("step_emitted_total", "c", _STEP, "Outputs stored for the next steps"),
        ("step_failed_attempts_total", "c", _STEP, "Attempts that failed: by error, time limit, refused output or the component's death"),
        ("step_retries_total", "c", _STEP, "Of those: attempts that were, or will be, repeated"),
        ("step_rebounds_total", "c", _STEP, "Inputs that the component asked to see again later"),
        ("step_timeouts_total", "c", _STEP, "Attempts over the step's time limit"),
        ("step_crashed_calls_total", "c", _STEP, "Calls that ran when the component died"),
        ("step_redeliveries_total", "c", _STEP, "Inputs that the broker delivered again"),
        ("step_duplicates_total", "c", _STEP, "Inputs and outputs found done already, and not done again"),
        ("step_in_doubt_total", "c", _STEP, "Inputs of which nobody knows whether they were worked on before"),
        ("step_edge_full_total", "c", _STEP, "Outputs refused because the next step's queue was full; they are repeated"),
        ("step_waiting_messages", "g", _STEP, "Messages stored for the step that no instance has yet"),
        ("step_in_flight_messages", "g", _STEP, "Messages that its instances hold"),
        ("step_oldest_message_age_seconds", "g", _STEP, "Age of the oldest message stored for the step; 0 without one"),
        ("step_instances", "g", "flow step state", "Instances by state: SLEEPING, STARTING, RUNNING, SHUTTING_DOWN, FAILED"),
        ("step_restarts_total", "c", "flow step part", "Processes started again after an end of their own: sidecar, component"),
        ("step_start_seconds", "g", "flow step stage", "Stages of the newest start of an instance, `total` for the whole"),
    ),
    *_area(
        "Flows",
        ("flow_state", "g", "flow state", "1 for the state that the flow is in, 0 for the others"),
        ("flow_serving", "g", "flow", "1 when the flow's health is SERVING, else 0"),
        ("flow_stored_messages", "g", "flow", "Messages in the flow's stream, waiting and in flight, of all deployments"),
        ("flow_stored_bytes", "g", "flow", "Size of the flow's stream"),
        ("flow_deployment_start_seconds", "g", "flow stage", "Stages of the running deployment's start: `prepare` is its "
         "warm-up, `activate` the switch to it, `listener_gap` the pause of an exclusive listener"),
        ("flow_dead_letters_kept", "g", "flow", "Dead letters kept"),
        ("flow_dead_letters_total", "c", "flow", "Dead letters ever stored"),
        ("flow_dead_letters_pushed_out", "g", "flow", "Dead letters that made room for newer ones, or grew too old, so far"),
        ("flow_dropped_messages_total", "c", "flow", "Messages that people dropped (stops with DROP)"),
        ("flow_ingress_repairs_total", "c", "flow", "Stale switches of the ingress that were put right"),
        ("flow_strays_total", "c", "flow", "Messages found under an owner nobody works for, and moved"),
        ("flow_stuck_redelivered_total", "c", "flow", "Messages that the broker would not have delivered, delivered again"),
    ),
    *_area(
        "Gateways",
        ("gateway_requests_total", "c", "flow status reason", "Requests by class of the answer's status (2xx) and reason: "
         "accepted, replied, repeated, or the code of the refusal; without a flow where there is none of that name"),
        ("gateway_requests_in_work", "g", "", "Requests that gateways work on now"),
        ("gateways", "g", "", "Gateways that answered"),
    ),
    *_area(
        "Orchestrator",
        ("leader", "g", "", "1 when this orchestrator leads; only the leader tells of flows, steps and gateways"),
        ("leader_epoch", "g", "", "Raised with each change of leader"),
        ("agent_up", "g", "", "1 when the agent answers"),
        ("api_calls_total", "c", "method code", "gRPC calls that ended, by method and code"),
        ("api_open_streams", "g", "", "Streams (watches, logs) that are served now"),
    ),
    *_area(
        "Broker",
        ("broker_up", "g", "", "1 when JetStream answered"),
        ("broker_answer_seconds", "g", "", "How long that answer took"),
        ("broker_streams", "g", "", "Streams of the account: flows, dead letters, buckets"),
        ("broker_consumers", "g", "", "Consumers of the account"),
        ("broker_stored_bytes", "g", "", "What the account's streams hold"),
        ("broker_api_errors_total", "c", "", "JetStream calls of the account that were refused"),
        ("broker_server_up", "g", "server", "1 when the server's monitoring answered"),
        ("broker_server_memory_bytes", "g", "server", "Memory of the server's process"),
        ("broker_server_connections", "g", "server", "Clients connected"),
        ("broker_server_slow_consumers_total", "c", "server", "Clients that were cut off because they read too slowly"),
        ("broker_server_received_bytes_total", "c", "server", "Received from clients and other servers"),
        ("broker_server_sent_bytes_total", "c", "server", "Sent to clients and other servers"),
        ("broker_server_storage_limit_bytes", "g", "server", "What JetStream may store on the server"),
        ("broker_server_disk_free_bytes", "g", "server", "Free on the disk of its store; where that is on this machine"),
        ("broker_server_disk_size_bytes", "g", "server", "Size of that disk"),
    ),
    *_area(
        "Telemetry",
        ("spans_sent_total", "c", "", "Spans of hops that a collector took"),
        ("spans_dropped_total", "c", "", "What was lost of them: spans that the collector refused, and attempts of hops (up to six spans each) that found no room"),
        ("metrics_processes", "g", "", "Sidecars and gateways whose figures are in this answer"),
        ("metrics_collect_seconds", "g", "", "How long this answer took to put together"),
        ("metrics_unread_flows", "g", "", "Flows whose waiting messages could not be read in time"),
        ("metrics_overflowed_total", "c", "metric", "Label sets over the bound of series, at each answer: what they count is under the label value _other"),
    ),
)  # fmt: skip

BY_NAME = {metric.name.removeprefix(PREFIX): metric for metric in METRICS}
"""By the name without `headrace_`."""

OTHER = "_other"
"""Value of every label of what is over the bound of series."""

BOUNDS_S = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
)  # fmt: skip
"""Upper bounds (`le`) of a histogram's buckets, seconds; +Inf follows."""
