"""Our hash of keys and the broker's `partition` say the same, so that either may place a message."""

from __future__ import annotations

from pathlib import Path

from headrace.edge.broker_process import BrokerProcess
from headrace.edge.nats_connection import close_nats, connect_nats
from headrace.model.slots import slot_of

# What a subject's token may be: the broker hashes tokens.
KEYS = ["a", "b", "foobar", "customer-7", "kürbis", "鍵", "x" * 200, *(f"order_{number}" for number in range(200))]


async def test_slots_are_the_brokers_partitions(tmp_path: Path) -> None:
    broker = BrokerProcess(tmp_path / "broker")
    await broker.start()
    connection = await connect_nats(broker.url, "test")
    try:
        js = connection.jetstream()
        for slots in (2, 8, 61, 64):
            name = f"placed{slots}"
            await connection.request(
                f"$JS.API.STREAM.CREATE.{name}",
                b'{"name":"%s","subjects":["%s.*"],"subject_transform":{"src":"%s.*","dest":"%s.{{partition(%d,1)}}"}}'
                % (name.encode(), name.encode(), name.encode(), name.encode(), slots),
            )
            for key in KEYS:
                await js.publish(f"{name}.{key}", key.encode())
            found = {}
            for sequence in range(1, len(KEYS) + 1):
                message = await js.get_msg(name, sequence)
                assert message.data is not None
                assert message.subject is not None
                found[message.data.decode()] = int(message.subject.rsplit(".", 1)[1])
            assert found == {key: slot_of(key, slots) for key in KEYS}
    finally:
        await close_nats(connection)
        await broker.stop()
