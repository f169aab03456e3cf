"""The registry under concurrency, kills and damage: nothing half-made, nothing altered, no pin missed."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import msgspec
import nats.js.errors
import psutil
import pytest
from nats.aio.client import Client

from headrace.api.registry.v1 import registry_pb2
from headrace.edge.broker_process import BrokerProcess
from headrace.edge.bundle import pack_folder
from headrace.edge.kv_bucket import KvBucket
from headrace.edge.nats_connection import close_nats, connect_nats
from headrace.model import bucket_names
from services.registry.bundle_store import BundleStore
from services.registry.catalogue import Catalogue
from services.registry.collector import Collector
from services.registry.component_store import ComponentStore
from services.registry.domain.component_record import decode_component, encode_component
from services.registry.domain.revision_rules import mark_deleting
from tests.support.bundles import component_folder, digest_of, file_entry, raw_bundle
from tests.support.eventually import eventually
from tests.support.registry_rig import Registry, push_parts, refused, running_registry
from tests.unit.test_bundle import ZERO_BOMBS

STREAM = "OBJ_hr_default_bundles"


@pytest.fixture
async def registry(broker: BrokerProcess, tmp_path: Path) -> AsyncIterator[Registry]:
    async with running_registry(broker.url, tmp_path / "registry.log") as running:
        yield running


@pytest.fixture
async def connection(broker: BrokerProcess) -> AsyncIterator[Client]:
    opened = await connect_nats(broker.url, "test")
    yield opened
    await close_nats(opened)


async def catalogue_on(connection: Client) -> Catalogue:
    components = ComponentStore(await KvBucket.open(connection, bucket_names.component_bucket("default")))
    pins = await KvBucket.open(connection, bucket_names.pin_bucket("default"))
    bundles = await BundleStore.open(connection, bucket_names.bundle_store("default"))
    return Catalogue(components, bundles, pins, time.time)


def bundle_with(source: str) -> bytes:
    return raw_bundle(file_entry("component.py", source.encode()))


async def test_concurrent_pushes_through_two_registries(broker: BrokerProcess, tmp_path: Path) -> None:
    async with (
        running_registry(broker.url, tmp_path / "one.log") as one,
        running_registry(broker.url, tmp_path / "other.log") as other,
    ):
        equal = bundle_with("x = 0\n")
        answers = await asyncio.gather(*[(one, other)[i % 2].push_bytes(equal) for i in range(8)])
        assert {answer.revision.number for answer in answers} == {1}
        assert sum(answer.created for answer in answers) == 1

        different = [bundle_with(f"x = {number}\n") for number in range(1, 13)]
        answers = await asyncio.gather(*[(one, other)[i % 2].push_bytes(item) for i, item in enumerate(different)])
        assert all(answer.created for answer in answers)
        assert sorted(answer.revision.number for answer in answers) == list(range(2, 14))
        for bundle in different:
            assert digest_of(await one.download(digest_of(bundle))) == digest_of(bundle)
        assert [revision.number for revision in await other.revisions()] == list(range(13, 0, -1))
        latest = await one.resolve("price")
        assert latest.number == 13


async def test_a_killed_push_leaves_nothing_and_can_be_repeated(broker: BrokerProcess, tmp_path: Path) -> None:
    padding = os.urandom(6 << 20)
    with pack_folder(component_folder(tmp_path / "price", version="1.0.0", padding=padding)) as packed:
        bundle, digest = packed.path.read_bytes(), packed.digest
    killed_before_answer = 0
    # the first kill is in the middle of the client's stream, the others while the bundle is stored
    for number, delay_s in enumerate((None, 0.0, 0.03, 0.06, 0.1, 0.2)):
        async with running_registry(broker.url, tmp_path / f"registry{number}.log") as registry:
            sent = asyncio.Event()

            async def parts(half: bool, sent: asyncio.Event) -> AsyncIterator[registry_pb2.PushRevisionRequest]:
                count = 0
                async for part in push_parts(bundle, digest=digest):
                    count += 1
                    if half and count == 10:
                        sent.set()
                        await asyncio.Event().wait()
                    yield part
                sent.set()

            call = asyncio.ensure_future(registry.stub.PushRevision(parts(delay_s is None, sent), timeout=30))
            await sent.wait()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(call), delay_s or 0.001)
            answered = call.done()
            await registry.kill()
            killed_before_answer += not answered
            with contextlib.suppress(grpc.aio.AioRpcError):
                await call
        async with running_registry(broker.url, tmp_path / "check.log") as registry:
            listed = (await registry.stub.ListComponents(registry_pb2.ListComponentsRequest())).components
            if listed:  # then it is whole
                assert digest_of(await registry.download((await registry.resolve("price@1.0.0")).digest)) == digest
            else:
                assert not answered
    assert killed_before_answer >= 2
    async with running_registry(broker.url, tmp_path / "last.log") as registry:
        answer = await registry.push_bytes(bundle, digest=digest)
        assert answer.revision.number == 1
        assert await registry.download(digest) == bundle
    print(f"killed before the answer: {killed_before_answer} of 6")


async def test_altered_and_missing_bytes_are_never_served_and_a_push_repairs_them(
    registry: Registry, connection: Client, tmp_path: Path
) -> None:
    folder = component_folder(tmp_path / "price", padding=os.urandom(700_000))
    revision = (await registry.push(folder)).revision
    stream = connection.jetstream()
    name = base64.urlsafe_b64encode(revision.digest.removeprefix("sha256:").encode()).decode()

    async def chunk_subject() -> str:
        newest = await stream.get_last_msg(STREAM, f"$O.hr_default_bundles.M.{name}")
        assert newest.data is not None
        return f"$O.hr_default_bundles.C.{json.loads(newest.data)['nuid']}"

    async def drop_one() -> None:
        first = await stream.get_msg(STREAM, seq=1, subject=await chunk_subject(), next=True)
        assert first.seq is not None
        await stream.delete_msg(STREAM, first.seq)

    async def alter() -> None:
        subject = await chunk_subject()
        chunks: list[bytes] = []
        sequence = 1
        with contextlib.suppress(nats.js.errors.NotFoundError):
            while True:
                message = await stream.get_msg(STREAM, seq=sequence, subject=subject, next=True)
                chunks.append(message.data or b"")
                sequence = (message.seq or 0) + 1
        await stream.purge_stream(STREAM, subject=subject)
        chunks[1] = chunks[1][:1000] + bytes([chunks[1][1000] ^ 1]) + chunks[1][1001:]
        for chunk in chunks:
            await stream.publish(subject, chunk)

    async def drop_all() -> None:
        await stream.purge_stream(STREAM, subject="$O.hr_default_bundles.>")

    for damage in (drop_one, alter, drop_all):
        await damage()
        started = time.monotonic()
        async with refused() as refusals:
            await registry.download(revision.digest)
        assert refusals[0].code == grpc.StatusCode.DATA_LOSS
        assert refusals[0].reason == "BUNDLE_DAMAGED"
        assert time.monotonic() - started < 3
        again = await registry.push(folder)
        assert (again.created, again.revision.number) == (False, 1)
        assert digest_of(await registry.download(revision.digest)) == revision.digest


async def test_pushes_and_downloads_given_up_leave_nothing(registry: Registry, tmp_path: Path) -> None:
    folder = component_folder(tmp_path / "price", padding=os.urandom(3 << 20))
    with pack_folder(folder) as packed:
        bundle = packed.path.read_bytes()

    async def half(sent: asyncio.Event) -> AsyncIterator[registry_pb2.PushRevisionRequest]:
        count = 0
        async for part in push_parts(bundle):
            yield part
            count += 1
            if count == 5:
                sent.set()
                await asyncio.Event().wait()

    for _ in range(6):  # more than may run at once
        sent = asyncio.Event()
        call = registry.stub.PushRevision(half(sent), timeout=30)
        await asyncio.wait_for(sent.wait(), 10)
        call.cancel()
    assert not (await registry.stub.ListComponents(registry_pb2.ListComponentsRequest())).components
    revision = (await registry.push_bytes(bundle)).revision
    for _ in range(6):
        download = registry.stub.DownloadBundle(registry_pb2.DownloadBundleRequest(digest=revision.digest))
        await download.read()
        download.cancel()
    assert await registry.download(revision.digest) == bundle

    def temporary_files() -> list[str]:
        links = []
        for descriptor in Path(f"/proc/{registry.process.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                links.append(os.readlink(descriptor))
        return [link for link in links if link.endswith("(deleted)")]

    await eventually(lambda: not temporary_files())


@pytest.mark.parametrize("bomb", ZERO_BOMBS.values(), ids=ZERO_BOMBS.keys())
async def test_zeros_are_refused_quickly_in_little_memory(registry: Registry, bomb: bytes) -> None:
    process = psutil.Process(registry.process.pid)
    before = process.memory_info().rss
    started = time.monotonic()
    async with refused() as refusals:
        await registry.push_bytes(bomb)
    assert refusals[0].code == grpc.StatusCode.INVALID_ARGUMENT
    assert time.monotonic() - started < 5
    assert process.memory_info().rss - before < 32 << 20


async def test_a_bundle_above_the_limit_is_refused_while_it_comes(registry: Registry) -> None:
    """72 MiB that do not compress, in one gzip stream that never ends."""
    entry, _ = file_entry("noise")
    entry.size = 250 << 20
    head = entry.tobuf()
    noise = os.urandom(0xFFFF)

    def stored(data: bytes) -> bytes:
        return b"\x00" + len(data).to_bytes(2, "little") + (0xFFFF - len(data)).to_bytes(2, "little") + data

    async def parts() -> AsyncIterator[registry_pb2.PushRevisionRequest]:
        yield registry_pb2.PushRevisionRequest(header=registry_pb2.PushHeader(component="price"))
        yield registry_pb2.PushRevisionRequest(chunk=raw_bundle()[:10] + stored(head))
        for _ in range(144):
            yield registry_pb2.PushRevisionRequest(chunk=stored(noise) * 8)

    async with refused() as refusals:
        await registry.stub.PushRevision(parts(), timeout=30)
    assert refusals[0].reason == "BUNDLE_TOO_LARGE", refusals[0]
    assert "67,108,864" in refusals[0].text


async def test_a_pin_and_a_delete_never_miss_each_other(registry: Registry, connection: Client) -> None:
    pins = await KvBucket.open(connection, bucket_names.pin_bucket("default"))
    seen: list[grpc.StatusCode] = []
    both_sides: dict[str, int] = {"pinned": 0, "deleted": 0}
    for number in range(30):
        bundle = bundle_with(f"x = {number}\n")
        revision = (await registry.push_bytes(bundle)).revision
        key = bucket_names.pin_key(revision.digest, "orders", f"d{number + 1}")

        async def pin(key: str = key, digest: str = revision.digest, wait: int = number) -> bool:
            for _ in range(wait * 2):
                await asyncio.wait_for(connection.flush(), 5)  # round trips, to meet the delete anywhere
            await pins.put(key, b"")
            try:
                await registry.resolve(f"price@{digest}")
            except grpc.aio.AioRpcError as error:
                seen.append(error.code())
                await pins.delete(key)
                return False
            return True

        async def delete(revision_number: int = revision.number) -> bool:
            try:
                await registry.delete(revision_number)
            except grpc.aio.AioRpcError as error:
                seen.append(error.code())
                return False
            return True

        pinned, deleted = await asyncio.gather(pin(), delete())
        assert not (pinned and deleted), f"round {number}: pinned what was deleted"
        both_sides["pinned"] += pinned
        both_sides["deleted"] += deleted
        if pinned:
            assert digest_of(await registry.download(revision.digest)) == revision.digest
    print(both_sides)
    assert set(seen) <= {
        grpc.StatusCode.NOT_FOUND,  # the pin came too late
        grpc.StatusCode.ABORTED,  # ... while it was being deleted
        grpc.StatusCode.FAILED_PRECONDITION,  # the delete saw the pin
    }
    assert all(both_sides.values())


async def test_an_old_delete_cannot_take_what_a_new_push_relies_on(connection: Client) -> None:
    catalogue = await catalogue_on(connection)
    bundle = bundle_with("x = 1\n")
    digest = digest_of(bundle)
    with tempfile.TemporaryFile() as file:
        file.write(bundle)
        seen = await catalogue.bundles.ensure(digest, file)  # what a delete saw before it was held up
        await catalogue.bundles.ensure(digest, file)  # a push since
        assert not await catalogue.bundles.delete(seen)
        now = await catalogue.bundles.find(digest)
        assert now is not None
        with await catalogue.open_bundle(digest) as served:
            assert served.read() == bundle
        assert await catalogue.bundles.delete(now)
        assert await catalogue.bundles.find(digest) is None
        await catalogue.bundles.ensure(digest, file)
        assert await catalogue.bundles.find(digest) is not None


async def test_what_killed_registries_left_is_cleared_up(
    broker: BrokerProcess, connection: Client, tmp_path: Path
) -> None:
    async with running_registry(broker.url, tmp_path / "first.log") as registry:
        for number in range(3):
            await registry.push_bytes(bundle_with(f"x = {number}\n"))
        digests = {one.number: one.digest for one in await registry.revisions()}
    catalogue = await catalogue_on(connection)
    bucket = await KvBucket.open(connection, bucket_names.component_bucket("default"))
    pins = await KvBucket.open(connection, bucket_names.pin_bucket("default"))
    # killed after the mark: revision 1 unpinned, revision 2 pinned meanwhile
    entry = await bucket.get("component.price")
    assert entry is not None
    assert entry.value is not None
    record = mark_deleting(decode_component(entry.value), 1, deleting=True)
    record = mark_deleting(record, 2, deleting=True)
    await bucket.update("component.price", encode_component(record), entry.revision)
    await pins.put(bucket_names.pin_key(digests[2], "orders", "d1"), b"")
    # killed before the component's record, and in the middle of the chunks
    orphan = bundle_with("x = 'orphan'\n")
    with tempfile.TemporaryFile() as file:
        file.write(orphan)
        await catalogue.bundles.ensure(digest_of(orphan), file)
    left = await catalogue.components.find_bundle(digests[3])
    assert left is not None
    await catalogue.components.put_bundle(msgspec.structs.replace(left[0], digest=digest_of(orphan)))
    await connection.jetstream().publish("$O.hr_default_bundles.C.cutoff", b"half")

    async with running_registry(broker.url, tmp_path / "second.log") as registry:

        async def resolved() -> bool:
            return [one.number for one in await registry.revisions()] == [3, 2]

        await eventually(resolved)
        assert digest_of(await registry.download(digests[2])) == digests[2]
        async with refused() as refusals:
            await registry.download(digests[1])
        assert refusals[0].code == grpc.StatusCode.NOT_FOUND
    assert await Collector(catalogue, orphan_age_s=3600).drop_orphans() == 0
    collector = Collector(catalogue, orphan_age_s=-1)
    assert await collector.drop_orphans() == 2
    assert await collector.drop_orphans() == 1
    assert await collector.drop_orphans() == 0
    assert set(await catalogue.components.list_bundles()) == {digests[2], digests[3]}
    assert await catalogue.bundles.find(digest_of(orphan)) is None
    assert {one.info.name for one in await catalogue.bundles.list_objects()} == {
        digests[number].removeprefix("sha256:") for number in (2, 3)
    }
    info = await connection.jetstream().stream_info(STREAM, subjects_filter="$O.hr_default_bundles.C.>")
    assert len(info.state.subjects or {}) == 2


async def test_a_broker_restart_is_survived(broker: BrokerProcess, registry: Registry, tmp_path: Path) -> None:
    revision = (await registry.push(component_folder(tmp_path / "price"))).revision
    broker.kill()
    await broker.stop()
    async with refused() as refusals:
        await registry.resolve("price")
    assert refusals[0].code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    await broker.start()

    async def serves() -> bool:
        try:
            return (await registry.resolve("price")) == revision
        except grpc.aio.AioRpcError:
            return False

    await eventually(serves, within_s=20)
    assert digest_of(await registry.download(revision.digest)) == revision.digest
    assert (await registry.push(component_folder(tmp_path / "price", source="x = 2\n"))).revision.number == 2
