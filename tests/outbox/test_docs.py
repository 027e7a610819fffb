"""The page on the outbox: its SQL and its Python, word for word, on PostgreSQL."""

import asyncio
import sys
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any

import asyncpg
import psycopg
import pytest

import durably
import durably.sqlalchemy
from durably.testing import TestEngine

from ..docs.pages import DOCS, blocks
from .conftest import MakeUrl

PAGE = DOCS / "how-to" / "send-in-a-transaction.md"
BLOCKS = [(block.language, block.text) for block in blocks(PAGE)]


def code(language: str, containing: str) -> str:
    [text] = [text for kind, text in BLOCKS if kind == language and containing in text]
    return text


def test_rows_of_any_connection_are_sent(make_url: MakeUrl) -> None:
    url = make_url("postgresql")
    client = durably.Client(app_id="shop", is_production=False)
    relay = durably.sqlalchemy.relay(client, url.replace("postgresql:", "postgresql+asyncpg:"))
    received = list[Any]()

    @client.create_function(fn_id="take", trigger=durably.TriggerEvent(event="shop/order.placed"))
    def take(ctx: durably.ContextSync) -> None:
        received.append(ctx.event.data)

    names: dict[str, Any] = {}
    with TestEngine(client, [take]).sync() as engine:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(code("sql", "CREATE TABLE").encode())
            exec(code("python", "'shop', %s)"), {"connection": connection}, names)
            connection.execute(code("sql", "json_build_object").encode())

        async def send() -> None:
            connection = await asyncpg.connect(url)
            scope: dict[str, Any] = {"connection": connection, **names}
            exec("async def send():\n" + textwrap.indent(code("python", "'shop', $1)"), "    "), scope)
            await scope["send"]()
            await connection.close()

        asyncio.run(send())
        # The second has the same id as the first.
        assert relay.send_waiting() == 3
        engine.run_until_idle()
    assert received == [{"order_id": 1}] * 2
    relay.database.disconnect()


def test_the_tables_of_the_page_are_those_of_sqlalchemy(make_url: MakeUrl) -> None:
    """And those of Django, which ``test_django.py`` uses with the same statements."""
    import sqlalchemy as sa

    def columns(database: sa.Engine) -> list[Any]:
        found = sa.inspect(database)
        return [
            (table, column["name"], str(column["type"]), column["nullable"])
            for table in ("durably_outbox", "durably_transactions")
            for column in found.get_columns(table)
        ]

    by_hand, made = (sa.create_engine(make_url("postgresql+psycopg")) for _ in range(2))
    with by_hand.begin() as connection:
        connection.execute(sa.text(code("sql", "CREATE TABLE")))
    durably.sqlalchemy.metadata.create_all(made)
    assert columns(by_hand) == columns(made)


def test_the_app_with_sqlalchemy(make_url: MakeUrl, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DURABLY_DEV", "1")
    monkeypatch.chdir(tmp_path)
    url = make_url("postgresql+psycopg")
    app = ModuleType("main")
    monkeypatch.setitem(sys.modules, "main", app)  # for the annotations of its models
    for containing in ("# main.py", "def mark_paid", "def test_a_placed_order"):
        exec(code("python", containing).replace("postgresql+psycopg://localhost/shop", url), vars(app))
        if containing == "# main.py":
            durably.sqlalchemy.metadata.create_all(app.database)
            app.TestEngine = TestEngine  # type: ignore[attr-defined]
    app.test_a_placed_order_is_paid()
    with app.sessions() as session:
        assert session.get(app.Order, 1).status == "paid"
