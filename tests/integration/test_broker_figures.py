"""Figures of a real broker: while it answers, and once it does not."""

from __future__ import annotations

import time
from pathlib import Path

from headrace.edge.broker_figures import put_broker, read_broker
from headrace.edge.broker_process import BrokerProcess, free_port
from headrace.edge.jetstream_assets import JetStreamAssets
from headrace.edge.nats_connection import close_nats, connect_nats
from headrace.model.metric_readings import Readings


async def test_a_broker_that_answers_and_one_that_does_not(tmp_path: Path) -> None:
    broker = BrokerProcess(tmp_path / "broker", monitor_port=free_port())
    await broker.start()
    monitor = f"http://127.0.0.1:{broker.monitor_port}"
    connection = await connect_nats(broker.url, "test")
    assets = JetStreamAssets(connection)
    try:
        await assets.create_stream({"name": "one", "subjects": ["one"]})
        await assets.publish("one", b"x" * 1000, {})
        up = await read_broker(assets, [monitor])
        server = up.servers[monitor]
        assert up.answer_s is not None
        assert (up.streams, up.stored > 1000) == (1, True)
        assert server is not None
        assert server.connections >= 1
        assert 0 < server.disk_free < server.disk_size
        broker.kill()
        began = time.monotonic()
        down = await read_broker(assets, [monitor])
        assert time.monotonic() - began < 4
        assert (down.answer_s, down.servers) == (None, {monitor: None})
        readings = Readings()
        put_broker(down, readings)
        assert readings.values("broker_up") == {(): 0.0}
        assert list(readings.values("broker_server_up").values()) == [0.0]
    finally:
        await close_nats(connection)
        await broker.stop()
