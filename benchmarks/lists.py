"""Cost of the dashboard's lists with a million runs, and of an open dashboard on an idle engine."""

import asyncio
import datetime as dt
import json
import os
import random
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from ulid import ULID

from durably.engine.api.codec import encode_result
from durably.engine.api.interface import Engine
from durably.engine.api.operations import operations_of
from durably.engine.core.run_state import MACHINE_VERSION, RunState, RunStatus, encode_run_state
from durably.engine.model.settings import Durability, EngineSettings
from durably.engine.sqlite.database import open_database
from durably.engine.sqlite.engine import SqliteEngine

from .children import Child
from .database import DATABASE
from .tables import describe_machine, table

RUNS = 1_000_000
REPETITIONS = 15
AIM_SECONDS = 0.15
_FUNCTIONS = 20
_LIVE_SHARE = 1_000
_EACH_MILLISECONDS = 86
"""Between two runs: a million of them in a day."""
_STATUSES = (*[RunStatus.COMPLETED] * 45, *[RunStatus.FAILED] * 3, RunStatus.CANCELLED, RunStatus.SKIPPED)


def build(path: Path, runs: int) -> None:
    """A database with runs of a day: each of one event, every thousandth sleeps."""
    chosen, now = random.Random(1), time.time_ns() // 1_000_000
    connection = open_database(path, Durability.OFF)
    connection.execute("PRAGMA cache_size = -400000")
    connection.execute("BEGIN")
    connection.executemany(
        "INSERT INTO functions (id, app_id, position, is_active, config) VALUES (?, ?, ?, 1, ?)",
        [(f"app{n % 2}-f{n}", f"app{n % 2}", n, _config(n)) for n in range(_FUNCTIONS)],
    )
    connection.executemany(
        "INSERT INTO apps (id, url, synced_at) VALUES (?, 'http://127.0.0.1:9', ?)", [("app0", now), ("app1", now)]
    )
    state = encode_run_state(RunState(version=MACHINE_VERSION, status=RunStatus.RUNNING, max_attempts=4))
    for start in range(1, runs + 1, 50_000):
        keys = range(start, min(start + 50_000, runs + 1))
        times = {key: now - (runs - key + 1) * _EACH_MILLISECONDS for key in keys}
        connection.executemany(
            "INSERT INTO events (key, id, name, received_at, body) VALUES (?, ?, ?, ?, ?)",
            ((key, _ulid(chosen, times[key]), _event(key), times[key], _body(key)) for key in keys),
        )
        connection.executemany(
            "INSERT INTO runs (key, id, function_id, app_id, event_key, is_batch, status, max_attempts, created_at, "
            "started_at, ended_at, output) VALUES (?, ?, ?, ?, ?, 0, ?, 4, ?, ?, ?, ?)",
            _runs(chosen, times),
        )
        connection.executemany(
            "INSERT INTO run_states (run_key, is_runnable, state) VALUES (?, 0, ?)",
            [(key, state) for key in keys if key % _LIVE_SHARE == 0],
        )
    connection.execute("COMMIT")
    connection.close()


def _config(number: int) -> str:
    runtime = {"type": "http", "url": f"http://127.0.0.1:9/?fnId=app{number % 2}-f{number}&stepId=step"}
    return json.dumps(
        {
            "id": f"app{number % 2}-f{number}",
            "triggers": [{"event": f"event-{number}"}],
            "steps": {"step": {"id": "step", "name": "step", "runtime": runtime}},
        }
    )


def _event(key: int) -> str:
    return "rare" if key % 100_000 == 7 else f"event-{key % _FUNCTIONS}"


def _body(key: int) -> bytes:
    data = {"user": f"user-{key % 5_000}", "amount": key % 1_000, "note": "x" * 60}
    return json.dumps({"name": _event(key), "data": data, "ts": 0}).encode()


def _ulid(chosen: random.Random, milliseconds: int) -> str:
    return str(ULID.from_bytes(milliseconds.to_bytes(6) + chosen.randbytes(10)))


def _runs(chosen: random.Random, times: dict[int, int]) -> Iterator[tuple[object, ...]]:
    for key, at in times.items():
        number, is_live = key % _FUNCTIONS, key % _LIVE_SHARE == 0
        status = RunStatus.RUNNING if is_live else chosen.choice(_STATUSES)
        output = None if is_live else json.dumps({"total": key % 997, "name": "Error", "message": "y" * 80}).encode()
        ended_at = None if is_live else at + 40
        yield (
            key,
            _ulid(chosen, at),
            f"app{number % 2}-f{number}",
            f"app{number % 2}",
            key,
            status,
            at,
            at + 5,
            ended_at,
            output,
        )


