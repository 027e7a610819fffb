"""The app with SQLAlchemy in the storms, with sync sessions, or async ones if the database's driver is async."""

import os
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

import durably
import durably.sqlalchemy
from durably.comm import CommHandler

metadata = sa.MetaData()
orders = sa.Table("orders", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("ref", sa.String(40)))
shipments = sa.Table(
    "shipments", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("ref", sa.String(40))
)

url = sa.make_url(os.environ["SHOP_DATABASE"])
is_async = url.get_dialect().is_async
database: Any = create_async_engine(url) if is_async else sa.create_engine(url)
sessions: sessionmaker[Session] = sessionmaker(database)
async_sessions: async_sessionmaker[AsyncSession] = async_sessionmaker(database)

engine = durably.Embedded(os.environ["SHOP_ENGINE"], max_calls=16)  # Each kill costs the calls an attempt.
client = durably.Client(app_id="shop", engine=engine, is_production=False)
durably.sqlalchemy.relay(client, database)


@durably.sqlalchemy.transaction(sessions)
def ship(session: Session, ref: str) -> int:
    row = session.execute(shipments.insert().values(ref=ref))
    durably.sqlalchemy.send(session, durably.Event(name="shop/shipped", data={"ref": ref}))
    return int(row.inserted_primary_key[0])


@durably.sqlalchemy.transaction(async_sessions)
async def ship_async(session: AsyncSession, ref: str) -> int:
    row = await session.execute(shipments.insert().values(ref=ref))
    await durably.sqlalchemy.send(session, durably.Event(name="shop/shipped", data={"ref": ref}))
    return int(row.inserted_primary_key[0])


@client.create_function(fn_id="thank", retries=20, trigger=durably.TriggerEvent(event="shop/shipped"))
async def thank(ctx: durably.Context) -> object:
    return ctx.event.data["ref"]


if is_async:

    @client.create_function(fn_id="fulfil", retries=20, trigger=durably.TriggerEvent(event="shop/placed"))
    async def fulfil(ctx: durably.Context) -> int:
        return await ctx.step.run("ship", ship_async, str(ctx.event.data["ref"]))

else:

    @client.create_function(fn_id="fulfil", retries=20, trigger=durably.TriggerEvent(event="shop/placed"))
    def fulfil(ctx: durably.ContextSync) -> int:
        return ctx.step.run("ship", ship, str(ctx.event.data["ref"]))


CommHandler(client=client, framework="testing", functions=[fulfil, thank])


def create_tables() -> None:
    plain = sa.create_engine(_sync_url())
    metadata.create_all(plain)
    durably.sqlalchemy.metadata.create_all(plain)
    plain.dispose()


def _sync_url() -> sa.URL:
    return url.set(
        drivername={"asyncpg": "postgresql+psycopg", "aiosqlite": "sqlite"}.get(url.get_driver_name(), url.drivername)
    )


def place(ref: str, *, fails: bool) -> None:
    event = durably.Event(name="shop/placed", data={"ref": ref})
    if not is_async:
        with sessions() as session:
            session.execute(orders.insert().values(ref=ref))
            durably.sqlalchemy.send(session, event)
            session.rollback() if fails else session.commit()
        return

    async def placing() -> None:
        async with async_sessions() as session:
            await session.execute(orders.insert().values(ref=ref))
            await durably.sqlalchemy.send(session, event)
            await (session.rollback() if fails else session.commit())

    from durably.io.background_loop import get_background_loop  # the loop on which async functions run

    get_background_loop().run(placing())


def read() -> tuple[list[str], list[str]]:
    """The references of orders and of shipments."""
    plain = sa.create_engine(_sync_url())
    with plain.connect() as connection:
        found = [list(connection.execute(sa.select(table.c.ref)).scalars()) for table in (orders, shipments)]
    plain.dispose()
    return found[0], found[1]
