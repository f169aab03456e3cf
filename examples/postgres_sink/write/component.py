"""One row for each message: its idempotency key is unique in the table, so that a second delivery changes nothing."""

import msgspec
import psycopg

from headrace.sdk import Component, ComponentError, Context

component = Component()

TABLE = """
CREATE TABLE IF NOT EXISTS orders (
    idempotency_key text PRIMARY KEY,
    id text NOT NULL,
    amount numeric NOT NULL
)
"""
INSERT = "INSERT INTO orders (idempotency_key, id, amount) VALUES (%s, %s, %s) ON CONFLICT (idempotency_key) DO NOTHING"


class Order(msgspec.Struct):
    id: str
    amount: float


class Database:
    """One connection, opened anew when it broke."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._connection: psycopg.AsyncConnection | None = None

    async def connection(self) -> psycopg.AsyncConnection:
        if self._connection is None or self._connection.closed or self._connection.broken:
            self._connection = await psycopg.AsyncConnection.connect(self._dsn, autocommit=True, connect_timeout=5)
        return self._connection

    async def close(self) -> None:
        if self._connection is not None:
            await self._connection.close()


opened: dict[str, Database] = {}


@component.init
async def init(config: dict[str, str]) -> None:
    opened["database"] = Database(config["dsn"])
    await (await opened["database"].connection()).execute(TABLE)


@component.action
async def write(order: Order, ctx: Context) -> None:
    try:
        connection = await opened["database"].connection()
        inserted = await connection.execute(INSERT, (ctx.idempotency_key, order.id, order.amount))
    except psycopg.OperationalError as error:
        raise ComponentError("DATABASE_AWAY", str(error), status=503, retryable=True) from error
    await ctx.reply({"id": order.id, "new": inserted.rowcount == 1})


@component.close
async def close() -> None:
    await opened.pop("database").close()