async def _questions(engine: SqliteEngine) -> list[tuple[str, str, dict[str, Any]]]:
    """Names of rows, operations, and their arguments."""
    first = (await engine.search_runs(limit=1)).runs[0]
    old = first.created_at - dt.timedelta(hours=20)
    deep = ((await engine.search_runs(limit=1, started_before=old)).runs or [first])[0].id
    search = "search_runs"
    return [
        ("newest runs", search, {}),
        ("an old page", search, {"cursor": deep}),
        ("failed", search, {"status": RunStatus.FAILED}),
        ("completed", search, {"status": RunStatus.COMPLETED}),
        ("running", search, {"status": RunStatus.RUNNING}),
        ("scheduled (none)", search, {"status": RunStatus.SCHEDULED}),
        ("a function", search, {"function_id": "app1-f7"}),
        ("a function, failed", search, {"function_id": "app1-f7", "status": RunStatus.FAILED}),
        ("a function that does not exist", search, {"function_id": "none"}),
        ("an app", search, {"app_id": "app1"}),
        ("an hour of yesterday", search, {"started_after": old, "started_before": old + dt.timedelta(hours=1)}),
        ("an event name", search, {"event_name": "event-3"}),
        ("a rare event name", search, {"event_name": "rare"}),
        ("counts by status", "count_runs", {}),
        ("counts of a function", "count_runs", {"function_id": "app1-f7"}),
        ("counts of an app", "count_runs", {"app_id": "app1"}),
        ("counts of an hour", "count_runs", {"started_after": old, "started_before": old + dt.timedelta(hours=1)}),
        ("counts of an event name", "count_runs", {"event_name": "event-3"}),
        ("counts of a rare event name", "count_runs", {"event_name": "rare"}),
        ("a run by its whole id", search, {"id": first.id}),
        ("a run by its short id", search, {"id": first.id[-8:]}),
        ("the end of no id", search, {"id": "ZZZZZZZZ"}),
        ("an expression that holds for few", search, {"if_exp": "event.data.user == 'user-77'"}),
        ("an expression over the output", search, {"if_exp": "output.total == 5 && event.data.amount > 10"}),
        ("events", "search_events", {}),
        ("events of a name", "search_events", {"name": "rare"}),
        ("unmatched events (none)", "search_events", {"is_unmatched": True}),
        ("overview", "overview", {}),
        ("loads of functions", "function_loads", {}),
        ("a function's report", "inspect_function", {"function_id": "app1-f7"}),
        ("preview of a replay", "count_matching_runs", {"function_id": "app1-f7", "statuses": [RunStatus.FAILED]}),
        (
            "preview with an expression",
            "count_matching_runs",
            {"function_id": "app1-f7", "statuses": [RunStatus.FAILED], "if_exp": "event.data.amount > 500"},
        ),
    ]


async def measure(path: Path, repetitions: int) -> list[tuple[str, float, float]]:
    """Names, and the medians of CPU seconds and seconds of each answer, with its JSON."""
    engine, found = await SqliteEngine.open(path, EngineSettings()), []
    try:
        await engine.overview()  # the runs since the last counts are counted in the background after the start
        operations = operations_of(Engine)
        for name, operation, arguments in await _questions(engine):
            seconds, cpu_seconds = [], []
            for _ in range(repetitions):
                began, cpu_began = time.perf_counter(), time.process_time()
                result = await getattr(engine, operation)(**arguments)
                encode_result(operations[operation], result, result)
                seconds.append(time.perf_counter() - began)
                cpu_seconds.append(time.process_time() - cpu_began)
            found.append((name, median(cpu_seconds), median(seconds)))
    finally:
        await engine.close()
    return found


def measure_open_dashboard(directory: Path, seconds: float) -> float:
    """The share of a core that an idle engine uses while a page waits for changes."""
    with Child("benchmarks.engine_process", directory) as engine:
        stop, has_begun = threading.Event(), threading.Event()
        arguments = (engine.ready["origin"], stop, has_begun)
        threading.Thread(target=_wait_for_changes, args=arguments, daemon=True).start()
        if not has_begun.wait(30):
            raise RuntimeError("the engine has not answered the page")
        time.sleep(min(seconds, 2.0))
        before = engine.cpu_seconds()
        time.sleep(seconds)
        share = (engine.cpu_seconds() - before) / seconds
        stop.set()
        return share


def _wait_for_changes(origin: str, stop: threading.Event, has_begun: threading.Event) -> None:
    position = ""
    while not stop.is_set():
        try:
            with urllib.request.urlopen(f"{origin}/v1/changes?after={position}", timeout=30) as response:
                position = str(json.load(response)["data"]["position"])
                has_begun.set()
        except OSError:
            return  # the engine has ended


def report(directory: Path, *, is_quick: bool) -> str:
    """The section of the results."""
    runs, repetitions, seconds = (2_000, 1, 1.0) if is_quick else (RUNS, REPETITIONS, 30.0)
    path = directory / DATABASE
    build(path, runs)
    found = asyncio.run(measure(path, repetitions))
    (directory / "idle").mkdir()
    idle = measure_open_dashboard(directory / "idle", seconds)
    slow = [name for name, cpu, _ in found if cpu > AIM_SECONDS]
    verdict = "met" if not slow else f"missed by {', '.join(slow)}"
    return "\n".join(
        [
            f"## Dashboard lists at {runs:,} runs\n",
            f"{describe_machine()} {runs:,} runs of {_FUNCTIONS} functions in a day, each of one event, in a database "
            f"of {path.stat().st_size / 1e6:,.0f} MB; {repetitions} answers of each kind, one after another, with "
            "their JSON. A search looks at a limited number of runs for one answer, and continues at its cursor.\n",
            table(
                ["answer", "CPU time", "time"],
                [[name, f"{cpu * 1e3:.1f} ms", f"{whole * 1e3:.1f} ms"] for name, cpu, whole in found],
            ),
            f"{os.getloadavg()[0]:.0f} processes wanted the processor at the end, which lengthens the times. Aim: "
            f"below {AIM_SECONDS * 1e3:.0f} ms of CPU time each, {verdict}.\n",
            f"A page that waits for changes of an idle engine costs the engine {idle:.2%} of a core. Aim: below 1 %.\n",
        ]
    )
