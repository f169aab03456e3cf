"""The client SDK, sync face: each method of `AsyncClient`, run in a thread of its own with its own loop.

The methods are derived, one line each, so that signatures and types are those of the async ones.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from headrace.client.async_client import AsyncClient
from headrace.edge.grpc_channel import DEFAULT_TIMEOUT_S
from headrace.model.errors import DeadlineExceeded

P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C", bound=Callable[..., Any])

# Above every limit of the calls themselves: reached only if the loop's thread is stuck.
LONGEST_CALL_S = 900.0
CLOSE_TIMEOUT_S = 5.0


def _sync(
    method: Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[Client, P], R]:
    def call(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._run(method(self._client, *args, **kwargs))

    return _named(call, method)


def _sync_stream(
    method: Callable[Concatenate[AsyncClient, P], AsyncIterator[R]],
) -> Callable[Concatenate[Client, P], Iterator[R]]:
    def call(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[R]:
        return self._iterate(method(self._client, *args, **kwargs))

    return _named(call, method)


def _named(call: C, method: Callable[..., Any]) -> C:
    for attribute, value in (
        ("__name__", method.__name__),
        ("__qualname__", f"Client.{method.__name__}"),
        ("__doc__", method.__doc__),
    ):
        setattr(call, attribute, value)
    return call


class Client:
    """Sync face of `AsyncClient`: the same methods, without await. Use it as a context manager.

    Safe to share between threads. Streams (`watch_...`, `tail_logs`) are iterators; close them, or the
    client, to end them.

        with Client("127.0.0.1:7001") as client:
            print(client.get_status("orders").state)
    """

    def __init__(
        self, address: str = "", *, timeout_s: float = DEFAULT_TIMEOUT_S, queue_s: float = 0.0, user: str = ""
    ) -> None:
        self._client = AsyncClient(address, timeout_s=timeout_s, queue_s=queue_s, user=user)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="headrace-client", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._run(self._client.__aenter__())
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends what is in flight and the thread, within 5 s."""
        if not self._thread.is_alive():
            return
        try:
            self._run(self._client.close(), CLOSE_TIMEOUT_S)
            self._run(self._loop.shutdown_asyncgens(), CLOSE_TIMEOUT_S)
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(CLOSE_TIMEOUT_S)
            if not self._thread.is_alive():
                self._loop.close()

    def _run(self, work: Coroutine[Any, Any, R], limit_s: float = LONGEST_CALL_S) -> R:
        if not self._thread.is_alive():
            work.close()
            raise RuntimeError("the client is not open: write `with Client(address) as client:`")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(limit_s)
        except concurrent.futures.TimeoutError:
            if future.done():
                raise
            raise DeadlineExceeded(f"no answer within {limit_s:g} s") from None
        finally:
            future.cancel()  # KeyboardInterrupt while waiting: the call ends too

    def _iterate(self, stream: AsyncIterator[R]) -> Iterator[R]:
        async def following() -> tuple[R] | None:
            try:
                return (await anext(stream),)
            except StopAsyncIteration:
                return None

        try:
            # A stream that follows may be silent for long: its channel's keepalive finds a dead peer.
            while (item := self._run(following(), threading.TIMEOUT_MAX)) is not None:
                yield item[0]
        finally:
            close = getattr(stream, "aclose", None)
            if close is not None and self._thread.is_alive():
                self._run(close(), CLOSE_TIMEOUT_S)

    push_component = _sync(AsyncClient.push_component)
    push_bundle = _sync(AsyncClient.push_bundle)
    list_components = _sync(AsyncClient.list_components)
    get_component = _sync(AsyncClient.get_component)
    list_revisions = _sync(AsyncClient.list_revisions)
    get_revision = _sync(AsyncClient.get_revision)
    resolve_reference = _sync(AsyncClient.resolve_reference)
    tag_revision = _sync(AsyncClient.tag_revision)
    delete_revision = _sync(AsyncClient.delete_revision)
    purge_revisions = _sync(AsyncClient.purge_revisions)

    apply = _sync(AsyncClient.apply)
    run = _sync(AsyncClient.run)
    create_flow = _sync(AsyncClient.create_flow)
    update_draft = _sync(AsyncClient.update_draft)
    get_flow = _sync(AsyncClient.get_flow)
    list_flows = _sync(AsyncClient.list_flows)
    delete_flow = _sync(AsyncClient.delete_flow)
    get_version = _sync(AsyncClient.get_version)
    list_versions = _sync(AsyncClient.list_versions)
    list_deployments = _sync(AsyncClient.list_deployments)
    list_history = _sync(AsyncClient.list_history)
    publish = _sync(AsyncClient.publish)
    begin_publish = _sync(AsyncClient.begin_publish)
    restart = _sync(AsyncClient.restart)
    begin_restart = _sync(AsyncClient.begin_restart)
    rollback = _sync(AsyncClient.rollback)
    set_type = _sync(AsyncClient.set_type)
    begin_rollback = _sync(AsyncClient.begin_rollback)
    draft_from = _sync(AsyncClient.draft_from)
    upgrade_draft = _sync(AsyncClient.upgrade_draft)
    delete_version = _sync(AsyncClient.delete_version)
    start = _sync(AsyncClient.start)
    begin_start = _sync(AsyncClient.begin_start)
    stop = _sync(AsyncClient.stop)
    begin_stop = _sync(AsyncClient.begin_stop)
    suspend = _sync(AsyncClient.suspend)
    begin_suspend = _sync(AsyncClient.begin_suspend)
    resume = _sync(AsyncClient.resume)
    begin_resume = _sync(AsyncClient.begin_resume)
    scale = _sync(AsyncClient.scale)
    begin_scale = _sync(AsyncClient.begin_scale)
    resolve_drain = _sync(AsyncClient.resolve_drain)
    begin_resolve_drain = _sync(AsyncClient.begin_resolve_drain)
    cancel_operation = _sync(AsyncClient.cancel_operation)
    get_operation = _sync(AsyncClient.get_operation)
    wait_operation = _sync(AsyncClient.wait_operation)
    get_status = _sync(AsyncClient.get_status)
    watch_status = _sync_stream(AsyncClient.watch_status)
    inject = _sync(AsyncClient.inject)
    inject_many = _sync_stream(AsyncClient.inject_many)
    upload_attachment = _sync(AsyncClient.upload_attachment)
    download_attachment = _sync_stream(AsyncClient.download_attachment)
    run_now = _sync(AsyncClient.run_now)
    list_snapshots = _sync(AsyncClient.list_snapshots)
    reset_snapshots = _sync(AsyncClient.reset_snapshots)
    create_credential = _sync(AsyncClient.create_credential)
    get_credential = _sync(AsyncClient.get_credential)
    list_credentials = _sync(AsyncClient.list_credentials)
    update_credential = _sync(AsyncClient.update_credential)
    delete_credential = _sync(AsyncClient.delete_credential)
    verify_credential = _sync(AsyncClient.verify_credential)
    run_step = _sync(AsyncClient.run_step)
    step_metadata = _sync(AsyncClient.step_metadata)
    select_model = _sync(AsyncClient.select_model)
    refresh_credentials = _sync(AsyncClient.refresh_credentials)
    reseal_credentials = _sync(AsyncClient.reseal_credentials)
    list_dead_letters = _sync(AsyncClient.list_dead_letters)
    get_dead_letter = _sync(AsyncClient.get_dead_letter)
    replay_dead_letters = _sync(AsyncClient.replay_dead_letters)
    edit_dead_letter = _sync(AsyncClient.edit_dead_letter)
    discard_dead_letters = _sync(AsyncClient.discard_dead_letters)
    list_in_doubt = _sync(AsyncClient.list_in_doubt)
    watch_dead_letters = _sync_stream(AsyncClient.watch_dead_letters)
    list_stimuli = _sync(AsyncClient.list_stimuli)
    get_stimulus = _sync(AsyncClient.get_stimulus)
    replay_stimuli = _sync(AsyncClient.replay_stimuli)
    watch_flows = _sync_stream(AsyncClient.watch_flows)
    watch_deployments = _sync_stream(AsyncClient.watch_deployments)
    watch_operations = _sync_stream(AsyncClient.watch_operations)
    watch_components = _sync_stream(AsyncClient.watch_components)
    get_trace = _sync(AsyncClient.get_trace)
    list_executions = _sync(AsyncClient.list_executions)
    get_sampling = _sync(AsyncClient.get_sampling)
    set_sampling = _sync(AsyncClient.set_sampling)
    capture_executions = _sync(AsyncClient.capture_executions)
    tail_logs = _sync_stream(AsyncClient.tail_logs)
    hops = _sync(AsyncClient.hops)
    watch_hops = _sync_stream(AsyncClient.watch_hops)
    explain = _sync(AsyncClient.explain)
    mesh_status = _sync(AsyncClient.mesh_status)
    server_info = _sync(AsyncClient.server_info)
