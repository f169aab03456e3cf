"""A flow's graph as text, DOT or Mermaid. Pure: a spec in, text out."""

from __future__ import annotations

from headrace.model.durations import format_duration
from headrace.model.flow_spec import FlowSpec, StepSpec
from headrace.model.rates import rate_text

INDENT = "   "


def draw_text(name: str, spec: FlowSpec) -> str:
    """A tree from the trigger on; a step that several send to is drawn below the first of them.

    order  webhook@latest
    └─▶ price  price@latest  by body:/sku
        ├─▶ check  check@latest
        └─▶ notify  notify@latest
    """
    steps = {step.name: step for step in spec.steps}
    received = {receiver for step in spec.steps for receiver in step.to}
    lines = [f"{name}  {spec.type}{_flow_words(spec)}", ""]
    drawn: set[str] = set()

    def draw(step: StepSpec, head: str, below: str) -> None:
        again = step.name in drawn
        lines.append(f"{head}{step.name}{'  (above)' if again else '  ' + '  '.join(step_words(step))}")
        if again:
            return
        drawn.add(step.name)
        receivers = [steps[receiver] for receiver in step.to if receiver in steps]
        for receiver in receivers:
            last = receiver is receivers[-1]
            draw(receiver, f"{below}{'└' if last else '├'}─▶ ", f"{below}{' ' if last else '│'}{INDENT}")

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
    lines += [f"  {_quoted(step.name)} -> {_quoted(receiver)};" for step in spec.steps for receiver in step.to]
    return "\n".join([*lines, "}"])


def draw_mermaid(name: str, spec: FlowSpec) -> str:
    """For Markdown; nodes have numbers, since some words (`end`) are Mermaid's own."""
    numbers = {step.name: f"s{number}" for number, step in enumerate(spec.steps)}
    lines = ["---", f"title: {name}", "---", "flowchart LR"]
    for step in spec.steps:
        label = "<br/>".join([step.name, *step_words(step)]).replace('"', "#quot;")
        lines.append(f'  {numbers[step.name]}["{label}"]')
    for step in spec.steps:
        lines += [f"  {numbers[step.name]} --> {numbers[receiver]}" for receiver in step.to if receiver in numbers]
    return "\n".join(lines)


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
