"""Writes docs/metrics.md from the table of metrics; `--check` only says whether it is up to date."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path

from headrace.model.metric_readings import MOST_SERIES
from headrace.model.metric_table import BOUNDS_S, METRICS, Metric
from tools.generated_files import keep

PLACE = Path(__file__).parents[1] / "docs" / "metrics.md"
HEAD = f"""# Metrics

Every metric that a mesh tells: this page is made from the table that the code goes by (`make docs`). How to get them,
and what to do with them: [observability.md](observability.md).

Counters end in `_total` and only rise, also when the processes that count die and are replaced; durations are seconds,
sizes bytes. Labels name what is deployed, never what callers send. `revision` is the beginning of a revision's digest.
At most {MOST_SERIES:,} series are told (some 80 flows of three steps); what is over that is counted under the label
value `_other`, and `headrace_metrics_overflowed_total` says of which metric. Beside these each answer has `process_*`
(memory, processor time, open files) of the process that answers.
"""


def render() -> Mapping[Path, str]:
    parts = [HEAD]
    for area, metrics in groupby(METRICS, key=lambda metric: metric.area):
        parts.append(f"## {area}\n\n| name | type | labels | meaning |\n|---|---|---|---|")
        parts[-1] += "".join(f"\n{_row(metric)}" for metric in metrics) + "\n"
    bounds = ", ".join(f"{bound:g}" for bound in BOUNDS_S)
    parts.append(f"Bounds (`le`) of the histogram, seconds: {bounds}, +Inf.\n")
    return {PLACE: "\n".join(parts)}


def _row(metric: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    unit = f" ({metric.unit})" if metric.unit else ""
    return f"| `{metric.name}` | {metric.kind.value}{unit} | {labels} | {metric.meaning} |"


if __name__ == "__main__":
    sys.exit(keep(__doc__, "python -m tools.metrics_doc", render))
