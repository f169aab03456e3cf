"""Fixtures every test may use; real parts only."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

# Tests are of the sources, also where `make fast` left something; `make test-compiled` asks for that.
os.environ.setdefault("HEADRACE_COMPILED", "0")

import headrace.edge.grpc_environment  # noqa: F401  isort: skip  (before grpc)
import grpc.aio
import hypothesis
import pytest

from headrace.edge.broker_process import BrokerProcess
from tests.support import small_disk, soak
from tests.support.mesh import mesh, module_mesh  # noqa: F401  fixtures

# gRPC's aio ends its poller when its last object goes, and waits for it, for ever if a call of a loop that is gone
# is still open (a killed server's). Here every test has its own loop and the collector decides when objects go, so
# that wait would stop some later test. A process of the mesh has one loop, and a server for as long as it lives.
grpc.aio.init_grpc_aio()

# How long one example takes says how busy the machine is; pytest's limit is the one that holds.
hypothesis.settings.register_profile("headrace", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("headrace")

# A shell without job control starts what it puts in the background with SIGINT ignored, and everything below inherits
# that: a command under test would never see its Ctrl-C. What tests start is as at a terminal.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[BrokerProcess]:
    """A real nats-server of this test's own, `fast` profile, on a free loopback port."""
    process = BrokerProcess(tmp_path / "broker")
    await process.start()
    yield process
    await process.stop()


sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
import real_tools  # noqa: E402

from tools.jaeger import Jaeger, jaeger_server  # noqa: E402


def pytest_configure(config: pytest.Config) -> None:
    if soak.ASKED:
        config.pluginmanager.register(soak.SoakReport(), "soak report")


# Two workers take whole files. Were the long ones left to the end, as one file of a single test of two minutes would
# be, one worker would wait for the other; the many short ones fill the end evenly.
LONGEST_FIRST = ("robustness", "simulation", "e2e", "integration", "docs", "contract", "unit")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    tests = Path(__file__).resolve().parent
    rank = {folder: at for at, folder in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: rank.get(item.path.relative_to(tests).parts[0], -1))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """`@pytest.mark.needs("grpcurl")`: without the tool the test is not run, and named at the end;
    with HEADRACE_REQUIRE=all it fails."""
    for mark in item.iter_markers("needs"):
        tool = mark.args[0]
        if not _is_here(tool):
            if os.environ.get("HEADRACE_REQUIRE") == "all":
                pytest.fail(f"{tool} is missing and HEADRACE_REQUIRE=all; {_remedy(tool)}")
            pytest.skip(f"needs {tool}; {_remedy(tool)}")


def _is_here(tool: str) -> bool:
    if tool == small_disk.NEED:
        return small_disk.is_allowed(Path(tempfile.gettempdir()))
    return real_tools.locate(tool) is not None


def _remedy(tool: str) -> str:
    if tool == small_disk.NEED:
        return "root or user namespaces"
    return "`make tools` builds it" if tool in real_tools.GO_TOOLS else f"apt-get install {tool}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Names every test that did not run, by the reason."""
    reasons: dict[str, list[str]] = {}
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[-1] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reasons.setdefault(reason.removeprefix("Skipped: "), []).append(report.nodeid)
    for reason, tests in sorted(reasons.items()):
        terminalreporter.write_line(f"NOT RUN: {len(tests)} tests: {reason}")
        for test in tests:
            terminalreporter.write_line(f"  {test}")


@pytest.fixture(scope="session")
def grpcurl() -> str:
    """Path of the real grpcurl; use with `@pytest.mark.needs("grpcurl")`."""
    path = real_tools.locate("grpcurl")
    assert path is not None
    return path


@pytest.fixture(scope="module")
def jaeger() -> Iterator[Jaeger]:
    """A real Jaeger of this module's own on free ports (0.2 s); use with `@pytest.mark.needs("jaeger")`."""
    with jaeger_server() as running:
        yield running
