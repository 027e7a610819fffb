"""Searches of runs find what a look at each run finds, whatever the size of a portion."""

import random
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from durably.engine.api.codec import HttpEngine
from durably.engine.core.run_state import RunStatus
from durably.engine.model.runs import MatchCount, Run, RunFilter, to_datetime, to_optional_datetime
from durably.engine.sqlite.engine import SqliteEngine
from durably.engine.sqlite.queries import search, searches
from durably.engine.sqlite.queries.search import Budget
from durably.engine.sqlite.queries.searches import count_by_status, search_runs
from durably.protocol.engine_errors import SelectionInvalidError

from ...conftest import only_run, run_to_end, send
from ...small_app import SmallApp
from .random_history import PastRun, RandomHistory

CONDITIONS: dict[str, Callable[[PastRun], bool]] = {
    "event.data.n > 2": lambda run: run.events[0].n > 2,
    "output.total >= 5": lambda run: run.output is not None and run.output.get("total", 0) >= 5,
    'output.name == "Error" && event.name == "order/paid"': lambda run: (
        run.output == {"name": "Error"} and run.events[0].name == "order/paid"
    ),
}


@pytest.fixture(params=[3, 17, 20_000])
def portion(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Rows that a request looks at."""
    monkeypatch.setattr(search, "PORTION", request.param)
    monkeypatch.setattr(search, "ID_PORTION", request.param)
    return int(request.param)


def find_all(connection: sqlite3.Connection, wanted: RunFilter, limit: int) -> Iterator[Run]:
    cursor: str | None = None
    while True:
        page = search_runs(connection, wanted, limit, cursor, lambda key: None, Budget(0))
        assert len(page.runs) <= limit
        yield from page.runs
        if page.cursor is None:
            return
        cursor = page.cursor


def matches(run: PastRun, wanted: RunFilter, condition: str | None) -> bool:
    return (
        wanted.status in (None, run.status)
        and wanted.function_id in (None, run.function_id)
        and wanted.app_id in (None, run.app_id)
        and (wanted.event_name is None or wanted.event_name in {event.name for event in run.events})
        and (wanted.started_after is None or to_datetime(run.created_at) >= wanted.started_after)
        and (wanted.started_before is None or to_datetime(run.created_at) < wanted.started_before)
        and (condition is None or CONDITIONS[condition](run))
    )


def random_filter(history: RandomHistory, chosen: random.Random) -> tuple[RunFilter, str | None]:
    def maybe(values: Any) -> Any:
        return chosen.choice(list(values)) if chosen.random() < 0.35 else None

    condition = maybe(CONDITIONS)
    times = sorted(run.created_at for run in history.runs)
    return RunFilter(
        status=maybe(RunStatus),
        function_id=maybe(["shop-1", "mail-2", "idle-0", "none"]),
        app_id=maybe(["shop", "mail", "idle", "none"]),
        event_name=maybe(["order/created", "rare", "none"]),
        started_after=to_optional_datetime(maybe(times)),
        started_before=to_optional_datetime(maybe(times)),
        if_exp=condition,
    ), condition


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("is_short", [True, False])
def test_search_finds_the_same_as_a_scan_of_all_runs(
    tmp_path: Path, portion: int, seed: int, is_short: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searches, "MOST_OF_EVENT_NAME", 1000 if is_short else 10)
    history = RandomHistory(seed)
    connection = history.write(tmp_path / "engine.db")
    chosen = random.Random(seed)
    for _ in range(40):
        wanted, condition = random_filter(history, chosen)
        expected = [run.id for run in reversed(history.runs) if matches(run, wanted, condition)]
        assert [run.id for run in find_all(connection, wanted, chosen.choice((1, 4, 50)))] == expected, wanted
    connection.close()


@pytest.mark.parametrize(("portion_of_counts", "most"), [(4, 1000), (18, 4), (10_000, 1000)])
def test_counts_are_those_of_a_look_at_each_run_or_less(
    tmp_path: Path, portion_of_counts: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searches, "MOST_OF_EVENT_NAME", 10)
    monkeypatch.setattr(searches, "COUNTED_PORTION", portion_of_counts)
    monkeypatch.setattr(searches, "COUNTED_ROWS_PORTION", portion_of_counts // 2)
    monkeypatch.setattr(searches, "MOST_COUNTED", most)
    history = RandomHistory(5)
    connection = history.write(tmp_path / "engine.db")
    chosen, complete = random.Random(5), 0
    for _ in range(100):
        wanted = msgspec.structs.replace(random_filter(history, chosen)[0], status=None, if_exp=None)
        expected = Counter(run.status for run in history.runs if matches(run, wanted, None))
        counts = count_by_status(connection, wanted, lambda key: None).counts
        assert [*counts] == [*RunStatus]
        for status, found in counts.items():
            assert found.count <= min(expected[status], most), (wanted, status)
            assert not found.is_complete or found.count == expected[status], (wanted, status)
            complete += found.is_complete
    assert (complete == 100 * len(RunStatus)) is (portion_of_counts == 10_000)
    connection.close()


def test_runs_are_found_by_their_ids_and_by_those_of_their_events(tmp_path: Path, portion: int) -> None:
    history = RandomHistory(7)
    connection = history.write(tmp_path / "engine.db")

    def found(text: str) -> list[str]:
        return [run.id for run in find_all(connection, RunFilter(id=text), 50)]

    run = next(run for run in history.runs if run.events[0].sender_id is not None and len(run.events) == 1)
    of_event = [each.id for each in reversed(history.runs) if run.events[0] in each.events]
    assert found(run.id) == found(run.id[-8:]) == found(run.id[-8:].lower()) == found(run.id[:24]) == [run.id]
    assert found(run.events[0].id) == found(str(run.events[0].sender_id)) == of_event
    if portion > len(history.events):
        assert found(run.events[0].id[-8:]) == of_event
    assert found("ZZZZZZZZ") == found("no id's form") == found("") == []
    together = {run.id for run in history.runs if run.id.startswith(history.runs[5].id[:9])}
    assert set(found(history.runs[5].id[:9])) == together
    connection.close()


def test_a_search_by_id_takes_the_other_conditions_too(tmp_path: Path) -> None:
    history = RandomHistory(7)
    connection = history.write(tmp_path / "engine.db")
    run = history.runs[3]
    other = next(status for status in RunStatus if status is not run.status)
    assert [each.id for each in find_all(connection, RunFilter(id=run.id, status=run.status), 5)] == [run.id]
    assert list(find_all(connection, RunFilter(id=run.id, status=other), 5)) == []
    connection.close()


def test_an_expensive_expression_ends_a_page_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "MOST_EVALUATED", 10)
    history = RandomHistory(3)
    connection = history.write(tmp_path / "engine.db")
    wanted = RunFilter(if_exp="event.data.n == 99")
    page = search_runs(connection, wanted, 50, None, lambda key: None, Budget(0))
    tenth = history.runs[-10]
    assert page.runs == []
    assert page.cursor is not None
    assert page.searched_until is not None
    assert round(page.searched_until.timestamp() * 1000) == tenth.created_at
    connection.close()


def test_large_outputs_are_left_out_of_a_page(tmp_path: Path) -> None:
    history = RandomHistory(3)
    connection = history.write(tmp_path / "engine.db")
    large = b'{"total": "' + b"x" * searches.LONGEST_OUTPUT + b'"}'
    ended = next(run for run in history.runs if run.status is RunStatus.COMPLETED)
    connection.execute("UPDATE runs SET output = ? WHERE key = ?", (large, ended.key))
    for condition in (None, "output.total != 1"):
        runs = {run.id: run for run in find_all(connection, RunFilter(if_exp=condition, status=ended.status), 500)}
        assert runs.pop(ended.id).output is None
        assert all(run.output is not None for run in runs.values())
    connection.close()


def test_a_cursor_of_something_else_is_refused(tmp_path: Path) -> None:
    connection = RandomHistory(1).write(tmp_path / "engine.db")
    for wanted in (RunFilter(), RunFilter(id="ABCDEFGH")):
        with pytest.raises(SelectionInvalidError, match="cursor 'abc'"):
            search_runs(connection, wanted, 5, "abc", lambda key: None, Budget(0))
    connection.close()


async def test_runs_are_searched_over_http(engine: SqliteEngine, app: SmallApp, client: HttpEngine) -> None:
    @app.function("work")
    def work(steps: Any) -> Any:
        return {"total": steps.event.data["n"]}

    await engine.sync_app(app.sync_request())
    runs = [await run_to_end(engine, "work", n=number) for number in range(3)]
    page = await client.search_runs(function_id="app-work", if_exp="output.total > 0", limit=1)
    assert page.runs == [await engine.get_run(runs[2].id)]
    rest = await client.search_runs(function_id="app-work", if_exp="output.total > 0", limit=1, cursor=page.cursor)
    assert [run.id for run in rest.runs] == [runs[1].id]
    assert (await client.search_runs(id=runs[0].id[-8:])).runs == [await engine.get_run(runs[0].id)]
    found = await client.count_runs(function_id="app-work", started_after=runs[1].created_at)
    assert found.counts[RunStatus.COMPLETED] == MatchCount(count=2, is_complete=True)
    assert sum(each.count for each in found.counts.values()) == 2
    for expression, problem in {
        "event.data.": "not valid",
        "async.data.n == 1": "over `event` and `output`",
        "event.n == 1": "write event.data.n",
        "outptu == 1": "knows `event` and `output`",
    }.items():
        with pytest.raises(SelectionInvalidError, match=problem):
            await client.search_runs(if_exp=expression)


async def test_a_run_is_scheduled_until_its_first_call(engine: SqliteEngine, app: SmallApp) -> None:
    @app.function("work", concurrency=[{"limit": 1}])
    def work(steps: Any) -> None: ...

    await engine.sync_app(app.sync_request())
    app.gate.clear()
    first = await only_run(engine, await send(engine, "work"))
    await app.wait_for_calls(1)
    second = await only_run(engine, await send(engine, "work"))
    assert [run.id for run in (await engine.search_runs(status=RunStatus.RUNNING)).runs] == [first]
    assert [run.id for run in (await engine.search_runs(status=RunStatus.SCHEDULED)).runs] == [second]
    counts = (await engine.count_runs()).counts
    assert (counts[RunStatus.RUNNING].count, counts[RunStatus.SCHEDULED].count) == (1, 1)
    app.gate.set()


async def test_a_run_has_its_event_name_and_the_number_of_repeated_attempts(
    engine: SqliteEngine, app: SmallApp
) -> None:
    @app.function("work", retries=2)
    def work(steps: Any) -> None:
        steps.run("fail", fail)

    def fail() -> None:
        raise ValueError

    await engine.sync_app(app.sync_request())
    run = await run_to_end(engine, "work")
    assert (run.event_name, run.failed_attempts) == ("work", len(await engine.run_attempts(run.id)))
    assert run.failed_attempts
    assert (await engine.search_runs()).runs == [run]
