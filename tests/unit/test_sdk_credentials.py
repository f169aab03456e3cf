"""Credentials, verify, metadata and models as a component's author tests them: by the harness."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headrace.model.errors import InvalidInput
from headrace.sdk import Choice, Component, Context, DefinitionError, Metadata
from headrace.sdk.testing import ComponentHarness, FlowHarness


class Shop(msgspec.Struct):
    user: str
    password: str


class Order(msgspec.Struct):
    n: int


def component() -> Component:
    made = Component()

    @made.credentials_changed
    async def fresh(shop: Shop, ctx: Context) -> None:
        if shop.password == "wrong":
            raise PermissionError("the shop refuses it")

    @made.verify
    def check(shop: Shop) -> bool:
        return shop.password == "right"

    @made.metadata(of="act")
    async def schemas(config: dict[str, Any], ctx: Context) -> Metadata:
        return Metadata(input={"title": config["table"], "user": ctx.credentials["user"]})

    @made.select_model
    async def tables(ctx: Context) -> list[Any]:
        return ["a", Choice(2, "two"), {"deep": 1}]

    @made.action
    async def act(order: Order, ctx: Context) -> Order:
        await ctx.reply({"user": ctx.credentials["user"], "dry": ctx.dry_run})
        return order

    return made


async def test_a_component_is_asked_and_changed_in_the_harness() -> None:
    shop = {"user": "u", "password": "right"}
    async with ComponentHarness(component(), config={"table": "t"}, credentials=shop, dry_run=True) as harness:
        assert (await harness.call("act", {"n": 1})).reply.value == {"user": "u", "dry": True}
        assert (await harness.verify()).verified
        assert (await harness.verify(user="u", password="no")).problem.message == "verify answered False"
        wrong = (await harness.verify(user="u")).problem
        assert wrong.message == "credentials: do not fit Shop"  # and nothing of its value
        found = await harness.metadata("act")
        assert '"title":"t","user":"u"' in found.in_schema_json
        assert "Order" in found.out_schema_json  # by its types, where the hook does not say
        choices = (await harness.select_model("tables")).choices
        assert [(item.value_json, item.label) for item in choices] == [
            ('"a"', "a"),
            ("2", "two"),
            ('{"deep":1}', '{"deep":1}'),
        ]
        await harness.change_credentials(user="v", password="x")
        assert (await harness.call("act", {"n": 1})).reply.value["user"] == "v"
        with pytest.raises(AssertionError, match="the shop refuses it"):
            await harness.change_credentials(user="w", password="wrong")
        assert (await harness.call("act", {"n": 1})).reply.value["user"] == "v"


async def test_credentials_cannot_be_changed_by_a_component() -> None:
    made = Component()

    @made.action
    async def act(body: bytes, ctx: Context) -> None:
        ctx.credentials["user"] = "mine"  # type: ignore[index]

    async with ComponentHarness(made, credentials={"user": "u"}) as harness:
        assert "mappingproxy" in str((await harness.call("act", b"")).error)


@pytest.mark.parametrize("twice", ["verify", "credentials_changed", "metadata", "init"])
def test_a_hook_stands_once(twice: str) -> None:
    made = Component()

    async def hook(ctx: Context) -> None:
        await asyncio.sleep(0)

    getattr(made, twice)(hook)
    with pytest.raises(DefinitionError, match="two"):
        getattr(made, twice)(hook)


async def test_a_flow_in_the_harness_is_given_its_credentials_by_name(tmp_path: Path) -> None:
    file = tmp_path / "flow.yaml"
    file.write_text(
        "name: f\nreply_timeout: 5s\nsteps:\n"
        "  in: {to: [act]}\n  act: {component: any, function: act, credential: shop}\n"
    )
    given: dict[str, Any] = {"components": {"act": component()}}
    with pytest.raises(InvalidInput, match="credential: 'shop' is not given"):
        await FlowHarness(file, **given).start()
    async with FlowHarness(file, **given, credentials={"shop": {"user": "u", "password": "right"}}) as harness:
        reply = (await harness.send({"n": 1})).reply
        assert reply is not None
        assert reply.value == {"user": "u", "dry": False}
