"""Fuzzing of what people write: flow files and manifests that are nearly right, and bundles that were right once.

Whatever comes is read, and then can be sent to the mesh and read there as the same, or it is an InvalidInput whose text
a status can carry. How many were tried, and how many taken, is printed with the seed; a soak multiplies them.
"""

from __future__ import annotations

import gzip
import os
import random
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from headrace.edge.bundle import pack_folder
from headrace.edge.bundle_reader import BundleReader
from headrace.model.errors import InvalidInput, NotFound
from headrace.model.manifest import read_manifest
from headrace.wire.flow import flow_spec_from_proto, flow_spec_to_proto
from headrace.wire.flow_file import parse_flow_file
from headrace.wire.manifest import manifest_from_proto, manifest_to_proto
from tests.support.fuzz import mutated, text
from tests.support.soak import rounds

ROOT = Path(__file__).parents[2]
ROUNDS = rounds(20, short=1)
SEED = int(os.environ.get("HEADRACE_SEED") or random.SystemRandom().randrange(2**31))
ODD = (
    *(None, True, -1, 0, 65, 2**31, 2**63, 10**30, 1.5, float("nan"), float("inf"), "", " ", "a", "A", "-", "é", "5s"),
    *(
        "0s",
        "-1s",
        "1e99s",
        "10ms",
        "1/s",
        "header:",
        "body:/a/~2",
        "header:X",
        "price@",
        "price@0",
        "./",
        "../..",
        "/",
    ),
    *([], {}, [None], [[]], {"a": None}, {"a": {"b": [1]}}, "x" * 300, "\ud800", "\x00", "2026-01-01", "0x10", "1_000"),
)
INSERTIONS = ("&a ", "*a", "<<: *a\n", "!!python/object ", "? ", "- ", ": ", "{", "}", "[", "|", ">", "#", "\t", "\n",
              "---\n", "...\n", "%YAML 9.9\n", "\ufeff", "\x85", "\u2028", "'", '"', "on: true\n", "\x00")  # fmt: skip


def mutated_tree(value: Any, rng: random.Random) -> Any:
    """The same value with one of its nodes replaced, taken out, doubled or renamed."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        rest = dict(value)
        match rng.randrange(8):
            case 0:
                del rest[key]
            case 1:
                rest[rng.choice([text(rng), 1, None, "steps", "name", f"{key}s"])] = rest.pop(key)
            case 2:
                rest[rng.choice(("to", "config", "retry", "key", "every", "slots", "name"))] = rng.choice(ODD)
            case _:
                rest[key] = mutated_tree(value[key], rng)
        return rest
    if isinstance(value, list) and value and rng.random() < 0.7:
        at = rng.randrange(len(value))
        return [*value[:at], mutated_tree(value[at], rng), *value[at + rng.randrange(2) :]]
    return rng.choice(ODD)


def nearly(sources: list[str], rng: random.Random) -> bytes:
    """One of the files, as somebody might have got it wrong: by its values, its text, or its bytes."""
    source = rng.choice(sources)
    if rng.random() < 0.6:
        tree = yaml.safe_load(source)
        for _ in range(rng.randrange(1, 4)):
            tree = mutated_tree(tree, rng)
        return yaml.dump(tree, sort_keys=False, allow_unicode=True).encode(errors="surrogatepass")
    if rng.random() < 0.6:
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(len(source) + 1)
            source = source[:at] + rng.choice(INSERTIONS) + source[at + rng.randrange(4) :]
        return source.encode(errors="surrogatepass")
    return mutated(source.encode(), rng)


def flow_survives(raw: bytes) -> None:
    file = parse_flow_file(raw, source="flow.yaml", folder=ROOT)
    file.check()
    message = type(sent := flow_spec_to_proto(file.spec)).FromString(sent.SerializeToString())
    assert flow_spec_from_proto(message) == file.spec


def manifest_survives(raw: bytes) -> None:
    manifest = read_manifest(raw)
    message = type(sent := manifest_to_proto(manifest)).FromString(sent.SerializeToString())
    assert manifest_from_proto(message) == manifest


def bundle_survives(raw: bytes) -> None:
    reader = BundleReader()
    for at in range(0, len(raw), 700):
        reader.feed(raw[at : at + 700])
    assert reader.finish().digest.startswith("sha256:")


def damaged(bundle: bytes, rng: random.Random) -> bytes:
    """Mostly inside, where no checksum of gzip's tells."""
    if rng.random() < 0.2:
        return mutated(bundle, rng)
    return gzip.compress(mutated(gzip.decompress(bundle), rng), 1, mtime=0)


def sources(pattern: str) -> list[str]:
    found = [path.read_text(encoding="utf-8") for folder in ("examples", "components", "benchmarks")
             for path in sorted((ROOT / folder).rglob(pattern))]  # fmt: skip
    assert found
    return found


def packed() -> bytes:
    with pack_folder(ROOT / "components" / "webhook") as bundle:
        return bundle.path.read_bytes()


def cases() -> dict[str, tuple[Callable[[random.Random], bytes], Callable[[bytes], None]]]:
    flows = [re.sub(r"component: [./]+(components/)?", "component: ", source) for source in sources("flow.yaml")]
    manifests, bundle = sources("component.yaml"), packed()
    return {
        "flow files": (lambda rng: nearly(flows, rng), flow_survives),
        "manifests": (lambda rng: nearly(manifests, rng), manifest_survives),
        "bundles": (lambda rng: damaged(bundle, rng), bundle_survives),
    }


@pytest.mark.timeout(60 * ROUNDS)
@pytest.mark.parametrize("kind", ["flow files", "manifests", "bundles"])
def test_what_people_write(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(SEED)
    make, survives = cases()[kind]
    tried = taken = 0
    refusals: list[str] = []
    for _ in range(400 * ROUNDS):
        raw = make(rng)
        tried += 1
        try:
            survives(raw)
            taken += 1
        except (InvalidInput, NotFound) as error:
            refusals.append(str(error))
        except Exception as error:
            kept = Path(tempfile.gettempdir()) / f"headrace-fuzz-{kind.split()[0]}-{SEED}"
            kept.write_bytes(raw)
            raise AssertionError(f"seed {SEED}, kept in {kept}: {raw[:600]!r}") from error
    for refusal in refusals:
        assert refusal.strip()
        assert "Traceback" not in refusal
        assert len(refusal.encode()) < 2000, refusal
    with capsys.disabled():
        print(f"\nfuzzed {tried} {kind}, {taken} were taken, seed {SEED}")
