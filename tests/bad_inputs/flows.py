"""Bad flows: by file, and by the API."""

from __future__ import annotations

from typing import Any

from tests.bad_inputs.row import Row, Section

APPLY = "`headrace flow apply`"
CREATE = "`CreateFlow`"
INVALID = "INVALID_ARGUMENT"


def steps(*lines: str, head: str = "") -> str:
    """A flow file with these steps; line 3 is the first of them."""
    return f"name: wrong\n{head}steps:\n" + "".join(f"  {line}\n" for line in lines)


def chain(count: int) -> str:
    lines = [f"s{n}: {{component: webhook, function: receive, to: [s{n + 1}]}}" for n in range(count - 1)]
    return steps(*lines, f"s{count - 1}: {{component: webhook}}")


RECEIVE = "a: {component: webhook, function: receive, to: [b]}"
BOMB = "bomb:\n  l0: &l0 [ha]\n" + "".join(f"  l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]\n" for n in range(1, 30))


def spec(*named: dict[str, Any], **top: Any) -> dict[str, Any]:
    """A FlowSpec as its JSON."""
    return {"type": "FLOW_TYPE_REALTIME", "steps": list(named), **top}


def file_row(id: str, what: str, give: Any, reason: str, field: str, says: tuple[str, ...], next_step: str) -> Row:
    return Row(id, what, APPLY, INVALID, reason, field, says, next_step, give)


def api_row(id: str, what: str, give: Any, reason: str, field: str, says: tuple[str, ...], next_step: str) -> Row:
    return Row(id, what, CREATE, INVALID, reason, field, says, next_step, give)


