"""What all robustness tests share."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest

from tests.support import small_disk, soak
from tests.support.mesh import RunningMesh, start_mesh


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A long form takes as long as it is asked to: a test's own limit is meant for its short form."""
    if not soak.ASKED:
        return
    for item in items:
        item.own_markers = [mark for mark in item.own_markers if mark.name != "timeout"]


# What has no short form.
collect_ignore = [] if soak.ASKED else ["test_why_soak.py"]

CACHE_BYTES = 64 << 20


@pytest.fixture(scope="session")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMesh]:
    """One mesh with two gateways for all modules that stop their flows at the end. What a killed sidecar held is
    delivered again after 5 s; where it is allowed, the agent's cache has a small disk of its own."""
    folder = tmp_path_factory.mktemp("robust")
    cache = folder / "data" / "cache"
    cache.mkdir(parents=True)
    disk = partial(small_disk.wrapped, cache, CACHE_BYTES) if small_disk.is_allowed(cache) else list
    with start_mesh(folder, "fast", "--gateways", "2", ack_wait_s=5, within=disk) as running:
        yield running
