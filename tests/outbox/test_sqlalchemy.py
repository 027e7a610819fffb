"""Events and results of steps in the transactions of SQLAlchemy's sessions."""

import asyncio
import itertools
import json
import os
import signal
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

import durably
import durably.sqlalchemy
from durably.comm import CommHandler
from durably.errors import EventUnserializableError, FunctionConfigInvalidError, SendEventsError
from durably.outbox import Backlog
from durably.testing import TestEngine

from ..waiting import eventually
from .conftest import MakeUrl

SYNC = ["sqlite", "postgresql+psycopg"]
ASYNC = ["sqlite+aiosqlite", "postgresql+asyncpg"]


class Receipt(BaseModel):
    number: int


class Shop:
    """An app with a database. ``received`` are the data of the events, in the order of their runs."""

    def __init__(self, url: str, engine: Any = None, app_id: str = "shop") -> None:
        plain = url.replace("+aiosqlite", "").replace("+asyncpg", "+psycopg")
        self.database = sa.create_engine(plain)
        durably.sqlalchemy.metadata.create_all(self.database)
        self.sessions: sessionmaker[Session] = sessionmaker(self.database)
        self.client = durably.Client(app_id=app_id, is_production=False, engine=engine)
        is_async = plain != url and "psycopg" not in url
        self.async_database = create_async_engine(url) if is_async else None
        self.async_sessions: async_sessionmaker[AsyncSession] = async_sessionmaker(self.async_database)
        self.relay = durably.sqlalchemy.relay(self.client, self.async_database or self.database)
        self.received: list[Any] = []
        self.ids: list[str] = []

        @self.client.create_function(fn_id="take", trigger=durably.TriggerEvent(event="shop/*"))
        def take(ctx: durably.ContextSync) -> None:
            self.received.append(ctx.event.data)
            self.ids.append(ctx.event.id)

        self.take = take

    def execute(self, sql: str) -> None:
        with self.database.begin() as connection:
            connection.execute(sa.text(sql))

    def rows(self) -> list[tuple[Any, ...]]:
        with self.database.connect() as connection:
            found = connection.execute(sa.text("SELECT id, event, error FROM durably_outbox ORDER BY id"))
            return [tuple(row) for row in found]


def placed(number: int, **fields: Any) -> durably.Event:
    return durably.Event(name="shop/placed", data={"number": number}, **fields)


@pytest.mark.parametrize("driver", SYNC)
def test_committed_events_are_sent_once_and_rolled_back_events_never(driver: str, make_url: MakeUrl) -> None:
    shop = Shop(make_url(driver))
    with TestEngine(shop.client, [shop.take]).sync() as engine:
        with shop.sessions() as session:
            durably.sqlalchemy.send(session, placed(1))
            session.rollback()
        with shop.sessions.begin() as session:
            ids = durably.sqlalchemy.send(session, [placed(2), placed(3, id="mine")])
            assert shop.relay.send_waiting() == 0  # It is not committed.
        assert ids[1] == "mine"
        assert shop.relay.send_waiting() == 2
        assert shop.relay.send_waiting() == 0
        engine.run_until_idle()
        assert [data["number"] for data in shop.received] == [2, 3]
        assert shop.ids == ids


@pytest.mark.parametrize("driver", SYNC)
def test_apps_on_one_database_have_relays_of_their_own(driver: str, make_url: MakeUrl) -> None:
    """Also at the same time: the lock of PostgreSQL is that of an app."""
    url = make_url(driver)
    shop, post = Shop(url), Shop(url, app_id="post")
    with shop.sessions.begin() as session:
        durably.sqlalchemy.send(session, [placed(1), placed(2)])
        session.execute(sa.text("UPDATE durably_outbox SET app = 'post' WHERE id = 2"))
        session.execute(sa.text("INSERT INTO durably_outbox (app, event) VALUES ('other', '')"))
    assert (shop.relay.backlog().waiting, post.relay.backlog().waiting) == (1, 1)
    sent = list[tuple[str, Any]]()

    def send_after_post(events: list[durably.Event]) -> None:
        assert post.relay.send_waiting() == 1
        sent.extend(("shop", event.data) for event in events)

    shop.client.send_sync = send_after_post  # type: ignore[method-assign, assignment]
    post.client.send_sync = lambda events: sent.extend(("post", event.data) for event in events)  # type: ignore[method-assign, assignment]
    assert shop.relay.send_waiting() == 1
    assert sent == [("post", {"number": 2}), ("shop", {"number": 1})]
    assert len(shop.rows()) == 1


