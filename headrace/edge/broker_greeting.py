"""What a NATS server says of itself when one connects: version, JetStream; without a client library."""

from __future__ import annotations

import asyncio
import contextlib
import json
from urllib.parse import urlsplit

import nats.errors
from nats.aio.client import Client

from headrace.edge.broker_address import DEFAULT_PORT
from headrace.edge.broker_process import check_reported_version
from headrace.model.broker_url import without_password
from headrace.model.errors import InvalidInput, Unavailable


async def check_broker(urls: str, *, timeout_s: float = 3.0) -> str:
    """The version of the first server of a comma-separated list that greets.

    Unavailable when none does; InvalidInput when it is too old, has no JetStream, or refuses the URL's credentials.
    """
    problems: list[str] = []
    for url in urls.split(","):
        try:
            greeting = await _greeting(url.strip(), timeout_s)
        except (OSError, TimeoutError, ValueError) as error:
            problems.append(f"{without_password(url)}: {str(error) or type(error).__name__}")
            continue
        version = check_reported_version(str(greeting.get("version", "")), without_password(url))
        if not greeting.get("jetstream"):
            raise InvalidInput.at(
                "nats",
                without_password(url),
                "has no JetStream",
                next_step="Start nats-server with -js",
                reason="NO_JETSTREAM",
            )
        if greeting.get("auth_required"):
            await _check_credentials(url.strip(), timeout_s)
        return version
    raise Unavailable(
        f"no NATS server answers at {without_password(urls)} ({'; '.join(problems)})",
        reason="BROKER_UNREACHABLE",
        next_step="Check --nats and that the server runs, or leave --nats away to use the embedded one",
    )


async def _check_credentials(url: str, timeout_s: float) -> None:
    """One connection with the credentials of the URL: without this, every service would try for ever."""
    client = Client()
    problems: list[str] = []

    async def note(error: Exception) -> None:
        problems.append(str(error))

    try:
        async with asyncio.timeout(timeout_s):
            await client.connect(servers=[url], allow_reconnect=False, max_reconnect_attempts=0, error_cb=note)
    except (OSError, TimeoutError, nats.errors.Error) as error:
        why = "; ".join(dict.fromkeys([*problems, str(error) or type(error).__name__]))
        raise InvalidInput.at(
            "nats",
            without_password(url),
            f"does not let us in: {without_password(why)}",
            next_step="Correct user and password in the URL: nats://USER:PASSWORD@HOST:4222",
            reason="BROKER_CREDENTIALS",
        ) from error
    finally:
        with contextlib.suppress(Exception):
            await client.close()


async def _greeting(url: str, timeout_s: float) -> dict[str, object]:
    parts = urlsplit(url if "://" in url else f"nats://{url}")
    if not parts.hostname:
        raise ValueError("not a URL such as nats://127.0.0.1:4222")
    async with asyncio.timeout(timeout_s):
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port or DEFAULT_PORT, limit=1 << 20)
        try:
            line = await reader.readline()
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
    if not line.startswith(b"INFO "):
        raise ValueError("something else than a NATS server answers")
    greeting = json.loads(line[5:])
    assert isinstance(greeting, dict)
    return greeting
