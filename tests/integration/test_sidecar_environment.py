"""Environments built by uv from lock files, with wheels of our own making and no index."""

from __future__ import annotations

import asyncio
import zipfile
from hashlib import sha256
from pathlib import Path

import pytest

from headrace.model.errors import DeadlineExceeded, InvalidInput
from services.sidecar import environment as environment_module
from services.sidecar.environment import LOCK_FILE, EnvironmentCache
from services.sidecar.file_lock import locked


def make_wheel(folder: Path, name: str, version: str) -> str:
    """A wheel with one module `<name>` that knows its version; answers its lock line."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{name}.py", f"VERSION = {version!r}\n")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", f"{name}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    return f"{name}=={version} --hash=sha256:{sha256(path.read_bytes()).hexdigest()}\n"


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("UV_FIND_LINKS", str(folder))
    monkeypatch.setenv("UV_NO_INDEX", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv-cache"))
    return folder


def make_bundle(folder: Path, lock: str) -> Path:
    folder.mkdir()
    (folder / LOCK_FILE).write_text(lock)
    return folder


async def run(python: Path, code: str) -> str:
    process = await asyncio.create_subprocess_exec(
        python, "-P", "-c", code, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return output.decode().strip()


async def test_a_lock_gives_its_own_packages_and_the_sdk(tmp_path: Path, wheels: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", make_wheel(wheels, "tinything", "1.2.0"))
    cache = EnvironmentCache(tmp_path / "cache")
    assert cache.find(bundle) is None
    python = await cache.build(bundle)
    assert await run(python, "import tinything, headrace.sdk; print(tinything.VERSION)") == "1.2.0"
    assert cache.find(bundle) == python
    assert list(python.parents[1].glob("lib/python*/site-packages/__pycache__/tinything*.pyc"))


async def test_what_the_component_pins_wins_over_the_mesh(tmp_path: Path, wheels: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", make_wheel(wheels, "msgspec", "99.0"))
    python = await EnvironmentCache(tmp_path / "cache").build(bundle)
    assert await run(python, "import msgspec; print(msgspec.VERSION)") == "99.0"


async def test_several_sidecars_build_once(tmp_path: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = make_bundle(tmp_path / "bundle", make_wheel(wheels, "tinything", "1.2.0"))
    built: list[list[str]] = []
    really_run = environment_module._run

    async def counted(command: list[str]) -> None:
        built.append(command)
        await really_run(command)

    monkeypatch.setattr(environment_module, "_run", counted)
    caches = [EnvironmentCache(tmp_path / "cache") for _ in range(4)]
    pythons = await asyncio.gather(*(cache.build(bundle) for cache in caches))
    assert len(set(pythons)) == 1
    assert len(built) == 2  # one venv, one sync


async def test_a_wrong_hash_is_refused_with_the_last_lines_of_uv(tmp_path: Path, wheels: Path) -> None:
    line = make_wheel(wheels, "tinything", "1.2.0")
    bundle = make_bundle(tmp_path / "bundle", line.replace(line[-9:-1], "00000000"))
    cache = EnvironmentCache(tmp_path / "cache")
    with pytest.raises(InvalidInput, match=r"(?i)hash") as caught:
        await cache.build(bundle)
    assert caught.value.reason == "ENVIRONMENT_BUILD_FAILED"
    assert cache.find(bundle) is None
    assert [path for path in (tmp_path / "cache" / "environments").iterdir() if path.is_dir()] == []


async def test_an_unknown_package_is_refused(tmp_path: Path, wheels: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", f"notthere==1.0 --hash=sha256:{'0' * 64}\n")
    with pytest.raises(InvalidInput, match="notthere"):
        await EnvironmentCache(tmp_path / "cache").build(bundle)


async def test_a_bundle_without_requirements_runs_on_the_mesh(tmp_path: Path) -> None:
    cache = EnvironmentCache(tmp_path / "cache")
    bundle = make_bundle(tmp_path / "bundle", "# nothing\n\n")
    python = cache.find(bundle)
    assert python is not None
    assert await run(python, "import headrace.sdk; print(1)") == "1"


async def test_a_lock_held_elsewhere_has_a_limit(tmp_path: Path) -> None:
    async with locked(tmp_path / "a.lock", 1.0):
        with pytest.raises(DeadlineExceeded, match="held by another"):
            async with locked(tmp_path / "a.lock", 0.05):
                pass
    async with locked(tmp_path / "a.lock", 1.0):
        pass
