"""The registry as a real process on a real broker: push, read, tag, resolve, download, delete."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from headrace.api.component.v1 import component_pb2
from headrace.api.registry.v1 import registry_pb2
from headrace.edge.broker_process import BrokerProcess
from headrace.edge.bundle import inspect_bundle, pack_folder, unpack_bundle
from headrace.edge.kv_bucket import KvBucket
from headrace.edge.nats_connection import close_nats, connect_nats
from headrace.model import bucket_names
from tests.support.bundles import MANIFEST, component_folder, digest_of, file_entry, raw_bundle
from tests.support.registry_rig import Registry, push_parts, refused, running_registry


@pytest.fixture
async def registry(broker: BrokerProcess, tmp_path: Path) -> AsyncIterator[Registry]:
    async with running_registry(broker.url, tmp_path / "registry.log") as running:
        yield running


async def test_push_get_list_and_download(registry: Registry, tmp_path: Path) -> None:
    folder = component_folder(tmp_path / "price", version="1.0.0")
    with pack_folder(folder) as packed:
        pushed = await registry.push(folder)
        revision = pushed.revision
        assert pushed.created
        assert revision.name == "components/price/revisions/1"
        assert (revision.digest, revision.version, revision.number) == (packed.digest, "1.0.0", 1)
        assert revision.content_bytes == packed.content_bytes
        assert revision.bundle_bytes == packed.bundle_bytes
        assert revision.create_time.seconds > 1_700_000_000
        (function,) = revision.manifest.functions
        assert (function.name, function.kind) == ("price", component_pb2.FUNCTION_KIND_ACTION)
        assert function.in_schema_json == '{"type":"object"}'
        bundle = await registry.download(revision.digest)
        assert bundle == packed.path.read_bytes()
    saved = tmp_path / "fetched.tar.gz"
    saved.write_bytes(bundle)
    assert inspect_bundle(saved).digest == revision.digest
    unpack_bundle(saved, revision.digest, tmp_path / "unpacked")
    assert (tmp_path / "unpacked" / "component.py").read_text() == "x = 1\n"

    component = await registry.stub.GetComponent(registry_pb2.GetComponentRequest(name="components/price"))
    assert component.latest_revision == 1
    assert dict(component.tags) == {"latest": 1, "1.0.0": 1}
    got = await registry.stub.GetRevision(registry_pb2.GetRevisionRequest(name=revision.name))
    assert got == revision


async def test_equal_content_is_the_same_revision_and_new_content_moves_latest(
    registry: Registry, tmp_path: Path
) -> None:
    first = await registry.push(component_folder(tmp_path / "a"))
    again = await registry.push(component_folder(tmp_path / "other place"))
    assert (first.created, again.created) == (True, False)
    assert again.revision == first.revision
    second = await registry.push(component_folder(tmp_path / "a", source="x = 2\n"))
    assert second.revision.number == 2
    back = await registry.push(component_folder(tmp_path / "b"))
    assert (back.created, back.revision.number) == (False, 1)
    assert (await registry.resolve("price")).number == 2
    assert [one.number for one in await registry.revisions()] == [2, 1]


async def test_same_version_with_other_bytes_is_refused_naming_the_next_free_one(
    registry: Registry, tmp_path: Path
) -> None:
    await registry.push(component_folder(tmp_path / "a", version="1.0.0"))
    await registry.push(component_folder(tmp_path / "a", version="1.0.1", source="x = 2\n"))
    async with refused() as refusals:
        await registry.push(component_folder(tmp_path / "a", version="1.0.0", source="x = 3\n"))
    assert refusals[0].code == grpc.StatusCode.ALREADY_EXISTS
    assert refusals[0].reason == "VERSION_TAKEN"
    assert refusals[0].metadata["next_free_version"] == "1.0.2"
    assert len(await registry.revisions()) == 2
    # also after the revision is gone: a version never comes to mean other bytes
    await registry.delete(1)
    async with refused() as refusals:
        await registry.push(component_folder(tmp_path / "a", version="1.0.0", source="x = 3\n"))
    assert refusals[0].reason == "VERSION_TAKEN"
    assert (await registry.push(component_folder(tmp_path / "a", version="1.0.0"))).revision.number == 3


async def test_tags_and_references(registry: Registry, tmp_path: Path) -> None:
    for source in ("x = 1\n", "x = 2\n", "x = 3\n"):
        await registry.push(component_folder(tmp_path / "a", source=source))
    name = "components/price/revisions/"
    digests = {one.number: one.digest for one in await registry.revisions()}

    async def tag(number: int, word: str) -> registry_pb2.Revision:
        return await registry.stub.TagRevision(registry_pb2.TagRevisionRequest(name=f"{name}{number}", tag=word))

    assert (await tag(1, "stable")).number == 1
    await tag(2, "2.0.0")
    for reference, number in {
        "price": 3,
        "price@latest": 3,
        "price@2": 2,
        "price@stable": 1,
        "price@2.0.0": 2,
        f"price@{digests[1]}": 1,
    }.items():
        assert (await registry.resolve(reference)).number == number, reference
    await tag(2, "stable")
    assert (await registry.resolve("price@stable")).number == 2
    async with refused() as refusals:
        await tag(3, "2.0.0")
    assert refusals[0].reason == "VERSION_TAKEN"
    for wrong, code in {
        "price@none": grpc.StatusCode.NOT_FOUND,
        "price@9": grpc.StatusCode.NOT_FOUND,
        "nobody": grpc.StatusCode.NOT_FOUND,
        "Price": grpc.StatusCode.INVALID_ARGUMENT,
        "price@sha256:12": grpc.StatusCode.INVALID_ARGUMENT,
    }.items():
        async with refused() as refusals:
            await registry.resolve(wrong)
        assert refusals[0].code == code, wrong
        assert refusals[0].metadata.get("next_step"), wrong
    async with refused() as refusals:
        await tag(1, "7")
    assert refusals[0].code == grpc.StatusCode.INVALID_ARGUMENT


async def test_lists_come_in_pages(registry: Registry, tmp_path: Path) -> None:
    for name in ("alpha", "beta", "gamma"):
        await registry.push(component_folder(tmp_path / name, name=name))
    for number in range(5):
        await registry.push(component_folder(tmp_path / "alpha", name="alpha", source=f"x = {number + 10}\n"))
    names: list[str] = []
    token = ""
    while True:
        page = await registry.stub.ListComponents(registry_pb2.ListComponentsRequest(page_size=2, page_token=token))
        names += [one.name for one in page.components]
        token = page.next_page_token
        if not token:
            break
    assert names == ["components/alpha", "components/beta", "components/gamma"]
    numbers: list[int] = []
    while True:
        request = registry_pb2.ListRevisionsRequest(parent="components/alpha", page_size=4, page_token=token)
        answer = await registry.stub.ListRevisions(request)
        numbers += [one.number for one in answer.revisions]
        token = answer.next_page_token
        if not token:
            break
    assert numbers == [6, 5, 4, 3, 2, 1]
    for bad in (
        registry_pb2.ListComponentsRequest(page_size=-1),
        registry_pb2.ListComponentsRequest(page_token="nonsense"),
    ):
        async with refused() as refusals:
            await registry.stub.ListComponents(bad)
        assert refusals[0].code == grpc.StatusCode.INVALID_ARGUMENT


async def test_a_pinned_revision_is_not_deleted(broker: BrokerProcess, registry: Registry, tmp_path: Path) -> None:
    first = (await registry.push(component_folder(tmp_path / "a"))).revision
    await registry.push(component_folder(tmp_path / "a", source="x = 2\n"))
    connection = await connect_nats(broker.url, "test")
    pins = await KvBucket.open(connection, bucket_names.pin_bucket("default"))
    await pins.put(bucket_names.pin_key(first.digest, "orders", "d1"), b"")
    await pins.put(bucket_names.pin_key(first.digest, "orders", "v2"), b"")
    async with refused() as refusals:
        await registry.delete(1)
    assert refusals[0].code == grpc.StatusCode.FAILED_PRECONDITION
    assert "flows/orders/deployments/1" in refusals[0].text
    assert "flows/orders/versions/2" in refusals[0].text
    assert list((await registry.resolve("price@1")).pinned_by) == [
        "flows/orders/deployments/1",
        "flows/orders/versions/2",
    ]
    await pins.delete(bucket_names.pin_key(first.digest, "orders", "d1"))
    await pins.delete(bucket_names.pin_key(first.digest, "orders", "v2"))
    await registry.delete(1)
    for call in (registry.resolve("price@1"), registry.download(first.digest), registry.delete(1)):
        async with refused() as refusals:
            await call
        assert refusals[0].code == grpc.StatusCode.NOT_FOUND
    assert (await registry.resolve("price")).number == 2
    # pushed again it is a new revision with the same content
    again = await registry.push(component_folder(tmp_path / "a"))
    assert (again.created, again.revision.number) == (True, 3)
    assert digest_of(await registry.download(first.digest)) == first.digest
    await close_nats(connection)


async def test_bad_pushes_are_refused_and_leave_nothing(registry: Registry) -> None:
    good = raw_bundle(file_entry("component.py", b"x = 1\n"))
    cases: list[tuple[str, bytes, str, str, str]] = [
        ("wrong digest", good, "price", "sha256:" + "0" * 64, "DIGEST_MISMATCH"),
        ("not a digest", good, "price", "abc", "INVALID_INPUT"),
        ("other name", good, "other", "", "NAME_MISMATCH"),
        ("no name", good, "", "", "BAD_NAME"),
        ("not gzip", b"PK\x03\x04 zip", "price", "", "BAD_BUNDLE"),
        ("empty", b"", "price", "", "BAD_BUNDLE"),
        ("cut off", good[:-20], "price", "", "BAD_BUNDLE"),
        ("no manifest", raw_bundle(file_entry("a", b""), manifest=None), "price", "", "NO_MANIFEST"),
        ("dotdot", raw_bundle(file_entry("../evil", b"")), "price", "", "BUNDLE_UNSAFE_PATH"),
        ("kind", raw_bundle(manifest=MANIFEST.replace(b"action", b"actor")), "price", "", "UNKNOWN_FUNCTION_KIND"),
    ]
    for what, bundle, name, digest, reason in cases:
        async with refused() as refusals:
            await registry.push_bytes(bundle, name, digest)
        assert refusals[0].code == grpc.StatusCode.INVALID_ARGUMENT, what
        assert refusals[0].reason == reason, (what, refusals[0])
    async with refused() as refusals:
        await registry.stub.PushRevision(push_parts(bytes(3 << 20), step=2 << 20))
    assert refusals[0].reason == "BAD_PUSH"
    assert not (await registry.stub.ListComponents(registry_pb2.ListComponentsRequest())).components


async def test_health_is_served(registry: Registry) -> None:
    answer = await health_pb2_grpc.HealthStub(registry.channel).Check(  # type: ignore[attr-defined]
        health_pb2.HealthCheckRequest(service="headrace.api.registry.v1.RegistryService")
    )
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
