"""What lies in deploy/ and docs/metrics.md fits the table of metrics."""

from __future__ import annotations

import json
import re
import subprocess

import pytest
import yaml

from headrace.model.metric_table import METRICS
from tests.support.commands import ROOT
from tools import grafana_dashboards, metrics_doc

PROMETHEUS = ROOT / "deploy" / "prometheus"
RULES = yaml.safe_load((PROMETHEUS / "headrace.rules.yaml").read_text())
ALERTS = {rule["alert"]: rule for group in RULES["groups"] for rule in group["rules"]}
SAMPLES = {name for metric in METRICS for name in metric.sample_names()}
LABELS = {metric.name: set(metric.labels) for metric in METRICS}


def names_in(expression: str) -> set[str]:
    return set(re.findall(r"\bheadrace_[a-z_]+", expression))


@pytest.mark.parametrize("module", [grafana_dashboards, metrics_doc], ids=lambda module: module.__name__)
def test_files_are_what_their_tables_say(module: object) -> None:
    for file, text in module.render().items():  # type: ignore[attr-defined]
        assert file.read_text() == text, "run: make docs"


def test_every_metric_that_a_dashboard_or_rule_names_exists() -> None:
    dashboards = [json.loads(file.read_text()) for file in (ROOT / "deploy" / "grafana").glob("*.json")]
    shown = [target["expr"] for board in dashboards for panel in board["panels"] for target in panel["targets"]]
    assert len(shown) > 50
    unknown = set().union(*map(names_in, [*shown, *(rule["expr"] for rule in ALERTS.values())])) - SAMPLES
    assert not unknown


def test_every_metric_is_on_a_dashboard() -> None:
    shown = set().union(*map(names_in, grafana_dashboards.expressions()))
    left_out = {metric.name for metric in METRICS if not shown & set(metric.sample_names())}
    assert not left_out, f"nobody would ever look at {left_out}"


def test_expressions_use_labels_that_their_metrics_have() -> None:
    for expression in [*grafana_dashboards.expressions(), *(rule["expr"] for rule in ALERTS.values())]:
        for name, selector in re.findall(r"\b(headrace_[a-z_]+)\{([^}]*)\}", expression):
            metric = next(metric for metric in METRICS if name in metric.sample_names())
            asked = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector)) - {"le"}
            assert asked <= set(metric.labels), f"{name} has no label {asked - set(metric.labels)}"


def test_every_alert_has_a_test_and_says_what_to_type_next() -> None:
    tried = (PROMETHEUS / "headrace.rules.test.yaml").read_text()
    for name, rule in ALERTS.items():
        assert name in tried, f"{name} is not in headrace.rules.test.yaml"
        assert set(rule["annotations"]) == {"summary", "next"}
        assert rule["labels"]["severity"] in ("critical", "warning", "info")


@pytest.mark.needs("prometheus")
def test_promtool_takes_config_and_rules_and_their_tests_pass() -> None:
    for arguments in (["check", "config", "prometheus.yaml"], ["test", "rules", "headrace.rules.test.yaml"]):
        done = subprocess.run(["promtool", *arguments], cwd=PROMETHEUS, capture_output=True, text=True, timeout=50)
        assert done.returncode == 0, done.stdout + done.stderr
