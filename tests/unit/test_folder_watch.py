"""Saves are noticed: once each, also those that come while nobody asks; what a bundle leaves out does not count."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from headrace.edge import folder_watch
from headrace.edge.folder_watch import FolderWatch
from tests.support.eventually import remains


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_watch, "PAUSE_S", 0.01)
    monkeypatch.setattr(folder_watch, "SHARE", 1.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    for name in ("component.yaml", "component.py", "sub/data.json", "test_it.py"):
        (tmp_path / name).write_text("1")
    (tmp_path / ".headraceignore").write_text("test_*.py\n")
    return tmp_path


async def names(watch: FolderWatch) -> set[str]:
    return {path.name for path in await asyncio.wait_for(watch.changed(), 5)}


async def test_what_is_made_altered_replaced_and_removed_is_told(folder: Path) -> None:
    watch = FolderWatch(lambda: [folder])
    (folder / "sub" / "data.json").write_text("22")
    (folder / "new.py").write_text("1")
    assert await names(watch) == {"data.json", "new.py"}
    (folder / "swap").write_text("2")
    os.replace(folder / "swap", folder / "component.py")  # as editors save
    assert await names(watch) == {"component.py"}
    (folder / "new.py").unlink()
    assert await names(watch) == {"new.py"}


async def test_what_a_bundle_leaves_out_is_no_save(folder: Path) -> None:
    watch = FolderWatch(lambda: [folder])
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "component.pyc").write_text("1")
    (folder / "test_it.py").write_text("22")
    change = asyncio.ensure_future(watch.changed())
    await remains(lambda: not change.done(), for_s=0.2)
    change.cancel()


async def test_a_save_that_was_seen_and_not_told_is_told_the_next_time(folder: Path) -> None:
    watch = FolderWatch(lambda: [folder])
    (folder / "component.py").write_text("22")
    for _ in range(3):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(watch.changed(), 0.001)
    assert await names(watch) == {"component.py"}


async def test_a_folder_that_comes_into_the_flow_file_is_watched_from_then_on(folder: Path) -> None:
    paths = [folder / "component.yaml"]
    watch = FolderWatch(lambda: paths)
    paths.append(folder / "sub")
    assert await names(watch) == {"data.json"}
    (folder / "sub" / "data.json").write_text("333")
    assert await names(watch) == {"data.json"}


async def test_a_folder_that_cannot_be_packed_or_is_gone_does_not_end_the_watch(folder: Path) -> None:
    (folder / "link").symlink_to("/etc/hostname")
    watch = FolderWatch(lambda: [folder, folder / "gone.yaml"])
    (folder / "component.yaml").write_text("22")
    assert await names(watch) == {"component.yaml"}