FILES = (
    file_row(
        "cycle", "a cycle", steps("a: {component: webhook, function: receive, to: [b]}",
                                  "b: {component: webhook, to: [c]}", "c: {component: webhook, to: [b]}"),
        "CYCLE", "steps.b.to[0]", (":4:", "the steps form a cycle: b -> c -> b"), "Correct the flow"),
    file_row(
        "self-edge", "a step that sends to itself", steps("a: {component: webhook, to: [a]}"),
        "SELF_EDGE", "steps.a.to[0]", (":3:", "sends to itself"), "Correct the flow"),
    file_row(
        "unknown-step", "a receiver that is no step", steps(RECEIVE.replace("[b]", "[pirce]"), "price: {component: webhook}"),
        "UNKNOWN_RECEIVER", "steps.a.to[0]", (":3:51:", "'pirce' is not a step"), "Did you mean `price`?"),
    file_row(
        "unreachable-step", "a step that nobody sends to",
        steps(RECEIVE, "b: {component: webhook}", "c: {component: webhook}"),
        "UNREACHABLE_STEP", "steps.c", (":5:3:", "'c' is not reached from the trigger 'a'"), "Correct the flow"),
    file_row(
        "two-triggers", "two steps that nobody sends to",
        steps(RECEIVE.replace("[b]", "[c]"), "b: {component: webhook, function: receive, to: [c]}", "c: {component: webhook}"),
        "TWO_TRIGGERS", "steps.b", (":4:3:", "so does 'a': a flow has one trigger"), "Correct the flow"),
    file_row(
        "error-cycle", "an error step that leads back to the step that failed",
        steps("a: {component: webhook, function: receive, to: [b]}", "b: {component: webhook, on_error: {step: c}}",
              "c: {component: webhook, to: [b]}"),
        "CYCLE", "steps.b.on_error.step", (":4:", "the steps form a cycle: b -> c -> b"), "Correct the flow"),
    file_row(
        "error-step-unknown", "an error step that is no step",
        steps(RECEIVE, "b: {component: webhook}", head="on_error: {step: complian}\n"),
        "UNKNOWN_RECEIVER", "on_error.step", (":2:", "'complian' is not a step"), "Steps: a, b"),
    file_row(
        "error-step-unused", "an error step that everything comes after", steps(RECEIVE, "b: {component: webhook}", head="on_error: {step: a}\n"),
        "UNUSED_ERROR_STEP", "on_error.step", ("no step hands its failures to 'a'",), "Correct the flow"),
    file_row(
        "history-age", "a history of a minute's half", steps(RECEIVE, "b: {component: webhook}", head="history: {age: 30s}\n"),
        "BAD_FLOW_FILE", "history.age", (":2:", "is not between 1m and 720h"), "Leave it out for 168h"),
    file_row(
        "idle-timeout", "a step that sleeps after an hour", steps(RECEIVE, "b: {component: webhook, idle_timeout: 1h}"),
        "BAD_FLOW_FILE", "steps.b.idle_timeout", (":4:", "is longer than 30m"), "belongs in a flow of type realtime"),
    file_row("no-steps", "no step at all", "name: wrong\nsteps: {}\n", "BAD_FLOW_FILE", "steps", ("has no step",), "one block per step"),
    file_row(
        "no-trigger", "an action where the trigger should be", steps("a: {component: no-trigger}"),
        "NOT_A_TRIGGER", "steps.a.function", (":3:", "is an action, but step 'a' starts the flow"), "Begin the flow with a trigger"),
    file_row(
        "duplicate-step", "a step twice", steps("a: {component: webhook}", "a: {component: webhook}"),
        "BAD_YAML", "line 4", (":4:3:", "'a' is repeated (first on line 3)"), "Correct that line"),
    file_row(
        "bad-flow-name", "a name with capitals", steps(RECEIVE).replace("wrong", "Wrong Name"),
        "BAD_NAME", "name", (":1:1:", "'Wrong Name' is not a name"), "lower-case letters"),
    file_row(
        "long-step-name", "a name of 64 characters", steps("a" * 64 + ": {component: webhook}"),
        "BAD_NAME", "steps." + "a" * 64, (":3:3:", "is not a name"), "at most 63 characters"),
    file_row("yaml-bomb", "nested aliases, 9³⁰ values", steps(RECEIVE) + BOMB, "BAD_YAML", "line 6", (":6:", "aliases (*l0) are not allowed"), "Correct that line"),
    file_row(
        "anchors", "an alias of an anchor", steps("a: &x {component: webhook}", "b: *x"),
        "BAD_YAML", "line 4", (":4:6:", "aliases (*x)", "write the value out"), "Correct that line"),
    file_row("deep", "100 000 levels of nesting", lambda: "name: " + "[" * 100_000, "BAD_YAML", "line 1", ("nested deeper than 50 levels",), "Correct that line"),
    file_row("python-tag", "a tag that would run code", "name: !!python/object/apply:os.getcwd []\n", "BAD_YAML", "line 1", (":1:7:", "could not determine a constructor"), "Correct that line"),
    file_row("not-yaml", "a bracket that is never closed", "name: [\n", "BAD_YAML", "line 2", (":2:1:", "not valid YAML"), "Correct that line"),
    file_row("not-text", "bytes that are not UTF-8", b"name: \xff\xfe\n", "BAD_YAML", "", ("not valid YAML",), "UTF-8"),
    file_row("empty", "an empty file", "", "BAD_FLOW_FILE", "", ("is empty",), "Write `name:` and `steps:`"),
    file_row("ten-megabytes", "a file of 10 MB", lambda: steps(RECEIVE) + "# " + "x" * 10_000_000, "FILE_TOO_LARGE", "", ("larger than 1,048,576 bytes",), "Make it shorter"),
    file_row("thousand-steps", "1 000 steps", lambda: chain(1000), "BAD_FLOW_FILE", "steps", (":2:1:", "1000", "more than 100"), "Split the flow"),
    file_row(
        "wrong-type-at-depth", "text where a number belongs, three levels down", steps("a: {component: webhook, retry: {attempts: many}}"),
        "BAD_FLOW_FILE", "steps.a.retry.attempts", (":3:35:", "'many' is not a whole number from 1 to 100"), "Correct it"),
    file_row(
        "unknown-field", "a misspelt field", steps("a: {component: webhook, prefech: 3}"),
        "UNKNOWN_FIELD", "steps.a.prefech", (":3:27:", "is not a known key"), "Did you mean `prefetch`?"),
    file_row(
        "missing-field", "a step without component that is not the trigger", steps(RECEIVE, "b: {prefetch: 3}"),
        "MISSING_FIELD", "steps.b.component", (":4:3:", "is missing"), "Only the flow's first step can do without"),
    file_row(
        "trigger-to-two", "a trigger without component that sends to two steps", steps("a: {to: [b, c]}", "b: {component: webhook}", "c: {component: webhook}"),
        "TRIGGER_NEEDS_COMPONENT", "steps.a.to", (":3:7:", "sends to 2 steps"), "Add `component: webhook`"),
    file_row(
        "trigger-with-settings", "a timer without component that has retries", steps("a: {every: 5s, retry: {attempts: 5}, to: [b]}", "b: {component: webhook}"),
        "TRIGGER_NEEDS_COMPONENT", "steps.a.retry", (":3:18:", "has a meaning only with a component"), "Add `component: timer`"),
    file_row(
        "no-unit", "a duration without unit", steps("a: {component: webhook, timeout: 10}"),
        "BAD_FLOW_FILE", "steps.a.timeout", (":3:27:", "10 is not a duration"), "200ms, 10s, 2m or 1h"),
    file_row(
        "unknown-component", "a component nobody pushed", steps("a: {component: webhok, function: receive}"),
        "COMPONENT_NOT_FOUND", "steps.a.component", (":3:7:", "'webhok' cannot be resolved"), "headrace component push"),
    file_row(
        "unknown-revision", "a revision there is not", steps("a: {component: webhook@99, function: receive}"),
        "COMPONENT_NOT_FOUND", "steps.a.component", (":3:7:", "'webhook@99' cannot be resolved"), "headrace component push"),
    file_row(
        "unknown-function", "a function the component does not have", steps("a: {component: webhook, function: recieve}"),
        "FUNCTION_NOT_FOUND", "steps.a.function", (":3:27:", "'recieve' is not a function of 'webhook'"), "Did you mean `receive`?"),
    file_row(
        "config-against-schema", "a config that its schema refuses",
        steps("a: {component: webhook, function: receive, to: [b]}", "b: {component: configured, config: {path: 7}}"),
        "CONFIG_INVALID", "steps.b.config.path", (":4:39:", "7 is not of type 'string'"), "config schema"),
    file_row(
        "folder-not-there", "a folder that does not exist", steps("a: {component: ./webhok}"),
        "BAD_FLOW_FILE", "steps.a.component", (":3:7:", "'./webhok' is not a folder"), "Looked for"),
    file_row(
        "bad-condition", "a condition that is no JSONata", steps("a: {component: webhook, function: receive, to: [{step: b, condition: 'body.total >'}]}", "b: {component: webhook}"),
        "BAD_EXPRESSION", "steps.a.to[0].condition", (":3:61:", "`body.total >` is no JSONata: Unexpected end of expression"), "docs.jsonata.org"),
    file_row(
        "bad-mapping", "a mapping of several lines that is no JSONata", steps("a: {component: webhook, function: receive, to: [{step: b, mapping: '{\"sku\": body.sku,\n\n \"n\" body.n}'}]}", "b: {component: webhook}"),
        "BAD_EXPRESSION", "steps.a.to[0].mapping", (":3:61:", "(at line 2, character"), "docs.jsonata.org"),
    file_row(
        "long-expression", "an expression of 9 000 characters", lambda: steps(f"a: {{component: webhook, function: receive, to: [{{step: b, condition: '{'1+' * 4500}1'}}]}}", "b: {component: webhook}"),
        "BAD_EXPRESSION", "steps.a.to[0].condition", (":3:61:", "has 9001 characters, more than 8192"), "docs.jsonata.org"),
    file_row(
        "nested-expression", "an expression of 2 000 brackets", lambda: steps(f"a: {{component: webhook, function: receive, to: [{{step: b, condition: '{'(' * 2000}1{')' * 2000}'}}]}}", "b: {component: webhook}"),
        "BAD_EXPRESSION", "steps.a.to[0].condition", (":3:61:", "is nested too deeply"), "docs.jsonata.org"),
    file_row(
        "edge-field", "a misspelt field of an edge", steps("a: {component: webhook, function: receive, to: [{step: b, conditon: 'true'}]}", "b: {component: webhook}"),
        "UNKNOWN_FIELD", "steps.a.to[0].conditon", (":3:61:", "is not a known key"), "Did you mean `condition`?"),
    file_row(
        "bad-cron", "a schedule with a minute 60", steps("a: {component: timer, cron: '60 * * * *'}"),
        "BAD_CRON", "steps.a.cron", (":3:25:", "'60 * * * *' has a minute that is none"), "cron: 30 6 * * MON-FRI"),
    file_row(
        "cron-fields", "a schedule of four fields", steps("a: {component: timer, cron: '* * * *'}"),
        "BAD_CRON", "steps.a.cron", (":3:25:", "has not five fields (minute hour day month weekday), nor six"), "cron: 30 6 * * MON-FRI"),
    file_row(
        "cron-never", "a schedule that never fires", steps("a: {component: timer, cron: '0 0 30 2 *'}"),
        "BAD_CRON", "steps.a.cron", (":3:25:", "'0 0 30 2 *' never fires: no month of it has such a day"), "cron: 30 6 * * MON-FRI"),
    file_row(
        "time-zone", "a time zone there is not", steps("a: {component: timer, cron: '0 6 * * *', time_zone: Europe/Berlim}"),
        "BAD_TIME_ZONE", "steps.a.time_zone", (":3:44:", "'Europe/Berlim' is not a time zone"), "IANA"),
    file_row(
        "two-schedules", "cron beside every", steps("a: {component: timer, cron: '0 6 * * *', every: 5s}"),
        "BAD_FLOW_FILE", "steps.a.cron", (":3:25:", "stands beside `every`"), "A timer goes by one of them"),
    Row("no-file", "a file that does not exist", APPLY, "NOT_FOUND", "FLOW_FILE_NOT_FOUND", "", ("No such file",), "Name a flow file"),
)  # fmt: skip
HOOK = {"name": "a", "component": "webhook", "function": "receive"}
API = (
    api_row("api-cycle", "a cycle", spec({**HOOK, "to": ["b"]}, {"name": "b", "component": "x", "to": ["c"]}, {"name": "c", "component": "x", "to": ["b"]}),
            "CYCLE", "steps[1].to[0]", ("b -> c -> b",), "Correct the flow"),
    api_row("api-unknown-step", "a receiver that is no step", spec({**HOOK, "to": ["pirce"]}, {"name": "price", "component": "x"}),
            "UNKNOWN_RECEIVER", "steps[0].to[0]", ("'pirce' is not a step of this flow. Did you mean `price`?",), "Correct the flow"),
    api_row("api-duplicate-step", "two steps of one name", spec(HOOK, HOOK), "DUPLICATE_STEP", "steps[1].name", ("'a' is the name of steps[0] already",), "Correct the flow"),
    api_row("api-no-steps", "no step", spec(), "NO_TRIGGER", "steps", ("no steps",), "Correct the flow"),
    api_row("api-two-triggers", "two triggers", spec({**HOOK, "to": ["c"]}, {**HOOK, "name": "b", "to": ["c"]}, {"name": "c", "component": "x"}),
            "TWO_TRIGGERS", "steps[1]", ("a flow has one trigger",), "Correct the flow"),
    api_row("api-unknown-edge", "an expression for an edge there is not", spec({**HOOK, "to": ["b"], "edges": {"c": {"condition": "true"}}}, {"name": "b", "component": "x"}),
            "UNKNOWN_EDGE", "steps[0].edges.c", ("'c' is not in `to` of step 'a', which sends to b",), "Correct the flow"),
    api_row("api-bad-expression", "a mapping that is no JSONata", spec({**HOOK, "to": ["b"], "edges": {"b": {"mapping": "{"}}}, {"name": "b", "component": "x"}),
            "BAD_EXPRESSION", "steps[0].to[0].mapping", ("`{` is no JSONata: ",), "Correct the flow"),
    api_row("api-expressions", "70 000 characters of expressions", lambda: spec({**HOOK, "to": ["b"], "edges": {"b": {"mapping": "1" + "+1" * 4000}}}, *({"name": f"s{n}", "component": "x", "to": ["b"], "edges": {"b": {"mapping": "1" + "+1" * 4000}}} for n in range(9)), {"name": "b", "component": "x"}),
            "EXPRESSIONS_TOO_LONG", "steps", ("more than 65536",), "Correct the flow"),
    api_row("api-cron-never", "a schedule that never fires", spec({"name": "a", "component": "timer", "cron": "0 0 31 2,4 *"}),
            "BAD_CRON", "steps[0].cron", ("'0 0 31 2,4 *' never fires",), "Correct the flow"),
    api_row("api-bad-name", "a step's name with a slash", spec({**HOOK, "name": "a/b"}), "BAD_NAME", "steps[0].name", ("'a/b' is not a name",), "Correct the flow"),
    api_row("api-no-type", "no type", {"steps": [HOOK]}, "BAD_TYPE", "type", ("is not a flow type",), "Correct the flow"),
    api_row("api-thousand-steps", "1 000 steps", lambda: spec(*({**HOOK, "name": f"s{n}"} for n in range(1000))), "TOO_MANY_STEPS", "steps", ("1000 steps are more than 100",), "Correct the flow"),
    api_row("api-config-too-big", "100 KB of config", lambda: spec({**HOOK, "config": {"x": "y" * 100_000}}), "CONFIG_TOO_BIG", "steps[0].config", ("more than 65536",), "Correct the flow"),
    api_row("api-negative-time", "a negative limit", spec(HOOK, reply_timeout="-1s"), "OUT_OF_RANGE", "reply_timeout", ("is not between 0 and 300",), "Correct the flow"),
)  # fmt: skip
SECTION = Section(
    "Flows",
    "A flow file's refusal names file, line and column (`flow.yaml:3:51: ...`), also for what only the mesh can know; "
    "nothing was pushed or changed then. The API names places by index (`steps[1].to[0]`).",
    FILES + API,
)
