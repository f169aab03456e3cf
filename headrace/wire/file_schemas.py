"""JSON Schemas (draft-07, which every editor knows) of flow files and of component.yaml.

Made from what the readers of these files go by: their keys, limits, patterns and defaults. `tools/file_schemas.py`
writes them to `headrace/schemas`; a test holds the files equal. They flag what an editor can see: misspelt fields,
wrong types, values out of range. What needs the whole (names of receivers, cycles, functions of components) is said by
`headrace flow validate`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from headrace.model.cron import DEFAULT_ZONE
from headrace.model.durations import DURATION_PATTERN, format_duration
from headrace.model.expressions import MAX_EXPRESSION_CHARACTERS
from headrace.model.flow_graph import FLOW_TYPES, MAX_ATTEMPTS, MAX_WAITING_LIMIT
from headrace.model.flow_spec import (
    CATCH_UP,
    DEFAULT_IDLE_TIMEOUT_S,
    DEFAULT_MAX_WAITING,
    DEFAULT_PREFETCH,
    DEFAULT_TIMEOUT_S,
    MAX_HISTORY_COUNT,
    MAX_PREFETCH,
    MAX_REPLICAS,
    MAX_RETRIED_CODES,
    MAX_STEPS,
    ON_ERROR,
    HistorySpec,
    RetryPolicy,
)
from headrace.model.manifest import (
    DEFAULT_ENTRYPOINT,
    ENTRYPOINT_PATTERN,
    FUNCTION_KEYS,
    FUNCTION_KINDS,
    LANGUAGES,
    MANIFEST_KEYS,
    MAX_DESCRIPTION,
    MAX_FUNCTIONS,
    MAX_REQUIREMENTS,
    MAX_TITLE,
    REQUIREMENT_PATTERN,
)
from headrace.model.names import FUNCTION_PATTERN, NAME_PATTERN, SEMVER_PATTERN
from headrace.model.rates import RATE_PATTERN
from headrace.model.retry_codes import CODE_PATTERN, OUTSIDE_THE_POLICY
from headrace.model.slots import DEFAULT_SLOTS, HEADER_PATTERN, MAX_SLOTS
from headrace.wire.edge_reader import EDGE_KEYS, ERROR_KEYS
from headrace.wire.flow_reader import FLOW_KEYS, HISTORY_KEYS, MESH_TRIGGER_KEYS, RETRY_KEYS, STEP_KEYS

FLOW, COMPONENT = "flow", "component"
_META = "http://json-schema.org/draft-07/schema#"
_RETRY = RetryPolicy()


def file_schema(kind: str) -> dict[str, Any]:
    """The schema of `flow` or `component` files; KeyError for another word."""
    return {FLOW: flow_schema, COMPONENT: component_schema}[kind]()


def flow_schema() -> dict[str, Any]:
    name = _name("Name of the flow.")
    return {
        "$schema": _META,
        "title": "Headrace flow file",
        **_object("A flow: a graph of steps. The step that receives from no other is its trigger.", FLOW_KEYS, {
            "name": name,
            "type": {
                "enum": list(FLOW_TYPES), "default": "realtime",
                "description": "realtime: steps run until a person stops the flow; ordinary: they sleep when idle.",
            },
            "description": {"type": "string"},
            "reply_timeout": _duration("The flow answers its HTTP callers; they wait so long, at most 5m, then 504."),
            "max_waiting": _count(1, MAX_WAITING_LIMIT, DEFAULT_MAX_WAITING, "Messages that may wait on one edge."),
            "rate_limit": _rate("Most stimuli taken from outside."),
            "passthrough": {
                "type": "boolean", "default": False,
                "description": "Messages carry what the steps before have emitted: steps.NAME.body in expressions.",
            },
            "on_error": {"$ref": "#/definitions/error_step"},
            "history": {
                "anyOf": [{"type": "boolean"}, _history()],
                "description": "The flow keeps its stimuli, so that they can be replayed from the start.",
            },
            "steps": {
                "type": "object", "minProperties": 1, "maxProperties": MAX_STEPS,
                "description": "The steps by name; a file lists them in any order.",
                "propertyNames": {"pattern": _whole(NAME_PATTERN)},
                "additionalProperties": {"$ref": "#/definitions/step"},
            },
        }, required=["name", "steps"]),
        "definitions": {
            "step": _step(), "edge": _edge(), "retry": _retry(), "error_step": _error_step(),
            "name": {"type": "string", "pattern": name["pattern"]},
        },
    }  # fmt: skip


def _step() -> dict[str, Any]:
    own = {"to": {"type": "array", "minItems": 1, "maxItems": 1}}
    schema = _object("One step: a function of a component, and who receives what it emits.", STEP_KEYS, {
        "component": {
            "type": "string",
            "pattern": rf"^([./].*|{NAME_PATTERN}(@(sha256:[0-9a-f]{{64}}|[a-z0-9][a-z0-9._-]{{0,63}}))?)$",
            "description": "A folder (./price), pushed by apply; or a reference: price, price@1.2.0, price@3. "
            "A trigger without one is the mesh's own webhook or timer, and runs no process.",
        },
        "function": {
            "type": "string", "pattern": f"^({FUNCTION_PATTERN})?$",
            "description": "Function of the component; may be left out where it has one only.",
        },
        "config": {"type": ["object", "null"], "description": "Settings, checked against the function's schema."},
        "to": {
            "type": ["array", "null"], "uniqueItems": True,
            "items": {"anyOf": [{"$ref": "#/definitions/name"}, {"$ref": "#/definitions/edge"}]},
            "description": "Steps that receive what this one emits; with a condition or a mapping where it says so.",
        },
        "prefetch": _count(1, MAX_PREFETCH, DEFAULT_PREFETCH, "Messages in work at once per instance."),
        "replicas": _count(1, MAX_REPLICAS, 1, "Instances of the step."),
        "timeout": _duration("How long one call may take, at most 1h.", DEFAULT_TIMEOUT_S),
        "retry": {"$ref": "#/definitions/retry"},
        "every": _duration("Makes the trigger a timer: a tick at each multiple of the interval, 10ms to 24h."),
        "cron": {
            "type": "string", "pattern": r"^\s*(\S+\s+){4,5}\S+\s*$",
            "description": "Makes the trigger a timer by the clock: minute hour day month weekday, or second first.",
        },
        "time_zone": {"type": "string", "default": DEFAULT_ZONE, "description": "Of cron, such as Europe/Berlin."},
        "catch_up": {
            "enum": list(CATCH_UP), "default": CATCH_UP[0],
            "description": "Which of the ticks that an outage held up are sent after it.",
        },
        "credential": {
            "type": "string", "pattern": f"^{NAME_PATTERN}$",
            "description": "Name of the credential that the component gets (headrace credential create).",
        },
        "rate_limit": _rate("Most calls of all replicas together."),
        "key": {
            "type": "string", "pattern": f"^(header:{HEADER_PATTERN}|body:/([^~]|~[01])*)$",
            "description": "Keeps the order of messages with one key: header:NAME or body:/json/pointer.",
        },
        "slots": _count(1, MAX_SLOTS, DEFAULT_SLOTS, "Keys share so many slots; only with key or exactly_once."),
        "exactly_once": {
            "type": "boolean", "default": False,
            "description": "What the step sends is stored once under any failure; implied by key.",
        },
        "idle_timeout": _duration(
            "In an ordinary flow: how long it has nothing to do before it sleeps, 0s to 30m.", DEFAULT_IDLE_TIMEOUT_S
        ),
        "on_error": {
            "anyOf": [{"enum": list(ON_ERROR)}, {"$ref": "#/definitions/error_step"}],
            "description": "What becomes of a message that fails for good; dead-letter, or as the flow says.",
        },
    })  # fmt: skip
    without = {"properties": own, "required": ["to"], "propertyNames": {"enum": sorted(MESH_TRIGGER_KEYS)}}
    return {**schema, "if": {"not": {"required": ["component"]}}, "then": without}


def _edge() -> dict[str, Any]:
    return _object("An edge with a condition or a mapping, in JSONata.", EDGE_KEYS, {
        "step": {"$ref": "#/definitions/name"},
        "condition": _expression("Only what this is true for goes there, such as body.total > 100.", "boolean"),
        "mapping": _expression("Makes the body that this receiver gets, such as {'sku': body.sku}."),
    }, required=["step"])  # fmt: skip


def _history() -> dict[str, Any]:
    default = HistorySpec()
    return _object("How many stimuli are kept, and how long.", HISTORY_KEYS, {
        "count": _count(1, MAX_HISTORY_COUNT, default.count, "At most so many."),
        "age": _duration("At most so old, 1m to 720h.", default.age_s),
    })  # fmt: skip


def _error_step() -> dict[str, Any]:
    return _object("The step that gets {error, input, step, revision, attempts} of what fails for good.", ERROR_KEYS, {
        "step": {"$ref": "#/definitions/name"},
        "dead_letter": {"type": "boolean", "default": False, "description": "Keep a dead letter besides."},
    }, required=["step"])  # fmt: skip


def _expression(description: str, *more: str) -> dict[str, Any]:
    return {
        "type": ["string", *more], "minLength": 1, "maxLength": MAX_EXPRESSION_CHARACTERS, "description": description,
    }  # fmt: skip


def _retry() -> dict[str, Any]:
    schema = _object("When a call fails with an error that another attempt may mend.", RETRY_KEYS, {
        "attempts": _count(1, MAX_ATTEMPTS, _RETRY.attempts, "Attempts in all; 1: no retry."),
        "backoff": _duration("First delay, doubling; at most 1h.", _RETRY.backoff_s),
        "max_delay": _duration("Longest delay, at most 1h.", _RETRY.max_delay_s),
        "jitter": {
            "type": "number", "minimum": 0, "maximum": 1, "default": _RETRY.jitter,
            "description": "Up to this part of each delay is left out by chance.",
        },
        "on": {
            "type": ["array", "null"], "uniqueItems": True, "maxItems": MAX_RETRIED_CODES,
            "items": {"type": "string", "pattern": _whole(CODE_PATTERN), "not": {"enum": list(OUTSIDE_THE_POLICY)}},
            "description": "Error codes that get another attempt, and no others do.",
        },
    })  # fmt: skip
    return {**schema, "type": ["object", "null"]}


def component_schema() -> dict[str, Any]:
    return {
        "$schema": _META,
        "title": "Headrace component.yaml",
        **_object("A component: code with functions.", MANIFEST_KEYS, {
            "name": _name("Name of the component."),
            "title": {"type": "string", "maxLength": MAX_TITLE},
            "description": {"type": "string", "maxLength": MAX_DESCRIPTION},
            "version": {
                "type": ["string", "null"], "pattern": f"^({SEMVER_PATTERN})?$",
                "description": "Semantic version; it never comes to mean other content.",
            },
            "language": {"enum": list(LANGUAGES), "default": LANGUAGES[0]},
            "entrypoint": {
                "type": "string", "pattern": _whole(ENTRYPOINT_PATTERN), "default": DEFAULT_ENTRYPOINT,
                "description": "module:attribute of the component's object.",
            },
            "functions": {
                "type": "object", "minProperties": 1, "maxProperties": MAX_FUNCTIONS,
                "propertyNames": {"pattern": _whole(FUNCTION_PATTERN)},
                "additionalProperties": {"$ref": "#/definitions/function"},
            },
            "requirements": {
                "type": ["array", "null"], "maxItems": MAX_REQUIREMENTS,
                "items": {"type": "string", "pattern": rf"^\s*{REQUIREMENT_PATTERN}\s*$"},
                "description": "Python packages by name and version, for example httpx>=0.27; locked when pushed.",
            },
        }, required=["name", "functions"]),
        "definitions": {"function": _function()},
    }  # fmt: skip


def _function() -> dict[str, Any]:
    schema = {"allOf": [{"type": "object"}, {"$ref": _META}]}
    function = _object("A trigger starts executions, an action handles messages, a listener reads a source.",
        FUNCTION_KEYS, {
            "kind": {"enum": list(FUNCTION_KINDS)},
            "title": {"type": "string", "maxLength": MAX_TITLE},
            "description": {"type": "string", "maxLength": MAX_DESCRIPTION},
            "config": {"description": "JSON Schema of a step's config.", **schema},
            "in": {"description": "JSON Schema of its input; typed functions fill it in.", **schema},
            "out": {"description": "JSON Schema of its output; typed functions fill it in.", **schema},
            "exclusive": {"type": "boolean", "default": False, "description": "A listener that must be alone."},
        }, required=["kind"])  # fmt: skip
    alone = {"properties": {"exclusive": {"const": True}}, "required": ["exclusive"]}
    return {**function, "if": alone, "then": {"properties": {"kind": {"const": "listener"}}}}


def _object(
    description: str, keys: tuple[str, ...], properties: Mapping[str, Any], required: list[str] | None = None
) -> dict[str, Any]:
    """An object with these keys and no others; the reader's list of keys and the properties must be the same."""
    if set(keys) != set(properties):
        raise AssertionError(f"keys without schema, or the other way round: {set(keys) ^ set(properties)}")
    return {
        "description": description,
        "type": "object",
        "properties": dict(properties),
        "additionalProperties": False,
        **({"required": required} if required else {}),
    }


def _whole(pattern: str) -> str:
    return f"^{pattern}$"


def _name(description: str) -> dict[str, Any]:
    return {"type": "string", "pattern": _whole(NAME_PATTERN), "description": description}


def _count(low: int, high: int, default: int, description: str) -> dict[str, Any]:
    return {"type": "integer", "minimum": low, "maximum": high, "default": default, "description": description}


def _duration(description: str, default_s: float | None = None) -> dict[str, Any]:
    default = {} if default_s is None else {"default": format_duration(default_s)}
    pattern = re.sub(r"\(\?:", "(", DURATION_PATTERN)
    return {"type": "string", "pattern": rf"^\s*{pattern}\s*$", **default, "description": description}


def _rate(description: str) -> dict[str, Any]:
    pattern = re.sub(r"\(\?:", "(", RATE_PATTERN).replace("/", r"\s*/\s*")
    return {"type": "string", "pattern": rf"^\s*{pattern}\s*$", "description": f"{description} 100/s, 30/m or 5/h."}
