"""The harness of a whole flow goes by what its edges say, carries earlier outputs, and keeps snapshots."""

from __future__ import annotations

from pathlib import Path

from headrace.sdk import Component, ComponentError, Context
from headrace.sdk.testing import FlowHarness

FLOW = """
name: shop
reply_timeout: 5s
passthrough: true
steps:
  receive: {component: receive, to: [price]}
  price:
    component: price
    to:
      - {step: answer, condition: body.total <= 100, mapping: "{'id': steps.receive.body.id, 'total': body.total}"}
      - {step: review, condition: body.total > 100}
  answer: {component: answer}
  review: {component: review, key: "body:/customer"}
"""


def components() -> dict[str, Component]:
    receive, price, answer, review = Component(), Component(), Component(), Component()

    @receive.trigger
    async def take(order: dict, ctx: Context) -> None:  # type: ignore[type-arg]
        await ctx.emit(order)

    @price.action
    async def find(order: dict, ctx: Context) -> None:  # type: ignore[type-arg]
        await ctx.emit({"total": order["pieces"] * 7 if order["pieces"] else None, "customer": order["customer"]})

    @answer.action
    async def say(message: dict, ctx: Context) -> None:  # type: ignore[type-arg]
        await ctx.reply(message)

    @review.action
    async def count(message: dict, ctx: Context) -> None:  # type: ignore[type-arg]
        reviews = (ctx.snapshot.value or {}).get("reviews", 0) + 1
        await ctx.snapshot.merge({"reviews": reviews}, if_unchanged=True)
        await ctx.reply(
            {"reviews": reviews, "revision": ctx.snapshot.revision, "id": ctx.steps["receive"].json()["id"]}
        )

    return {"receive": receive, "price": price, "answer": answer, "review": review}


async def test_a_flow_in_a_test_does_what_the_mesh_does_between_its_steps(tmp_path: Path) -> None:
    (tmp_path / "flow.yaml").write_text(FLOW)
    async with FlowHarness(tmp_path / "flow.yaml", components=components()) as flow:
        small = await flow.send({"id": "O-1", "customer": "ann", "pieces": 3})
        assert small.reply is not None
        assert (small.reply.value, small.order) == ({"id": "O-1", "total": 21}, ["receive", "price", "answer"])
        for number, customer in ((1, "ann"), (2, "ann"), (1, "bob")):
            large = await flow.send({"id": f"O-{customer}", "customer": customer, "pieces": 20})
            assert large.reply is not None
            assert large.reply.value == {"reviews": number, "revision": number, "id": f"O-{customer}"}
        failed = await flow.send({"id": "O-4", "customer": "ann", "pieces": 0})
        [error] = failed.errors
        assert (error.step, error.failure.code) == ("price", "EXPRESSION_FAILED")
        assert "the condition of the edge to 'answer' failed: `body.total <= 100`" in error.failure.message


async def test_what_fails_goes_to_the_error_step_in_a_test_too(tmp_path: Path) -> None:
    (tmp_path / "flow.yaml").write_text(
        "name: shop\nreply_timeout: 5s\non_error: {step: complain}\nsteps:\n"
        "  receive: {component: receive, to: [work]}\n  work: {component: work}\n  complain: {component: complain}\n"
    )
    receive, work, complain = Component(), Component(), Component()

    @receive.trigger
    async def take(order: dict, ctx: Context) -> None:  # type: ignore[type-arg]
        await ctx.emit(order)

    @work.action
    async def fail(order: dict, ctx: Context) -> None:  # type: ignore[type-arg]
        raise ComponentError("SOLD_OUT", status=order.get("status", 0))

    @complain.action
    async def say(failure: dict, ctx: Context) -> None:  # type: ignore[type-arg]
        if failure["input"].get("answer"):
            await ctx.reply({key: failure[key] for key in ("error", "input", "step")})

    async with FlowHarness(
        tmp_path / "flow.yaml", components={"receive": receive, "work": work, "complain": complain}
    ) as flow:
        handled = await flow.send({"answer": True})
        assert handled.reply is not None
        assert (handled.reply.status or 200, handled.reply.value) == (
            200,
            {
                "error": {"code": "SOLD_OUT", "message": "SOLD_OUT", "status": 500},
                "input": {"answer": True},
                "step": "work",
            },
        )
        assert handled.order == ["receive", "work", "complain"]
        silent = await flow.send({"status": 503})
        assert silent.reply is not None
        assert (silent.reply.status, silent.order[-1]) == (503, "complain")
        rejected = await flow.send({"status": 409})
        assert rejected.reply is not None
        assert (rejected.reply.status, rejected.order[-1]) == (409, "work")
