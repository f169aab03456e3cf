"""A paused consumer that is resumed delivers what waits at once, to whom waits, and loses nothing."""

from __future__ import annotations

import json
import time

from headrace.edge.broker_process import BrokerProcess
from headrace.edge.jetstream_assets import PAUSED_UNTIL, JetStreamAssets
from headrace.edge.nats_connection import close_nats, connect_nats
from headrace.wire.jetstream import pull_request, pull_subject
from tests.support.eventually import eventually

STREAM = "pauses"


async def test_what_waits_is_delivered_when_a_consumer_is_resumed(broker: BrokerProcess) -> None:
    connection = await connect_nats(broker.url, "pauses")
    try:
        assets = JetStreamAssets(connection)
        await assets.create_stream(
            {"name": STREAM, "subjects": ["pauses.>"], "retention": "workqueue", "storage": "file"}
        )
        config = {"durable_name": "c", "ack_policy": "explicit", "filter_subject": "pauses.c"}
        await assets.ensure_consumer(STREAM, {**config, "pause_until": PAUSED_UNTIL})
        delivered: list[bytes] = []

        async def take(message: object) -> None:
            if reply := getattr(message, "reply", ""):
                delivered.append(getattr(message, "data", b""))
                await connection.publish(reply, b"+ACK")

        inbox = connection.new_inbox()
        await connection.subscribe(inbox, cb=take)
        # Waits as a sidecar does: a heartbeat every 5 s, which is when a sleeping consumer would look again.
        await connection.publish(pull_subject(STREAM, "c"), pull_request(10, expires_s=30, heartbeat_s=5), reply=inbox)
        for body in (b"1", b"2"):
            await assets.publish("pauses.c", body, {})
        assert delivered == []
        began = time.monotonic()
        await assets.pause_consumer(STREAM, "c", paused=False)
        await eventually(lambda: delivered == [b"1", b"2"], within_s=3)
        assert time.monotonic() - began < 2
    finally:
        await close_nats(connection)


async def test_a_resumed_consumer_gives_nothing_to_nobody(broker: BrokerProcess) -> None:
    connection = await connect_nats(broker.url, "pauses")
    try:
        assets = JetStreamAssets(connection)
        await assets.create_stream(
            {"name": STREAM, "subjects": ["pauses.>"], "retention": "workqueue", "storage": "file"}
        )
        config = {"durable_name": "c", "ack_policy": "explicit", "filter_subject": "pauses.c"}
        await assets.ensure_consumer(STREAM, {**config, "pause_until": PAUSED_UNTIL})
        await assets.publish("pauses.c", b"", {})
        began = time.monotonic()
        await assets.pause_consumer(STREAM, "c", paused=False)
        assert time.monotonic() - began < 0.5
        info = await assets.request(f"CONSUMER.INFO.{STREAM}.c")
        assert json.dumps(info["delivered"]["consumer_seq"]) == "0"
        assert (info["num_pending"], info["num_ack_pending"]) == (1, 0)
    finally:
        await close_nats(connection)
