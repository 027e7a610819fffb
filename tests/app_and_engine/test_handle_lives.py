"""Handles over time: restarts of the engine, ids after days, values that middleware and serializers change."""

import asyncio
import dataclasses
import datetime as dt
from pathlib import Path

import pydantic
import pytest
import urllib3

from durably import Client, Context, PydanticSerializer
from durably.encryption import EncryptionMiddleware
from durably.engine.sqlite.server import serve_database
from durably.errors import RunNotFoundError
from durably.testing import TestEngine

from ..handle_stories import Functions
from ..waiting import async_eventually
from .conftest import SETTINGS, App, Gate, listening


async def test_a_result_over_http_survives_a_restart_of_the_engine(tmp_path: Path) -> None:
    server = await serve_database(tmp_path / "engine.db", SETTINGS, port=0)
    port = int(server.origin.rpartition(":")[2])
    shop = Functions(Client(app_id="shop", is_production=False, engine=server.origin))
    app = App(shop.client, server, Gate(server.origin, None))  # type: ignore[arg-type]
    app.serve(*shop.served)
    async with listening(app.handle) as origin:
        app.url = f"{origin}/api/inngest"
        await asyncio.to_thread(sync, app.url)
        handle = await shop.wait.start({"signal": "a"})
        waiting = asyncio.create_task(handle.result(timeout=dt.timedelta(seconds=60)))
        await asyncio.sleep(0)
        await server.close()
        async with await serve_database(tmp_path / "engine.db", SETTINGS, port=port):
            assert await async_eventually(lambda: handle.signal("a", "yes"), "the run waits")
            assert await waiting == "yes"


def sync(url: str) -> None:
    assert urllib3.request("PUT", url).status == 200


async def test_an_id_is_known_as_long_as_its_run_is_stored() -> None:
    shop = Functions(Client(app_id="shop", is_production=False))
    async with TestEngine(shop.client, shop.served, retention=dt.timedelta(days=2)) as engine:
        waiting = await shop.wait.start({"signal": "a"}, id="order-42")
        ended = await shop.add.start({"n": 2}, id="order-42")
        await engine.advance(hours=30)
        assert (await shop.wait.start({"signal": "b"}, id="order-42")).id == waiting.id
        assert (await shop.add.start({"n": 3}, id="order-42")).id == ended.id
        await waiting.signal("a", "yes")
        await engine.advance(days=4)
        again = await shop.add.start({"n": 3}, id="order-42")
        assert again.id != ended.id
        assert await again.result() == {1, 3}
        with pytest.raises(RunNotFoundError):
            await ended.status()


class Order(pydantic.BaseModel):
    number: int
    placed_at: dt.datetime


@dataclasses.dataclass
class Receipt:
    order: int


async def test_values_come_out_as_a_parent_gets_them() -> None:
    secret = EncryptionMiddleware.factory("k" * 40)
    client = Client(app_id="shop", is_production=False, middleware=[secret], serializer=PydanticSerializer())

    @client.create_function(fn_id="place", trigger=[])
    async def place(ctx: Context) -> Order:
        return Order.model_validate(ctx.event.data["encrypted"])

    @client.create_function(fn_id="bill", trigger=[], middleware=[EncryptionMiddleware.factory("f" * 40)])
    async def bill(ctx: Context) -> Receipt:
        return Receipt(ctx.event.data["number"])

    @client.create_function(fn_id="parent", trigger=[])
    async def parent(ctx: Context) -> Order:
        return await ctx.step.invoke("place", function=place, data={"encrypted": ctx.event.data["encrypted"]})

    order = Order(number=3, placed_at=dt.datetime(2026, 1, 31, tzinfo=dt.UTC))
    async with TestEngine(client, [place, bill, parent]):
        handle = await place.start({"encrypted": order.model_dump(mode="json")})
        assert await handle.result() == order
        assert b"2026" not in bytes((await handle.status()).output or b"")
        assert await (await parent.start({"encrypted": order.model_dump(mode="json")})).result() == order
        assert await (await bill.start(order)).result() == Receipt(3)
