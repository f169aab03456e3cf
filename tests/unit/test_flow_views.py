"""A flow's graph as text, DOT and Mermaid; what differs between two specs, in the words of a flow file."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from headrace.cli.flow_views import is_file
from headrace.cli.graph_drawing import draw_dot, draw_mermaid, draw_text
from headrace.cli.spec_difference import compare_specs, difference_text
from headrace.model.flow_spec import FlowSpec, StepSpec
from headrace.wire.flow_file import parse_flow_file

FLOW = """
name: orders
type: realtime
reply_timeout: 10s
steps:
  order: {component: webhook, function: receive, to: [price, end]}
  price: {component: price@3, to: [check, notify], key: "body:/sku", replicas: 2}
  check: {component: check, to: [end]}
  notify: {component: notify, rate_limit: 5/s}
  end: {component: 'end'}
"""


def spec(text: str = FLOW) -> FlowSpec:
    return parse_flow_file(text, source="flow.yaml", folder=Path("/nowhere")).spec


def test_the_text_is_a_tree_in_which_a_step_that_several_send_to_stands_once() -> None:
    assert draw_text("orders", spec()).splitlines() == [
        "orders  realtime  replies within 10s",
        "",
        "order  webhook receive",
        "├─▶ price  price@3  2 replicas  by body:/sku",
        "│   ├─▶ check  check",
        "│   │   └─▶ end  end",
        "│   └─▶ notify  notify  at most 5/s",
        "└─▶ end  (above)",
    ]


SHAPED = """
name: shop
on_error: {step: complain, dead_letter: true}
steps:
  receive: {component: webhook, to: [price]}
  price:
    component: price
    to:
      - {step: small, condition: "body.total <= 100", mapping: "{'total': body.total}"}
      - {step: big, condition: "body.total > 100 and body.customer in ['ann', 'bob', 'eve', 'mallory', 'trent']"}
  small: {component: small}
  big: {component: big, on_error: suspend-flow}
  complain: {component: complain}
"""


def test_the_graph_says_what_edges_say_and_where_errors_go() -> None:
    assert draw_text("shop", spec(SHAPED)).splitlines()[2:] == [
        "receive  webhook",
        "├─▶ price  price",
        "│   ├─▶ small  small  (if body.total <= 100, as {'total': body.total})",
        "│   │   └╌▶ complain  complain  (on error, and dead letter)",
        "│   ├─▶ big  big  (if body.total > 100 and body.customer in ['ann', 'bob', 'eve',…)",
        "│   └╌▶ complain  (above)  (on error, and dead letter)",
        "└╌▶ complain  (above)  (on error, and dead letter)",
    ]
    dot, mermaid = draw_dot("shop", spec(SHAPED)), draw_mermaid("shop", spec(SHAPED))
    assert """"price" -> "small" [label="if body.total <= 100, as {'total': body.total}"];""" in dot
    assert '"receive" -> "complain" [label="on error, and dead letter", style=dashed];' in dot
    assert """s1 -->|"if body.total <= 100, as {'total': body.total}"| s2""" in mermaid
    assert 's0 -.->|"on error, and dead letter"| s4' in mermaid


def test_dot_and_mermaid_have_every_step_and_edge() -> None:
    dot, mermaid = draw_dot("orders", spec()), draw_mermaid("orders", spec())
    assert '  "order" -> "price";' in dot.splitlines()
    assert dot.count("->") == mermaid.count("-->") == 5
    assert '  s4["end<br/>end"]' in mermaid.splitlines()  # `end` is Mermaid's own word, so never an id


@given(st.lists(st.lists(st.integers(0, 7), max_size=3), min_size=1, max_size=8))
def test_any_graph_can_be_drawn_and_shows_every_step(edges: list[list[int]]) -> None:
    names = [f"s{number}" for number in range(len(edges))]
    steps = tuple(
        StepSpec(name, f"c{name}", to=tuple(dict.fromkeys(names[to] for to in tos if to < len(names))))
        for name, tos in zip(names, edges, strict=True)
    )
    drawn = draw_text("any", FlowSpec("realtime", steps))
    assert all(f"c{name}" in drawn for name in names)
    draw_dot("any", FlowSpec("realtime", steps))


def test_a_difference_is_told_by_the_names_of_a_flow_file() -> None:
    changed = FLOW.replace("reply_timeout: 10s", "reply_timeout: 2m").replace("price@3", "price@4")
    changed = changed.replace("  notify: {component: notify, rate_limit: 5/s}\n", "").replace(", notify]", ", extra]")
    changed += "  extra: {component: extra, config: {path: /tmp/x}, retry: {attempts: 5}}\n"
    lines = [difference_text(item) for item in compare_specs(spec(), spec(changed))]
    assert '~ reply_timeout: "10s" -> "2m"' in lines
    assert '~ steps.price.component: "price@3" -> "price@4"' in lines
    assert '~ steps.price.to: ["check","notify"] -> ["check","extra"]' in lines
    assert "- steps.notify" in lines
    assert any(line.startswith("+ steps.extra: ") and '"config":{"path":"/tmp/x"}' in line for line in lines)
    assert len(lines) == 5
    assert compare_specs(spec(), spec()) == []


def test_a_file_is_told_from_a_flow_by_its_dots_and_slashes() -> None:
    assert [is_file(subject) for subject in ("orders", "flows/orders", "orders.yaml", "./orders", "a/b")] == [
        False,
        False,
        True,
        True,
        True,
    ]
