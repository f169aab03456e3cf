"""A real Prometheus that scrapes one target by the rules of deploy/; for `@pytest.mark.needs("prometheus")`."""

from __future__ import annotations

import contextlib
import json
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.edge.broker_process import free_port
from tests.support.commands import ROOT

RULES = ROOT / "deploy" / "prometheus" / "headrace.rules.yaml"


@dataclass(frozen=True)
class Prometheus:
    """One that runs."""

    url: str

    def get(self, path: str, **arguments: str) -> Any:
        """`data` of an answer; AssertionError with the reason for an error."""
        query = f"?{urllib.parse.urlencode(arguments)}" if arguments else ""
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/{path}{query}", timeout=5) as answer:
                return json.loads(answer.read())["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{arguments}: {error.read().decode()}") from None

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The samples of an expression now; fails for one that is none."""
        found: list[dict[str, Any]] = self.get("query", query=expression)["result"]
        return found

    def scrapes(self) -> int:
        """Of the target, so far, that went well."""
        try:
            found = self.query('sum(sum_over_time(up{job="headrace"}[10m]))')
        except OSError:
            return 0  # not up yet
        return int(float(found[0]["value"][1])) if found else 0


@contextlib.contextmanager
def run_prometheus(folder: Path, target: str, *, every: str = "500ms") -> Iterator[Prometheus]:
    """Scrapes `target` (host:port) as job `headrace`; ended with the test."""
    config = {
        "global": {"scrape_interval": every, "scrape_timeout": every, "evaluation_interval": "1s"},
        "rule_files": [str(RULES)],
        "scrape_configs": [{"job_name": "headrace", "static_configs": [{"targets": [target]}]}],
    }
    file, port = folder / "prometheus.yaml", free_port()
    file.write_text(json.dumps(config))  # which is YAML
    command = ["prometheus", f"--config.file={file}", f"--storage.tsdb.path={folder / 'tsdb'}"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--enable-feature=exemplar-storage", "--log.level=warn"]
    with open(folder / "prometheus.log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        yield Prometheus(f"http://127.0.0.1:{port}")
    finally:
        process.terminate()
        process.wait(10)
