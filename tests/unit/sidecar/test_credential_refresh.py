"""Another version of a credential in an instance: what its component has, whoever dies and whatever is not written."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from headrace.edge.key_ring import KEYS_VARIABLE, KeyRing, new_key
from headrace.model.credential import CredentialRef, bound_to, sealed_key
from headrace.model.errors import NotFound, WrongState
from headrace.model.secret_mask import SecretMask
from services.sidecar import credential_refresh
from services.sidecar.component_calls import ComponentFailed
from services.sidecar.credential_refresh import CredentialRefresh
from services.sidecar.credentials import ClearCredential, StepCredentials
from tests.support.eventually import eventually
from tests.support.memory_bucket import MemoryBucket

pytest.importorskip("cryptography", reason="the environment is older than requirements.lock: run make setup")
KEYS = {KEYS_VARIABLE: new_key()}


class Process:
    """A component's process that has what it accepted, and refuses version 3."""

    def __init__(self, version: int) -> None:
        self.credentials_version = version
        self.text = ""

    async def update_credentials(self, credential: ClearCredential) -> None:
        if credential.version == 3:
            raise ComponentFailed("no", reason="CREDENTIAL_REFUSED")
        self.credentials_version, self.text = credential.version, credential.text


class Instance:
    """What is kept of one: its credential, the deployment's state, how often that was asked for."""

    def __init__(self) -> None:
        self.bucket, self.asked = MemoryBucket("credentials"), 0
        self.mask = SecretMask()
        self.credentials = StepCredentials("default", self.open, self.mask, KEYS)
        self.credentials.planned = CredentialRef("shop", 1)
        plans: Any = SimpleNamespace(ask_again=self.ask_again)
        self.refresh = CredentialRefresh(self.credentials, plans)

    async def open(self) -> MemoryBucket:
        return self.bucket

    def ask_again(self) -> None:
        self.asked += 1

    async def begun(self) -> Process:
        for version in (1, 2, 3, 4):
            raw = msgspec.json.encode({"password": f"secret-{version}"})
            sealed = KeyRing(KEYS).seal(raw, bound_to("default", "shop", version))
            await self.bucket.put(sealed_key("shop", version), msgspec.msgpack.encode(sealed))
        await self.credentials.load(CredentialRef("shop", 1))
        return self.serve(Process(1))

    def serve(self, process: Any) -> Any:
        self.refresh.component_ready(process)
        return process


async def test_a_version_that_was_tried_counts_once_the_state_names_it() -> None:
    instance = Instance()
    process = await instance.begun()
    assert await instance.refresh.try_version(2)
    assert process.text == '{"password":"secret-2"}'
    assert instance.mask.known("it is secret-2") == "it is ***"
    instance.refresh.follow(0)  # a state of before the trial, which is young
    assert process.credentials_version == 2
    instance.refresh.follow(2)
    assert instance.credentials.present.version == 2
    await instance.refresh.close()


async def test_a_version_that_nobody_wrote_down_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credential_refresh, "TRIAL_S", -0.99)
    instance = Instance()
    process = await instance.begun()
    await instance.refresh.try_version(2)
    await eventually(lambda: instance.asked)  # the state is read once more after the trial
    instance.refresh.follow(0)
    await eventually(lambda: process.credentials_version == 1)
    assert instance.credentials.present.version == 1
    await instance.refresh.close()


async def test_a_refused_or_missing_version_changes_nothing() -> None:
    instance = Instance()
    process = await instance.begun()
    with pytest.raises(ComponentFailed):
        await instance.refresh.try_version(3)
    with pytest.raises(NotFound, match="version 9 of credential 'shop' is not there any more"):
        await instance.refresh.try_version(9)
    assert (process.credentials_version, instance.credentials.present.version) == (1, 1)
    await instance.refresh.close()


async def test_a_process_that_began_with_an_older_version_is_given_the_present_one() -> None:
    instance = Instance()
    await instance.begun()
    instance.refresh.component_lost()
    assert not await instance.refresh.try_version(2)  # nobody serves: the next one gets it
    late = instance.serve(Process(1))  # whose init was under way meanwhile
    await eventually(lambda: late.credentials_version == 2)
    await instance.refresh.close()


async def test_a_lost_key_stops_no_crash_from_being_survived() -> None:
    instance = Instance()
    await instance.begun()
    instance.credentials._ring = KeyRing({})
    await instance.credentials.load(CredentialRef("shop", 1))  # what is open stays open
    with pytest.raises(WrongState, match="there is no key"):
        await instance.refresh.try_version(2)
    assert instance.credentials.present.version == 1
    await instance.refresh.close()
