"""A trigger without component: what it may say, where its flow begins, what documents and harness make of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from headrace.model.deployment import DeploymentPlan, MeshTrigger, decode_plan, encode_plan
from headrace.model.deployment_difference import compare
from headrace.model.errors import InvalidInput, WrongState
from headrace.model.flow_graph import check_flow
from headrace.model.flow_spec import EdgeSpec, FlowSpec, RetryPolicy, StepSpec
from headrace.sdk.testing import FlowHarness
from headrace.wire.flow import flow_spec_from_proto, flow_spec_to_proto
from services.orchestrator.domain.documents import FlowDocument, Strategy
from services.orchestrator.domain.rollout_verbs import check_takeover
from tests.support.plans import plan_of


def flow(*, every_s: float = 0.0, **first: Any) -> FlowSpec:
    steps = (StepSpec("receive", to=("price",), every_s=every_s), StepSpec("price", "work"), StepSpec("log", "work"))
    price = msgspec.structs.replace(steps[1], to=("log",))
    return FlowSpec("realtime", (msgspec.structs.replace(steps[0], **first), price, steps[2]))


@pytest.mark.parametrize("every_s", [0.0, 5.0])
def test_its_flow_begins_at_its_receiver(every_s: float) -> None:
    spec = flow(every_s=every_s)
    graph = check_flow(spec)
    assert (graph.trigger, graph.entry, graph.order) == ("receive", "price", ("receive", "price", "log"))
    assert flow_spec_from_proto(flow_spec_to_proto(spec)) == spec


@pytest.mark.parametrize(
    ("field", "first"),
    [
        ("to", {"to": ("price", "log")}),
        ("to[0]", {"edges": {"price": EdgeSpec("true")}}),
        ("function", {"function": "receive"}),
        ("config", {"config": {"a": 1}}),
        ("prefetch", {"prefetch": 2}),
        ("replicas", {"replicas": 2}),
        ("timeout", {"timeout_s": 1.0}),
        ("retry", {"retry": RetryPolicy(attempts=9)}),
        ("rate_limit", {"rate_limit": 5.0}),
        ("key", {"key": "header:a"}),
        ("exactly_once", {"exactly_once": True}),
        ("on_error", {"on_error": "suspend-flow"}),
    ],
)
def test_what_needs_a_process_is_refused(field: str, first: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="component") as refused:
        check_flow(flow(**first))
    assert refused.value.reason == "TRIGGER_NEEDS_COMPONENT"
    assert f"steps[0].{field}" in {violation.field for violation in refused.value.violations}


def test_it_needs_a_receiver_and_no_passthrough() -> None:
    for spec in (FlowSpec("realtime", (StepSpec("receive"),)), msgspec.structs.replace(flow(), passthrough=True)):
        with pytest.raises(InvalidInput) as refused:
            check_flow(spec)
        assert refused.value.reason == "TRIGGER_NEEDS_COMPONENT"


def test_only_the_trigger_can_do_without_a_component() -> None:
    spec = FlowSpec("realtime", (StepSpec("receive", "webhook", to=("price",)), StepSpec("price")))
    with pytest.raises(InvalidInput, match="only a flow's trigger can do without") as refused:
        check_flow(spec)
    assert refused.value.violations[0].field == "steps[1].component"


def own(plan: DeploymentPlan, **trigger: Any) -> DeploymentPlan:
    return msgspec.structs.replace(plan, mesh_trigger=MeshTrigger("receive", **trigger))


def test_a_plan_names_both_and_is_read_as_it_was_written_before() -> None:
    plan = plan_of("orders", "price", "log")
    assert (plan.trigger, plan.entry, plan.timer) == ("price", "price", None)
    ticking = own(plan, every_s=5.0)
    assert (ticking.trigger, ticking.entry, ticking.timer) == ("receive", "price", ticking.mesh_trigger)
    assert decode_plan(encode_plan(ticking)) == ticking
    earlier = msgspec.json.decode(encode_plan(plan))
    del earlier["mesh_trigger"]
    assert earlier["trigger"] == "price"
    assert decode_plan(msgspec.json.encode(earlier)) == plan


def test_a_difference_says_who_triggers() -> None:
    plan = plan_of("orders", "price", "log")
    found = {
        item.field: (item.old_json, item.new_json) for item in compare(plan, {}, own(plan, every_s=5.0), {}).fields
    }
    assert found["trigger"] == ('"price"', '"receive"')
    assert found["mesh_trigger.to"] == ("", '["price"]')
    changed = compare(own(plan, every_s=5.0), {}, own(plan, every_s=6.0), {})
    assert [item.field for item in changed.fields] == ["mesh_trigger.every"]


def test_what_comes_in_goes_elsewhere_only_by_a_restart() -> None:
    running, document = own(plan_of("orders", "price", "log")), FlowDocument("orders", "realtime", 0.0)
    check_takeover(document, running, flow(), Strategy.WARM_SWITCH)
    check_takeover(document, running, flow(every_s=5.0), Strategy.WARM_SWITCH)
    with pytest.raises(WrongState, match="what comes in goes to step 'receive', went to 'price'"):
        check_takeover(document, running, flow(component="hook"), Strategy.WARM_SWITCH)
    check_takeover(document, running, flow(component="hook"), Strategy.RESTART)


def test_the_harness_begins_behind_it(tmp_path: Path) -> None:
    (tmp_path / "flow.yaml").write_text(
        "name: a\nreply_timeout: 1s\nsteps: {hook: {to: [echo]}, echo: {component: .}}\n"
    )
    (tmp_path / "component.yaml").write_text("name: echo\nfunctions: {echo: {kind: action}}\n")
    (tmp_path / "component.py").write_text(
        "from headrace.sdk import Component, Context\ncomponent = Component()\n\n\n"
        "@component.action\nasync def echo(body: dict, ctx: Context) -> None:\n    await ctx.reply(body)\n"
    )
    with FlowHarness(tmp_path / "flow.yaml") as harness:
        result = harness.send({"n": 1})
    assert result.reply is not None
    assert (result.reply.value, result.order) == ({"n": 1}, ["echo"])
