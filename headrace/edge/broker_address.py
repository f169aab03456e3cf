"""The servers of a broker that can be tried: those that were given, and those that they tell of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from urllib.parse import unquote, urlsplit

from headrace.model.errors import InvalidInput

DEFAULT_PORT = 4222


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """One server: where, and with which credentials; `repr` shows no secret."""

    host: str
    port: int
    tls: bool = False
    user: str = ""
    password: str = ""
    token: str = ""

    def __repr__(self) -> str:
        return f"{'tls' if self.tls else 'nats'}://{self.host}:{self.port}"

    def credentials(self) -> dict[str, str]:
        """As CONNECT wants them."""
        if self.token:
            return {"auth_token": self.token}
        return {"user": self.user, "pass": self.password} if self.user else {}


def read_address(url: str) -> BrokerAddress:
    """`nats://[user:password@|token@]host[:port]`, `tls://…`, or `host:port`. InvalidInput if it is no such thing."""
    url = url.strip()
    try:
        parts = urlsplit(url if "://" in url else f"nats://{url}")
        port = parts.port or DEFAULT_PORT
    except ValueError:
        parts, port = urlsplit(""), 0
    if not parts.hostname or parts.scheme not in ("nats", "tls"):
        raise InvalidInput.at(
            "nats",
            f"{parts.scheme}://{parts.hostname or ''}",
            "is not the URL of a NATS server",
            next_step="Write nats://HOST:4222 or tls://HOST:4222",
        )
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    if parts.username and parts.password is None:
        return BrokerAddress(parts.hostname, port, parts.scheme == "tls", token=user)
    return BrokerAddress(parts.hostname, port, parts.scheme == "tls", user, password)


class AddressBook:
    """Servers in the order in which they are tried next: the one that failed last goes to the end."""

    def __init__(self, urls: str) -> None:
        self._given = [read_address(url) for url in urls.split(",") if url.strip()]
        self._told: list[BrokerAddress] = []
        self._failed: dict[BrokerAddress, int] = {}
        self._tries = 0

    def in_order(self) -> list[BrokerAddress]:
        """All that are known, each once."""
        known = dict.fromkeys([*self._given, *self._told])
        return sorted(known, key=lambda address: self._failed.get(address, 0))

    def told(self, by: BrokerAddress, urls: Iterable[str]) -> None:
        """The servers that one of them knows; they take its credentials. Those that are not told any more go."""
        self._told = []
        for url in urls:
            try:
                found = read_address(url)
            except InvalidInput:
                continue
            self._told.append(replace(by, host=found.host, port=found.port))

    def failed(self, address: BrokerAddress) -> None:
        """It did not answer, broke, or is about to leave."""
        self._tries += 1
        self._failed[address] = self._tries