def test_events_are_those_of_the_app_whose_relay_reads_the_database(
    make_url: MakeUrl, caplog: pytest.LogCaptureFixture
) -> None:
    shop, post = Shop(make_url("sqlite")), Shop(make_url("sqlite"), app_id="post")
    with shop.sessions.begin() as session:
        durably.sqlalchemy.send(session, placed(1))
    with post.sessions.begin() as session:
        durably.sqlalchemy.send(session, placed(2))
    assert (shop.relay.backlog().waiting, post.relay.backlog().waiting) == (1, 1)
    unread = sa.create_engine(make_url("sqlite"))
    durably.sqlalchemy.metadata.create_all(unread)
    for _ in range(2):
        with Session(unread) as session:
            durably.sqlalchemy.send(session, placed(3))
    [warning] = [each.getMessage() for each in caplog.records if "no relay" in each.getMessage()]
    assert str(unread.url.database) in warning


@pytest.mark.parametrize("driver", ASYNC)
async def test_async_sessions_send(driver: str, make_url: MakeUrl) -> None:
    shop = Shop(make_url(driver))
    async with TestEngine(shop.client, [shop.take]) as engine:
        async with shop.async_sessions() as session:
            await durably.sqlalchemy.send(session, placed(1))
            await session.rollback()
            await durably.sqlalchemy.send(session, placed(2))
            await session.commit()
        assert await asyncio.to_thread(shop.relay.send_waiting) == 1
        await engine.run_until_idle()
        assert shop.received == [{"number": 2}]
    assert shop.async_database is not None
    await shop.async_database.dispose()


def test_unserializable_event_is_refused_before_the_commit(make_url: MakeUrl) -> None:
    shop = Shop(make_url("sqlite"))
    with shop.sessions() as session, pytest.raises(EventUnserializableError, match="data"):
        durably.sqlalchemy.send(session, durably.Event(name="shop/placed", data={"when": object()}))


@pytest.mark.parametrize("driver", SYNC)
def test_refused_rows_are_kept_with_their_reason_and_do_not_block_the_others(driver: str, make_url: MakeUrl) -> None:
    shop = Shop(make_url(driver))
    with TestEngine(shop.client, [shop.take]).sync() as engine:
        with shop.sessions.begin() as session:
            durably.sqlalchemy.send(session, [placed(1), durably.Event(name="inngest/reserved"), placed(2)])
        for event in ("no JSON", '{"name": "shop/placed", "data": {"number": 0}}', '{"id": "a"}'):
            shop.execute(
                f"INSERT INTO durably_outbox (app, event) VALUES ('shop', '{event.replace(':', chr(92) + ':')}')"
            )
        shop.relay.send_waiting()
        engine.run_until_idle()
        assert [data["number"] for data in shop.received] == [1, 2]
        reasons = [error for _, _, error in shop.rows()]
        assert ["reserved" in reasons[0], "no id" in reasons[2], "name" in reasons[3]] == [True] * 3, reasons
        assert shop.relay.backlog() == Backlog(0, 4, 0.0)

        # After a correction by hand it is sent.
        shop.execute("UPDATE durably_outbox SET error = NULL, event = REPLACE(event, 'inngest/', 'shop/')")
        assert shop.relay.send_waiting() == 4
        assert shop.relay.backlog().refused == 3


