"""Transactions that insert an order, and an event in one of several ways, in PostgreSQL.

Arguments: ``django`` or ``sqlalchemy``, and the database's URL. A question has the ``way``, the number of transactions
of each of ``threads``, and is answered with the seconds.
"""

import asyncio
import json
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import sessionmaker

from benchmarks.children import Answerer, serve

_EVENT = {"order_id": 1, "email": "ada@example.com"}
_ORDER = "INSERT INTO orders (email) VALUES (%s)"
_BARE = "INSERT INTO durably_outbox (app, event) VALUES ('shop', %s)"
_NOTIFY = "NOTIFY durably_outbox"

_MOST_THREADS = 8

Place = Callable[[str], None]


def _bare_event() -> str:
    return json.dumps({"id": str(uuid.uuid4()), "name": "shop/placed", "data": _EVENT, "ts": time.time_ns() // 10**6})


def _with_sqlalchemy(url: str, directory: Path) -> Place:
    import durably.sqlalchemy

    database = sa.create_engine(url, pool_size=32)
    durably.sqlalchemy.metadata.create_all(database)
    with database.begin() as connection:
        connection.execute(sa.text("CREATE TABLE orders (id bigserial PRIMARY KEY, email text)"))
    sessions = sessionmaker(database)
    # No process relays: the client's engine is never started.
    client = durably.Client(app_id="shop", engine=durably.Embedded(directory / "durably.db"), is_production=False)
    durably.sqlalchemy.relay(client, database)
    order, bare, notify = (sa.text(sql.replace("%s", ":value")) for sql in (_ORDER, _BARE, _NOTIFY))  # parsed once

    def place(way: str) -> None:
        with sessions.begin() as session:
            session.execute(order, {"value": "ada@example.com"})
            if way == "send":
                durably.sqlalchemy.send(session, durably.Event(name="shop/placed", data=_EVENT))
            elif way != "none":
                session.execute(bare, {"value": _bare_event()})
                if way == "notify":
                    session.execute(notify)

    return place


def _with_django(url: str, directory: Path) -> Place:
    import django
    from django.conf import settings
    from django.core.management import call_command
    from django.db import connection, transaction

    parts = sa.make_url(url)
    fields = {"NAME": parts.database, "USER": parts.username, "HOST": parts.host, "PORT": parts.port}
    settings.configure(
        DATABASES={"default": {"ENGINE": "django.db.backends.postgresql", **fields}},
        INSTALLED_APPS=["durably.django"],
    )
    django.setup()
    call_command("migrate", verbosity=0)
    import durably.django
    from durably.django.outbox import add_relays

    add_relays(durably.Client(app_id="shop", engine=durably.Embedded(directory / "durably.db"), is_production=False))
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE orders (id bigserial PRIMARY KEY, email text)")

    def place(way: str) -> None:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(_ORDER, ["ada@example.com"])
            if way == "send":
                durably.django.send(durably.Event(name="shop/placed", data=_EVENT))
            elif way != "none":
                cursor.execute(_BARE, [_bare_event()])
                if way == "notify":
                    cursor.execute(_NOTIFY)

    return place


@asynccontextmanager
async def open_contender(directory: Path, arguments: list[str]) -> AsyncIterator[tuple[str, Answerer]]:
    kind, url = arguments
    make = _with_django if kind == "django" else _with_sqlalchemy
    place = await asyncio.to_thread(make, url, directory)

    pool = ThreadPoolExecutor(_MOST_THREADS)  # Its threads keep their connections.

    def run(way: str, count: int, threads: int) -> float:
        barrier = threading.Barrier(threads + 1)

        def work() -> None:
            place(way)  # connects
            barrier.wait()
            for _ in range(count):
                place(way)

        running = [pool.submit(work) for _ in range(threads)]
        barrier.wait()
        start = time.perf_counter()
        for each in running:
            each.result()
        return time.perf_counter() - start

    async def answer(question: dict[str, Any]) -> float:
        return await asyncio.to_thread(run, question["way"], question["count"], question["threads"])

    yield "ready", answer


if __name__ == "__main__":
    serve(open_contender)
