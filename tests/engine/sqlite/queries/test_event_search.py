"""Searches of events find what a look at each event finds, whatever the size of a portion."""

import random
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from durably.engine.api.codec import HttpEngine
from durably.engine.model.runs import EventFilter, StoredEvent, to_datetime
from durably.engine.sqlite.engine import SqliteEngine
from durably.engine.sqlite.queries import search
from durably.engine.sqlite.queries.search import Budget
from durably.engine.sqlite.queries.searches import search_events
from durably.protocol.engine_errors import SelectionInvalidError

from ...conftest import only_run, send, step_is
from ...small_app import SmallApp
from .random_history import PastEvent, RandomHistory

TRIGGERING = {"order/paid"}


@pytest.fixture(params=[3, 17, 20_000])
def portion(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Rows that a request looks at."""
    monkeypatch.setattr(search, "PORTION", request.param)
    monkeypatch.setattr(search, "ID_PORTION", request.param)
    return int(request.param)


def find_all(connection: sqlite3.Connection, wanted: EventFilter, limit: int) -> Iterator[StoredEvent]:
    cursor: str | None = None
    while True:
        page = search_events(connection, wanted, limit, cursor, TRIGGERING.__contains__, lambda key: None, Budget(0))
        assert len(page.events) <= limit
        yield from page.events
        if page.cursor is None:
            return
        cursor = page.cursor


def runs_of(history: RandomHistory, event: PastEvent) -> list[str]:
    return [run.id for run in history.runs if event in run.events]


@pytest.mark.parametrize("seed", range(3))
def test_search_finds_the_same_as_a_scan_of_all_events(tmp_path: Path, portion: int, seed: int) -> None:
    history = RandomHistory(seed)
    connection = history.write(tmp_path / "engine.db")
    chosen = random.Random(seed)

    def maybe(values: Any) -> Any:
        return chosen.choice(list(values)) if chosen.random() < 0.4 else None

    for _ in range(40):
        condition = maybe(["event.data.n > 2"])
        times = [to_datetime(event.received_at) for event in history.events]
        wanted = EventFilter(
            name=maybe(["order/created", "order/paid", "rare", "none"]),
            received_after=maybe(times),
            received_before=maybe(times),
            is_unmatched=maybe([True, False]),
            if_exp=condition,
        )
        expected = {
            event.id: runs_of(history, event)
            for event in reversed(history.events)
            if wanted.name in (None, event.name)
            and (wanted.received_after is None or to_datetime(event.received_at) >= wanted.received_after)
            and (wanted.received_before is None or to_datetime(event.received_at) < wanted.received_before)
            and (condition is None or event.n > 2)
            and wanted.is_unmatched in (None, not runs_of(history, event) and event.name not in TRIGGERING)
        }
        found = list(find_all(connection, wanted, chosen.choice((1, 4, 50))))
        assert {event.id: [run.id for run in event.runs] for event in found} == expected
        assert [event.id for event in found] == list(expected)
    connection.close()


def test_events_are_found_by_their_ids(tmp_path: Path, portion: int) -> None:
    history = RandomHistory(7)
    connection = history.write(tmp_path / "engine.db")

    def found(text: str) -> list[str]:
        return [event.id for event in find_all(connection, EventFilter(id=text), 50)]

    event = next(event for event in history.events if event.sender_id is not None)
    assert found(event.id) == found(event.id[-8:].lower()) == found(event.id[:24]) == [event.id]
    assert found(str(event.sender_id)) == [event.id]
    assert found("ZZZZZZZZ") == found("no id's form") == []
    connection.close()


def test_a_page_of_large_events_ends_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    history = RandomHistory(3, runs=20)
    connection = history.write(tmp_path / "engine.db")
    monkeypatch.setattr(search, "MOST_PAGE_BYTES", 300)
    arguments = TRIGGERING.__contains__, lambda key: None, Budget(0)
    page = search_events(connection, EventFilter(), 50, None, *arguments)
    assert 1 <= len(page.events) < 5
    assert page.cursor is not None
    assert [event.id for event in find_all(connection, EventFilter(), 50)] == [
        event.id for event in reversed(history.events)
    ]
    with pytest.raises(SelectionInvalidError):
        search_events(connection, EventFilter(), 50, "abc", *arguments)
    connection.close()


async def test_an_event_is_unmatched_if_it_has_no_effect(
    engine: SqliteEngine, app: SmallApp, client: HttpEngine
) -> None:
    @app.function("work", cancel=[{"event": "stop"}])
    def work(steps: Any) -> None:
        steps.wait_for_event("go", "go")

    @app.function("picky", triggers=[{"event": "picky", "expression": "event.data.n > 5"}])
    def picky(steps: Any) -> None: ...

    await engine.sync_app(app.sync_request())
    first = await only_run(engine, await send(engine, "work"))
    await step_is(engine, first, "go", "waiting")
    going = await send(engine, "go")
    assert (await engine.wait_for_run(first)).status == "Completed"
    second = await only_run(engine, await send(engine, "work"))
    stopping = await send(engine, "stop")
    assert (await engine.wait_for_run(second)).status == "Cancelled"
    late = await send(engine, "go")
    unknown = await send(engine, "unknown", n=1)
    refused = await send(engine, "picky", n=1)
    unmatched = await client.search_events(is_unmatched=True)
    assert [event.id for event in unmatched.events] == [unknown, late]
    others = await client.search_events(is_unmatched=False, limit=100)
    assert {going, stopping, refused} <= {event.id for event in others.events}
    assert all(not report.is_unmatched for report in others.events)
    (page,) = (await client.search_events(if_exp="event.data.n == 1", name="unknown")).events
    assert page.data == {"n": 1}
    with pytest.raises(SelectionInvalidError, match="over `event` alone"):
        await client.search_events(if_exp="async.data.n == 1")
    assert (await client.search_events(name="work")).events[0].runs[0].id == second