def test_unreachable_engine_refuses_no_row(make_url: MakeUrl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("durably.events.MAX_ATTEMPTS", 1)
    shop = Shop(make_url("sqlite"), "http://127.0.0.1:9")
    with shop.sessions.begin() as session:
        durably.sqlalchemy.send(session, placed(1, ts=1_700_000_000_000))
    with pytest.raises(SendEventsError):
        shop.relay.send_waiting()
    backlog = shop.relay.backlog()
    assert (backlog.waiting, backlog.refused, backlog.oldest > 1e6) == (1, 0, True)


def test_rows_that_cannot_be_read_or_sent_do_not_block_the_others(make_url: MakeUrl) -> None:
    """Over HTTP, where the sender is a header."""
    shop = Shop(make_url("sqlite"))
    deep = '{"id": "a", "name": "shop/placed", "data": {"number": ' + "[" * 5000 + "]" * 5000 + "}}"
    senders = (
        json.dumps({"id": each, "name": "shop/placed", "sender": each}) for each in ("a\r\nX-Y: 1", "\u0416", "")
    )
    with TestEngine(shop.client, [shop.take]).sync() as engine:
        with shop.database.begin() as connection:
            for event in (deep, *senders):
                sql = sa.text("INSERT INTO durably_outbox (app, event) VALUES ('shop', :event)")
                connection.execute(sql, {"event": event})
        assert shop.relay.backlog().waiting == 4
        with shop.sessions.begin() as session:
            durably.sqlalchemy.send(session, placed(1))
        assert shop.relay.send_waiting() == 5
        assert shop.relay.backlog() == Backlog(0, 4, 0.0)
        engine.run_until_idle()
        assert [data["number"] for data in shop.received] == [1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="it needs os.fork")
def test_a_forked_child_wakes_its_own_relay(make_url: MakeUrl) -> None:
    """Another thread may hold the lock of the relay during the fork."""
    shop = Shop(make_url("sqlite"), "http://127.0.0.1:9")
    with shop.relay._lock:
        child = os.fork()
        if child == 0:
            shop.relay.wake()
            os._exit(0)

    def has_ended() -> bool:
        return os.waitpid(child, os.WNOHANG)[0] == child

    try:
        eventually(has_ended, "the child ends")
    except BaseException:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise


@pytest.mark.parametrize("driver", [*SYNC, *ASYNC])
def test_relays_keep_the_order_of_the_rows(driver: str, make_url: MakeUrl, tmp_path: Path) -> None:
    engine = durably.Embedded(tmp_path / "durably.db")
    url = make_url(driver)
    shop = Shop(url, engine)
    CommHandler(client=shop.client, framework="testing", functions=[shop.take])
    other = durably.sqlalchemy.relay(shop.client, url)
    total = 600
    engine.start_sync()
    try:
        other.start(lambda: True)
        for first in range(0, total, 3):
            with shop.sessions.begin() as session:
                durably.sqlalchemy.send(session, [placed(first + each) for each in range(3)])
        eventually(lambda: not shop.rows() and len(shop.received) == total, "all events have runs")
    finally:
        other.stop()
        engine.stop_sync()
    with closing(sqlite3.connect(tmp_path / "durably.db")) as connection:
        query = "SELECT json_extract(body, '$.data.number') FROM events WHERE name = 'shop/placed' ORDER BY key"
        assert [number for (number,) in connection.execute(query)] == list(range(total))


def test_other_relay_waits_while_one_works(make_url: MakeUrl) -> None:
    """Of PostgreSQL, by its lock."""
    url = make_url("postgresql+psycopg")
    shop = Shop(url)
    other = durably.sqlalchemy.relay(shop.client, url)
    with shop.sessions.begin() as session:
        durably.sqlalchemy.send(session, placed(1))
    seen = list[int]()

    def send(events: Any) -> None:
        seen.append(other.send_waiting())

    shop.client.send_sync = send  # type: ignore[method-assign, assignment]
    assert shop.relay.send_waiting() == 1
    assert seen == [0]


def test_the_overview_and_the_metrics_show_a_backlog(make_url: MakeUrl, tmp_path: Path) -> None:
    engine = durably.Embedded(tmp_path / "durably.db")
    shop = Shop(make_url("sqlite"), engine)
    CommHandler(client=shop.client, framework="testing", functions=[shop.take])
    with shop.sessions.begin() as session:
        durably.sqlalchemy.send(session, durably.Event(name="inngest/reserved"))
    engine.start_sync()
    try:
        concerns = eventually(lambda: engine.overview_sync().concerns, "the relay has reported", timeout=30)
        assert "refused 1 events" in concerns[0].message
        samples = {metric.name: metric.samples for metric in engine.read_metrics_sync()}
        assert [(sample.labels[1], sample.value) for sample in samples["outbox_events"]] == [
            ("waiting", 0),
            ("refused", 1),
        ]
    finally:
        engine.stop_sync()


# transactional steps


class Died(BaseException):
    """The process dies after the commit of a step."""


@pytest.mark.parametrize("driver", [*SYNC, *ASYNC])
def test_committed_step_is_not_repeated(driver: str, make_url: MakeUrl) -> None:
    shop = Shop(make_url(driver))
    shop.execute("CREATE TABLE payments (number INTEGER)")
    numbers = itertools.count(1)
    client = shop.client

    @durably.sqlalchemy.transaction(shop.sessions)
    def pay(session: Session, by: str) -> Receipt:
        number = next(numbers)
        session.execute(sa.text("INSERT INTO payments VALUES (:number)"), {"number": number})
        return Receipt(number=number)

    @durably.sqlalchemy.transaction(shop.async_sessions)
    async def pay_async(session: AsyncSession, by: str) -> Receipt:
        number = next(numbers)
        await session.execute(sa.text("INSERT INTO payments VALUES (:number)"), {"number": number})
        return Receipt(number=number)

    def lose_once(function: Callable[..., Any]) -> Callable[..., Any]:
        """Lose the first result of the committed function."""
        if shop.async_database is None:

            def lost(*args: Any) -> Receipt:
                receipt: Receipt = function(*args)
                if len(seen) == 0:
                    seen.append(receipt)
                    raise RuntimeError("lost")
                return receipt

            return lost

        async def lost_async(*args: Any) -> Receipt:
            receipt: Receipt = await function(*args)
            if len(seen) == 0:
                seen.append(receipt)
                raise RuntimeError("lost")
            return receipt

        return lost_async

    seen: list[Receipt] = []

    if shop.async_database is None:

        @client.create_function(fn_id="pay", trigger=durably.TriggerEvent(event="shop/pay"))
        def run(ctx: durably.ContextSync) -> int:
            ctx.step.run("first", lose_once(pay), "ada")
            second: Receipt = ctx.step.run("second", pay, "ada")
            return second.number

    else:

        @client.create_function(fn_id="pay", trigger=durably.TriggerEvent(event="shop/pay"))
        async def run(ctx: durably.Context) -> int:
            await ctx.step.run("first", lose_once(pay_async), "ada")
            second: Receipt = await ctx.step.run("second", pay_async, "ada")
            return second.number

    with TestEngine(client, [run]).sync() as engine:
        first = engine.send(durably.Event(name="shop/pay")).wait()
        first.assert_completed(output=2)
        engine.send(durably.Event(name="shop/pay")).wait().assert_completed(output=4)
    with shop.database.connect() as connection:
        assert list(connection.execute(sa.text("SELECT number FROM payments")).scalars()) == [1, 2, 3, 4]
        [(count, steps)] = connection.execute(
            sa.text("SELECT COUNT(*), COUNT(DISTINCT step_id) FROM durably_transactions WHERE result IS NOT NULL")
        )
        assert (count, steps) == (4, 2)


def test_failed_transaction_leaves_no_result(make_url: MakeUrl) -> None:
    shop = Shop(make_url("sqlite"))
    attempts = itertools.count()

    @durably.sqlalchemy.transaction(shop.sessions)
    def pay(session: Session) -> int:
        durably.sqlalchemy.send(session, placed(1))
        if next(attempts) == 0:
            raise RuntimeError("the bank is closed")
        return 7

    @shop.client.create_function(fn_id="pay", trigger=durably.TriggerEvent(event="pay"))
    def run(ctx: durably.ContextSync) -> int:
        return ctx.step.run("pay", pay)

    with TestEngine(shop.client, [run, shop.take]).sync() as engine:
        engine.send(durably.Event(name="pay")).wait().assert_completed(output=7)
        assert shop.relay.send_waiting() == 1
    assert pay() == 7  # outside of steps it is a transaction


def test_step_that_commits_early_is_named(make_url: MakeUrl) -> None:
    shop = Shop(make_url("sqlite"))

    @durably.sqlalchemy.transaction(shop.sessions)
    def pay(session: Session) -> int:
        session.commit()
        return 7

    @shop.client.create_function(fn_id="pay", retries=1, trigger=durably.TriggerEvent(event="pay"))
    def run(ctx: durably.ContextSync) -> int:
        return ctx.step.run("take the money", pay)

    with TestEngine(shop.client, [run]).sync() as engine:
        failed = engine.send(durably.Event(name="pay")).wait()
        message = str(failed.error)
        assert "take the money" in message
        assert "commit()" in message
        assert failed.id in message


def test_second_transaction_of_a_step_is_refused(make_url: MakeUrl) -> None:
    shop = Shop(make_url("sqlite"))

    @durably.sqlalchemy.transaction(shop.sessions)
    def pay(session: Session) -> int:
        return 7

    @shop.client.create_function(fn_id="pay", retries=0, trigger=durably.TriggerEvent(event="pay"))
    def run(ctx: durably.ContextSync) -> list[int]:
        return ctx.step.run("pay twice", lambda: [pay(), pay()])

    with TestEngine(shop.client, [run]).sync() as engine:
        failed = engine.send(durably.Event(name="pay")).wait()
        assert "second transaction" in str(failed.error)
        assert FunctionConfigInvalidError.__name__ in str(failed.error)


def test_a_step_may_call_its_transaction_again_after_a_rollback(make_url: MakeUrl) -> None:
    shop = Shop(make_url("sqlite"))
    numbers = itertools.count(1)

    @durably.sqlalchemy.transaction(shop.sessions)
    def pay(session: Session) -> int:
        durably.sqlalchemy.send(session, placed(number := next(numbers)))
        if number < 3:
            raise RuntimeError("deadlock detected")
        return number

    def pay_at_last() -> int:
        with suppress(RuntimeError):
            return pay()
        return pay_at_last()

    @shop.client.create_function(fn_id="pay", retries=0, trigger=durably.TriggerEvent(event="pay"))
    def run(ctx: durably.ContextSync) -> int:
        paid: int = ctx.step.run("pay", pay_at_last)
        return paid

    with TestEngine(shop.client, [run]).sync() as engine:
        engine.send(durably.Event(name="pay")).wait().assert_completed(output=3)
    assert [json.loads(event)["data"] for _, event, _ in shop.rows()] == [{"number": 3}]


def test_two_attempts_at_once_commit_one_result(make_url: MakeUrl) -> None:
    """As of a process that has lost its lease while its step runs."""
    shop = Shop(make_url("postgresql+psycopg"))
    entered, may_end = threading.Event(), threading.Event()
    results, runs = list[int](), itertools.count()

    @durably.sqlalchemy.transaction(shop.sessions)
    def pay(session: Session) -> int:
        number = next(runs)
        entered.set()
        assert may_end.wait(30)
        return number

    def attempt() -> None:
        from durably.events import sending_run
        from durably.execution import StepRequest, in_step
        from durably.execution.step import Step
        from durably.protocol.opcodes import Opcode

        sending_run.set("RUN")
        in_step.set(Step(StepRequest("pay", Opcode.STEP_RUN, handler=pay), "HASH", 0, 0))
        results.append(pay())

    threads = [threading.Thread(target=attempt) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert entered.wait(30)
    may_end.set()
    for thread in threads:
        thread.join()
    assert (results, next(runs)) == ([0, 0], 1)


def test_old_results_are_deleted(make_url: MakeUrl) -> None:
    shop = Shop(make_url("sqlite"))
    for run_id, created in (("old", 0), ("new", 10**14)):
        shop.execute(f"INSERT INTO durably_transactions (run_id, step_id, created) VALUES ('{run_id}', 'a', {created})")
    shop.relay._delete_old_results()
    with shop.database.connect() as connection:
        assert list(connection.execute(sa.text("SELECT run_id FROM durably_transactions")).scalars()) == ["new"]
