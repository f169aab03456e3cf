"""Three real nats-servers that are one JetStream cluster, on loopback; and who leads what."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import dataclass, field
from pathlib import Path

import nats.errors

from headrace.edge.broker_process import BrokerProcess, check_version, find_nats_server, free_port
from headrace.edge.jetstream_assets import JetStreamApiError, JetStreamAssets
from headrace.edge.nats_connection import close_nats, connect_nats
from headrace.model.errors import Unavailable
from tests.support.eventually import eventually
from tests.support.tcp_proxy import TcpProxy

SIZE = 3


@dataclass
class ClusterNode(BrokerProcess):
    """One server of the cluster; `routes` are the cluster ports of all, or (`hidden`) of the proxies to the others."""

    name: str = ""
    cluster_port: int = 0
    routes: list[int] = field(default_factory=list)
    hidden: bool = False

    def configuration(self) -> str:
        routes = ", ".join(f'"nats://127.0.0.1:{port}"' for port in self.routes)
        own = super().configuration().replace('"headrace-embedded"', f'"{self.name}"')
        # Nobody listens there: servers tell each other where to connect, and are not to get round the proxies.
        advertise = ', advertise: "127.0.0.1:1"' if self.hidden else ""
        listen = f'listen: "127.0.0.1:{self.cluster_port}"'
        return own + f'cluster {{ name: "test", {listen}, routes: [{routes}]{advertise} }}\n'


class BrokerCluster:
    """`async with BrokerCluster(folder) as cluster`; nodes restart on their ports and data. `proxied`: what the servers
    say to each other goes through this process, so that one can be cut off."""

    def __init__(self, folder: Path, *, proxied: bool = False) -> None:
        self._proxied = proxied
        self._proxies: dict[tuple[str, str], TcpProxy] = {}
        ports = [free_port() for _ in range(SIZE)]
        assert len(set(ports)) == SIZE
        self.nodes = [
            ClusterNode(folder / f"n{number}", name=f"n{number}", cluster_port=port, routes=ports)
            for number, port in enumerate(ports)
        ]

    @property
    def url(self) -> str:
        return ",".join(node.url for node in self.nodes)

    async def __aenter__(self) -> BrokerCluster:
        version = await check_version(find_nats_server())
        for node in self.nodes:
            node.version = version
        if self._proxied:
            await self._put_proxies_between()
        await asyncio.gather(*(node.start() for node in self.nodes))
        self.connection = await connect_nats(self.url, "cluster")
        await eventually(self.is_ready, within_s=20, every_s=0.1)
        return self

    async def __aexit__(self, *_: object) -> None:
        await close_nats(self.connection)
        for node in self.nodes:
            self.resume(node)
        await asyncio.gather(*(node.stop() for node in self.nodes))
        await asyncio.gather(*(proxy.stop() for proxy in self._proxies.values()))

    async def _put_proxies_between(self) -> None:
        for node in self.nodes:
            node.routes, node.hidden = [], True
            for other in self.nodes:
                if other is node:
                    continue
                proxy = TcpProxy(other.cluster_port)
                proxy.keep_sent = False
                await proxy.start()
                self._proxies[node.name, other.name] = proxy
                node.routes.append(proxy.port)

    def cut_off(self, node: ClusterNode) -> None:
        """The others hear nothing of it any more, nor it of them; clients still reach it."""
        for pair, proxy in self._proxies.items():
            if node.name in pair:
                proxy.black_hole()

    def join(self, node: ClusterNode) -> None:
        """Ends that."""
        for pair, proxy in self._proxies.items():
            if node.name in pair:
                proxy.heal()

    async def is_ready(self) -> bool:
        """Whether streams of three copies can be made."""
        assets = JetStreamAssets(self.connection, timeout_s=2.0)
        try:
            await assets.create_stream({"name": "ready", "subjects": ["ready"], "num_replicas": SIZE})
            await assets.delete_stream("ready")
        except (JetStreamApiError, Unavailable):
            return False
        return True

    async def leader_of(self, stream: str) -> ClusterNode:
        """The server that leads a stream now; AssertionError while none does."""
        name = (await self._cluster_info(stream)).get("leader", "")
        found = [node for node in self.nodes if node.name == name]
        assert found, f"{stream} has no leader"
        return found[0]

    async def followers_of(self, stream: str) -> list[ClusterNode]:
        leader = await self.leader_of(stream)
        return [node for node in self.nodes if node is not leader]

    async def is_whole(self, stream: str) -> bool:
        """Whether every copy of a stream is there and up to date."""
        try:
            copies = (await self._cluster_info(stream)).get("replicas", [])
        except AssertionError:
            return False
        return len(copies) == SIZE - 1 and all(copy["current"] and not copy.get("offline") for copy in copies)

    async def let_lead(self, stream: str, node: ClusterNode) -> None:
        """Makes a server the leader of a stream, where it is not."""
        assets = JetStreamAssets(self.connection, timeout_s=2.0)

        async def leads() -> bool:
            try:
                if await self.leader_of(stream) is node:
                    return True
                await assets.request(f"STREAM.LEADER.STEPDOWN.{stream}", {"placement": {"preferred": node.name}})
            except (AssertionError, Unavailable, JetStreamApiError):
                pass
            return False

        # An election takes its time, and is not to be disturbed by the next one.
        await eventually(leads, within_s=40, every_s=1.5)

    async def _cluster_info(self, stream: str) -> dict[str, object]:
        try:
            info = await JetStreamAssets(self.connection, timeout_s=1.0).stream_info(stream)
        except (Unavailable, JetStreamApiError, nats.errors.Error) as error:
            raise AssertionError(f"{stream}: {error}") from error
        assert info is not None, f"no stream {stream}"
        return dict(info["cluster"])

    async def kill(self, node: ClusterNode) -> None:
        """kill -9, and gone."""
        node.kill()
        assert node.process is not None
        await node.process.wait()

    def pause(self, node: ClusterNode) -> None:
        assert node.process is not None
        node.process.send_signal(signal.SIGSTOP)

    def resume(self, node: ClusterNode) -> None:
        if node.process is not None and node.process.returncode is None:
            node.process.send_signal(signal.SIGCONT)
