"""A flow's graph as text, DOT or Mermaid. Pure: a spec in, text out."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.model.durations import format_duration
from headrace.model.error_steps import error_steps
from headrace.model.flow_spec import EdgeSpec, FlowSpec, StepSpec
from headrace.model.rates import rate_text

INDENT = "   "
SHOWN = 60
"""Characters of an expression."""


@dataclass(frozen=True, slots=True)
class Arrow:
    """From a step to a receiver, and what it says."""

    sender: str
    receiver: str
    words: tuple[str, ...] = ()
    error: bool = False
    """Only what the sender fails for good goes there."""


def arrows_of(spec: FlowSpec) -> list[Arrow]:
    """By sender, in the order of the flow; the one for errors comes last."""
    handlers = error_steps(spec)
    found: list[Arrow] = []
    for step in spec.steps:
        found += [Arrow(step.name, name, _edge_words(step.edges.get(name, EdgeSpec()))) for name in step.to]
        if step.name in handlers:
            handler = handlers[step.name]
            words = ("on error", "and dead letter") if handler.dead_letter else ("on error",)
            found.append(Arrow(step.name, handler.step, words, error=True))
    return found


def _edge_words(edge: EdgeSpec) -> tuple[str, ...]:
    words = [f"if {_short(edge.condition)}"] if edge.condition else []
    return (*words, *([f"as {_short(edge.mapping)}"] if edge.mapping else []))


def _short(expression: str) -> str:
    """In one line, and cut off where it is long."""
    line = " ".join(expression.split())
    return line if len(line) <= SHOWN else line[: SHOWN - 1] + "…"


def draw_text(name: str, spec: FlowSpec) -> str:
    """A tree from the trigger on; a step that several send to is drawn below the first of them.

    order  webhook@latest
    └─▶ price  price@latest  by body:/sku
        ├─▶ check  check@latest  (if body.total > 100)
        ├─▶ notify  notify@latest
        └╌▶ complain  complain@latest  (on error)
    """
    steps = {step.name: step for step in spec.steps}
    arrows = [arrow for arrow in arrows_of(spec) if arrow.receiver in steps]
    received = {arrow.receiver for arrow in arrows}
    lines = [f"{name}  {spec.type}{_flow_words(spec)}", ""]
    drawn: set[str] = set()

    def draw(step: StepSpec, head: str, below: str, says: str = "") -> None:
        again = step.name in drawn
        lines.append(f"{head}{step.name}{'  (above)' if again else '  ' + '  '.join(step_words(step))}{says}")
        if again:
            return
        drawn.add(step.name)
        leaving = [arrow for arrow in arrows if arrow.sender == step.name]
        for arrow in leaving:
            last = arrow is leaving[-1]
            says = f"  ({', '.join(arrow.words)})" if arrow.words else ""
            head = f"{below}{'└' if last else '├'}{'╌' if arrow.error else '─'}▶ "
            draw(steps[arrow.receiver], head, f"{below}{' ' if last else '│'}{INDENT}", says)

    for step in spec.steps:
        if step.name not in received:
            draw(step, "", "")
    for step in spec.steps:  # what no trigger leads to (a draft may hold it)
        if step.name not in drawn:
            draw(step, "? ", "  ")
    return "\n".join(lines)


def draw_dot(name: str, spec: FlowSpec) -> str:
    """For Graphviz: `headrace flow graph orders --format dot | dot -Tsvg`."""
    lines = [f"digraph {_quoted(name)} {{", "  rankdir=LR;", "  node [shape=box];"]
    for step in spec.steps:
        label = "\\n".join([step.name, *step_words(step)])
        lines.append(f"  {_quoted(step.name)} [label={_quoted(label, keep_breaks=True)}];")
    for arrow in arrows_of(spec):
        lines.append(f"  {_quoted(arrow.sender)} -> {_quoted(arrow.receiver)}{_dot_words(arrow)};")
    return "\n".join([*lines, "}"])


def draw_mermaid(name: str, spec: FlowSpec) -> str:
    """For Markdown; nodes have numbers, since some words (`end`) are Mermaid's own."""
    numbers = {step.name: f"s{number}" for number, step in enumerate(spec.steps)}
    lines = ["---", f"title: {name}", "---", "flowchart LR"]
    for step in spec.steps:
        label = "<br/>".join([step.name, *step_words(step)]).replace('"', "#quot;")
        lines.append(f'  {numbers[step.name]}["{label}"]')
    for arrow in arrows_of(spec):
        if arrow.receiver in numbers:
            words = ", ".join(arrow.words).replace('"', "#quot;")
            label = f'|"{words}"|' if words else ""
            line = "-.->" if arrow.error else "-->"
            lines.append(f"  {numbers[arrow.sender]} {line}{label} {numbers[arrow.receiver]}")
    return "\n".join(lines)


def _dot_words(arrow: Arrow) -> str:
    given = [f"label={_quoted(', '.join(arrow.words))}"] if arrow.words else []
    given += ["style=dashed"] if arrow.error else []
    return f" [{', '.join(given)}]" if given else ""


def step_words(step: StepSpec) -> list[str]:
    """Component and function, and what is not as usual."""
    words = [f"{step.runs} {step.function}".strip()]
    if step.every_s:
        words.append(f"every {format_duration(step.every_s)}")
    if step.cron:
        words.append(f"at {step.cron} {step.time_zone}")
    if step.replicas > 1:
        words.append(f"{step.replicas} replicas")
    if step.key:
        words.append(f"by {step.key}")
    if step.exactly_once:
        words.append("exactly once")
    if step.rate_limit:
        words.append(f"at most {rate_text(step.rate_limit)}")
    return words


def _flow_words(spec: FlowSpec) -> str:
    return f"  replies within {format_duration(spec.reply_timeout_s)}" if spec.reply_timeout_s else ""


def _quoted(text: str, *, keep_breaks: bool = False) -> str:
    escaped = text if keep_breaks else text.replace("\\", "\\\\")
    return '"' + escaped.replace('"', '\\"') + '"'
