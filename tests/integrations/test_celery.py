"""Tasks of a real Celery app as durable functions. Its broker does not exist."""

import asyncio
import datetime as dt
import decimal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import celery
import pytest
import urllib3
from celery import chain, chord, group, signals
from celery.exceptions import Ignore, Reject, TaskRevokedError
from celery.schedules import crontab, schedule

import durably
from durably import Embedded
from durably.comm import CommHandler
from durably.errors import FunctionConfigInvalidError
from durably.integrations.celery import functions
from durably.testing import TestEngine
from durably.testing.engine import SyncTestEngine

from ..embedded.stock import code_of, make_project
from ..embedded.stock import running as server_running
from ..variants import variants
from ..waiting import eventually

WAIT = 20
SERVERS = {
    "runserver": "python manage.py runserver {port} --noreload",
    "gunicorn": "gunicorn myproject.wsgi -b 127.0.0.1:{port} -w 2",
}
PROJECT = {
    "myproject/__init__.py": "from .celery import app\n",
    "myproject/celery.py": """
import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "myproject.settings")
app = Celery("myproject")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
""",
    "greetings/tasks.py": """
from celery import shared_task


@shared_task
def add(x, y):
    return x + y


@shared_task(bind=True, max_retries=2)
def retry(self):
    if self.request.retries < 2:
        raise self.retry(countdown=0)
    return self.request.retries
""",
    "myproject/urls.py": """
from celery.result import AsyncResult
from django.db import transaction
from django.http import JsonResponse
from django.urls import path
from greetings import durable, tasks


def start(request):
    with transaction.atomic():
        tasks.add.delay_on_commit(1, 1)
        transaction.set_rollback(True)
    with transaction.atomic():
        tasks.add.delay_on_commit(1, 2)
    return JsonResponse({"ids": [tasks.add.delay(3, 4).id, tasks.retry.delay().id]})


def show(request, id):
    result = AsyncResult(id)
    return JsonResponse({"state": result.state, "result": result.result})


def names(request):
    return JsonResponse({"names": [function.local_id for function in durable.tasks]})


urlpatterns = [path("start", start), path("result/<id>", show), path("names", names)]
""",
}
"""The files of Celery's own introduction to Django."""
SETTINGS = """
from celery.schedules import crontab

CELERY_BROKER_URL = CELERY_RESULT_BACKEND = "redis://127.0.0.1:1/0"
CELERY_BEAT_SCHEDULE = {"yearly": {"task": "greetings.tasks.add", "schedule": crontab(0, 0, "*", 1, 1)}}
"""


class Flaky(Exception):
    pass


class OwnSchedule(schedule):  # type: ignore[misc]
    pass


def nothing() -> None: ...


def five() -> int:
    return 5


def make_app(**settings: Any) -> celery.Celery:
    app = celery.Celery("shop", broker="amqp://nobody@127.0.0.1:1//", set_as_current=False)
    app.conf.update(broker_connection_retry=False, broker_connection_timeout=1, **settings)
    return app


@contextmanager
def served(app: celery.Celery, **options: Any) -> Iterator[SyncTestEngine]:
    client = durably.Client(app_id="shop")
    with TestEngine(client, functions(app, client, **options)).sync() as engine:
        yield engine


@pytest.fixture
def app() -> celery.Celery:
    app = make_app()

    @app.task(shared=False, name="add")
    def add(x: int, y: int) -> int:
        return x + y

    @app.task(shared=False, name="total")
    def total(numbers: list[int]) -> int:
        return sum(numbers)

    @app.task(shared=False, name="fail")
    def fail(*args: Any) -> None:
        raise ValueError("no")

    return app


def outcome(engine: SyncTestEngine, result: Any) -> Any:
    engine.run_until_idle()
    return result.get(timeout=WAIT)


def test_calls_are_runs_with_their_results(app: celery.Celery) -> None:
    with served(app) as engine:
        assert outcome(engine, app.tasks["add"].delay(1, y=2)) == 3
        assert outcome(engine, app.send_task("add", (3, 4))) == 7
        result = app.tasks["add"].apply_async((5, 6), task_id="five")
        assert (result.id, outcome(engine, result), result.state) == ("five", 11, "SUCCESS")
        assert app.AsyncResult("five").get(timeout=WAIT) == 11
        assert app.AsyncResult("other").state == "PENDING"
        assert [run.steps["run"].output for run in engine.runs()] == [{"result": 3}, {"result": 7}, {"result": 11}]


def test_an_error_is_final_and_has_its_class(app: celery.Celery) -> None:
    with served(app) as engine:
        result = app.tasks["fail"].delay()
        with pytest.raises(ValueError, match="no"):
            outcome(engine, result)
        assert result.state == "FAILURE"
        assert "test_celery.py" in result.traceback
        assert len(engine.runs()) == 1


def test_values_that_celery_encodes_arrive_as_they_are(app: celery.Celery) -> None:
    @app.task(shared=False, name="echo")
    def echo(*values: Any) -> Any:
        return [type(value).__name__ for value in values], list(values)

    values = [dt.datetime(2030, 1, 2, tzinfo=dt.UTC), decimal.Decimal("1.50"), uuid.UUID(int=7), "text", {"a": [1]}]
    with served(app) as engine:
        types, back = outcome(engine, app.tasks["echo"].delay(*values))
        assert types == ["datetime", "Decimal", "UUID", "str", "dict"]
        assert back == values
        with pytest.raises(Exception, match=r'arguments of the task "echo".*Pass ids'):
            app.tasks["echo"].delay(object())


@pytest.mark.parametrize("how", ["retry", "returned", "autoretry"])
def test_retries_wait_as_long_as_they_ask(how: str) -> None:
    app, attempts = make_app(), []
    auto: dict[str, Any] = {"autoretry_for": (Flaky,), "retry_backoff": 100, "retry_jitter": False}

    @app.task(shared=False, name="flaky", bind=True, max_retries=2, **(auto if how == "autoretry" else {}))
    def flaky(self: Any, times: int) -> int:
        attempts.append(self.request.retries)
        if self.request.retries < times:
            if how == "autoretry":
                raise Flaky("again")
            countdown = 100 * 2**self.request.retries
            return self.retry(countdown=countdown, exc=Flaky("again"), throw=how == "retry")  # type: ignore[no-any-return]
        return int(self.request.retries)

    with served(app) as engine:
        begin = engine.now
        assert outcome(engine, flaky.delay(2)) == 2
        assert 299 <= (engine.now - begin).total_seconds() < 330
        [run] = engine.runs()
        assert list(run.steps) == ["run", "until retry 1", "retry 1", "until retry 2", "retry 2"]
        with pytest.raises(Flaky, match="again"):
            outcome(engine, flaky.delay(9))
    assert attempts == [0, 1, 2, 0, 1, 2]


def test_countdown_eta_and_expires(app: celery.Celery) -> None:
    add = app.tasks["add"]
    with served(app) as engine:
        begin = engine.now
        assert outcome(engine, add.apply_async((1, 2), countdown=3600)) == 3
        assert 3599 <= (engine.now - begin).total_seconds() < 3630
        assert outcome(engine, add.apply_async((1, 2), eta=begin + dt.timedelta(days=2))) == 3
        assert dt.timedelta(days=1.99) < engine.now - begin < dt.timedelta(days=2.1)
        late = add.apply_async((1, 2), expires=dt.datetime.now(dt.UTC) - dt.timedelta(seconds=1))
        with pytest.raises(TaskRevokedError, match="expired"):
            outcome(engine, late)
        assert late.state == "REVOKED"
        assert outcome(engine, add.apply_async((1, 2), countdown=60, expires=3600)) == 3


def test_hooks_signals_and_requests_are_celerys(app: celery.Celery) -> None:
    seen: list[Any] = []

    class Base(celery.Task):
        abstract = True

        def on_success(self, retval: Any, *args: Any) -> None:
            seen.append(("on_success", retval[0]))

        def on_failure(self, exc: Any, *args: Any) -> None:
            seen.append(("on_failure", str(exc)))

    @app.task(shared=False, name="hooked", base=Base, bind=True)
    def hooked(self: Any, succeeds: bool) -> list[Any]:
        if not succeeds:
            raise ValueError("no")
        return [self.request.id, self.request.added, self.request.headers]

    def prerun(task_id: str, **_: Any) -> None:
        seen.append(("prerun", task_id))

    def before_publish(headers: dict[str, Any], body: Any, **_: Any) -> None:
        headers["added"] = f"{headers['id']} {body[0]} {headers['given']}"

    def revoked(request: Any, expired: bool, **_: Any) -> None:
        seen.append(("revoked", request.id, expired))

    signals.task_prerun.connect(prerun, sender=hooked)
    signals.before_task_publish.connect(before_publish, sender="hooked")
    signals.task_revoked.connect(revoked, sender=hooked)
    with served(app) as engine:
        headers = {"given": 1}
        call = partial(hooked.apply_async, headers=headers)
        assert outcome(engine, call((True,), task_id="one")) == [
            "one",
            "one (True,) 1",
            {"given": 1, "added": "one (True,) 1"},
        ]
        with pytest.raises(ValueError):
            outcome(engine, call((False,), task_id="two"))
        with pytest.raises(TaskRevokedError):
            outcome(engine, call((True,), task_id="late", expires=dt.datetime.now(dt.UTC)))
    assert seen == [
        ("prerun", "one"),
        ("on_success", "one"),
        ("prerun", "two"),
        ("on_failure", "no"),
        ("revoked", "late", True),
    ]


def test_a_revoked_call_is_a_cancelled_run(app: celery.Celery) -> None:
    with served(app) as engine:
        results = [app.tasks["add"].apply_async((1, 2), countdown=3600) for _ in range(3)]
        results[0].revoke(terminate=True)
        app.control.revoke([results[1].id, "unknown"])
        engine.run_until_idle()
        assert [result.state for result in results] == ["REVOKED", "REVOKED", "SUCCESS"]
        with pytest.raises(TaskRevokedError):
            results[0].get(timeout=WAIT)


def test_ignored_tasks_and_results(app: celery.Celery) -> None:
    followed: list[int] = []
    attempts: list[bool] = []

    @app.task(shared=False, name="quiet", ignore_result=True)
    def quiet() -> int:
        return 1

    @app.task(shared=False, name="ignoring")
    def ignoring() -> None:
        raise Ignore

    @app.task(shared=False, name="rejecting", acks_late=True)
    def rejecting(requeue: bool) -> int:
        attempts.append(requeue)
        if requeue and attempts.count(True) == 2:
            return 7
        raise Reject("no", requeue=requeue)

    @app.task(shared=False, name="follow")
    def follow(value: int) -> None:
        followed.append(value)

    with served(app) as engine:
        quiet.apply_async(link=follow.s())
        assert (ignoring.s() | follow.s()).delay().state == "PENDING"
        engine.run_until_idle()
        assert [run.output for run in engine.runs()] == [None] * 3
        assert [outcome(engine, rejecting.delay(requeue)) for requeue in (False, True)] == [None, 7]
    assert followed == [1]


CANVAS: list[tuple[str, Callable[[Any, Any], Any], Any]] = [
    ("chain", lambda add, total: chain(add.s(1, 2), add.s(3), add.s(4)), 10),
    ("group", lambda add, total: group(add.s(i, i) for i in range(3)), [0, 2, 4]),
    ("chord", lambda add, total: chord((add.s(i, i) for i in range(20)), total.s()), 380),
    ("chord in a chain", lambda add, total: add.s(1, 1) | group(add.s(1), add.s(2)) | total.s() | add.s(10), 17),
    ("chain in a chord", lambda add, total: chord([add.s(1, 1) | add.s(1), add.s(2, 2)], total.s() | add.s(1)), 8),
    ("group at the end of a chain", lambda add, total: add.s(1, 1) | group(add.s(1), add.s(2)), [3, 4]),
    ("chord in a chord", lambda add, total: chord([chord([add.s(1, 1)], total.s()), add.s(2, 2)], total.s()), 6),
    ("map", lambda add, total: total.map([[1, 2], [3]]), [3, 3]),
    ("chunks", lambda add, total: add.chunks([(1, 1), (2, 2), (3, 3)], 2).group(), [[2, 4], [6]]),
    ("chain of 120", lambda add, total: chain(add.s(0, 0), *(add.s(1) for _ in range(120))), 120),
]


@asynccontextmanager
async def running(app: celery.Celery, path: Path) -> AsyncIterator[Embedded]:
    engine = Embedded(path / "durably.db")
    client = durably.Client(app_id="shop", engine=engine)
    CommHandler(client=client, framework="test", functions=functions(app, client))
    async with engine.running():
        yield engine


@pytest.mark.parametrize(("name", "make", "expected"), CANVAS, ids=[name for name, _, _ in CANVAS])
async def test_canvas(
    name: str, make: Callable[[Any, Any], Any], expected: Any, app: celery.Celery, tmp_path: Path
) -> None:
    async with running(app, tmp_path):
        result = await asyncio.to_thread(make(app.tasks["add"], app.tasks["total"]).apply_async)
        assert await asyncio.to_thread(result.get, timeout=WAIT) == expected


async def test_a_chord_fails_with_its_first_failed_task(app: celery.Celery, tmp_path: Path) -> None:
    errors: list[str] = []

    @app.task(shared=False, name="note")
    def note(task_id: str) -> None:
        errors.append(task_id)

    header = [app.tasks["add"].s(1, 2), app.tasks["fail"].s(), app.tasks["add"].s(1, 2)]
    async with running(app, tmp_path) as engine:
        result = await asyncio.to_thread(chord(header, app.tasks["total"].s().on_error(note.s())).apply_async)
        with pytest.raises(ValueError):
            await asyncio.to_thread(result.get, timeout=WAIT)
        [join] = [run for run in await engine.list_runs() if run.function_id == "shop-celery.chord"]
        ended = await engine.wait_for_run(join.id, within=WAIT)
        assert ended.status is durably.RunStatus.FAILED
        [noted] = [run for run in await engine.list_runs() if run.function_id == "shop-note"]
        await engine.wait_for_run(noted.id, within=WAIT)
    assert errors == [result.id]


def test_failures_in_canvas_reach_those_who_wait(app: celery.Celery) -> None:
    errors: list[Any] = []

    @app.task(shared=False, name="note")
    def note(task_id: str) -> None:
        errors.append(task_id)

    add, fail = app.tasks["add"], app.tasks["fail"]
    with served(app) as engine:
        broken = (add.s(1, 2) | fail.s() | add.s(3)).apply_async()
        with pytest.raises(ValueError):
            outcome(engine, broken)
        assert (broken.state, broken.parent.state, broken.parent.parent.state) == ("PENDING", "FAILURE", "SUCCESS")
        failed = fail.apply_async(link_error=note.s())
        with pytest.raises(ValueError):
            outcome(engine, failed)
        engine.run_until_idle()
        assert errors == [failed.id]


def test_tasks_send_tasks(app: celery.Celery) -> None:
    @app.task(shared=False, name="outer", bind=True)
    def outer(self: Any) -> str:
        return str(app.tasks["inner"].apply_async().id)

    @app.task(shared=False, name="inner", bind=True)
    def inner(self: Any) -> list[str]:
        return [self.request.root_id, self.request.parent_id]

    with served(app) as engine:
        result = outer.delay()
        inner_id = outcome(engine, result)
        assert outcome(engine, app.AsyncResult(inner_id)) == [result.id, result.id]


def test_tasks_replace_themselves(app: celery.Celery) -> None:
    @app.task(shared=False, name="replaced", bind=True)
    def replaced(self: Any, does_raise: bool) -> Any:
        if does_raise:
            raise self.replace(app.tasks["add"].s(1, 2))
        return self.replace(app.tasks["add"].s(1, 2))

    with served(app) as engine:
        assert [outcome(engine, replaced.delay(does_raise)) for does_raise in (False, True)] == [3, 3]
        assert len(engine.runs()) == 2


def test_tasks_that_send_themselves_endlessly_are_stopped() -> None:
    app, client = make_app(), durably.Client(app_id="shop")

    @app.task(shared=False, name="endless")
    def endless() -> None:
        endless.delay()

    with TestEngine(client, functions(app, client), max_depth=2).sync() as engine:
        endless.delay()
        engine.run_until_idle()
        assert 20 <= len(engine.runs()) <= 22


def test_shared_and_eager_tasks() -> None:
    app = make_app(task_always_eager=True)
    shared = celery.shared_task(five, name="test_celery.five")
    with served(app) as engine:
        task = app.tasks[shared.name]
        assert task.delay().get() == 5
        assert engine.runs() == []
        app.conf.task_always_eager = False
        assert outcome(engine, task.delay()) == 5
        assert len(engine.runs()) == 1


def test_beat_entries_are_cron_triggers(app: celery.Celery) -> None:
    app.conf.timezone = "Europe/Paris"
    app.conf.beat_schedule = {
        "hourly": {"task": "add", "schedule": 3600, "args": (1, 2)},
        "nightly": {"task": "total", "schedule": crontab(hour=3, minute=30), "args": ([1],), "options": {"expires": 9}},
        "weekdays": {"task": "add", "schedule": crontab(minute="*/20", day_of_week="mon-fri"), "args": (5, 5)},
        "minutely": {"task": "add", "schedule": dt.timedelta(minutes=1), "kwargs": {"x": 1, "y": 1}},
    }
    app.add_periodic_task(crontab(minute=5), app.tasks["total"].s([1]), name="added")
    client = durably.Client(app_id="shop")
    made = functions(app, client)
    crons = {each.local_id: each.opts.triggers[0].cron for each in made if each.opts.triggers}
    assert crons == {
        "beat.hourly": "0 * * * *",
        "beat.nightly": "TZ=Europe/Paris 30 3 * * *",
        "beat.weekdays": "TZ=Europe/Paris 0,20,40 * * * 1,2,3,4,5",
        "beat.minutely": "*/1 * * * *",
        "beat.added": "TZ=Europe/Paris 5 * * * *",
    }
    with TestEngine(client, made).sync() as engine:
        engine.advance(minutes=3)
        outputs = [run.output for run in engine.runs() if run.function_id == "shop-add"]
        assert outputs.count(2) == 3


REFUSED: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("time limit", {"time_limit": 5}, {}, 'task "t": time_limit=5.*ignore=."time_limit"'),
    ("time limit of all", {}, {"task_soft_time_limit": 5}, "setting task_soft_time_limit"),
    ("priority", {"priority": 5}, {}, 'task "t": priority=5'),
    ("pickle", {"serializer": "pickle"}, {}, "task \"t\": serializer='pickle'"),
    ("own schedule", {}, {"beat_schedule": {"b": {"task": "t", "schedule": OwnSchedule(60)}}}, 'beat entry "b"'),
    ("strategy", {"Strategy": "shop:Strategy"}, {}, 'task "t": its own Strategy'),
    ("interval", {}, {"beat_schedule": {"b": {"task": "t", "schedule": 30.0}}}, 'beat entry "b".*crontab'),
    (
        "days",
        {},
        {"beat_schedule": {"b": {"task": "t", "schedule": crontab(day_of_week=1, day_of_month=1)}}},
        'beat entry "b".*day_of_month',
    ),
]


@pytest.mark.parametrize(("name", "task", "settings", "message"), REFUSED, ids=[each[0] for each in REFUSED])
def test_options_without_equivalent_are_refused(
    name: str, task: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    app = make_app(**settings)
    app.task(nothing, shared=False, name="t", **task)
    with pytest.raises(FunctionConfigInvalidError, match=message):
        functions(app, durably.Client(app_id="shop"))
    if settings.keys() - {"task_soft_time_limit"}:
        assert functions(app, durably.Client(app_id="shop"), exclude=["t"])


def test_options_of_calls_are_refused_unless_ignored(app: celery.Celery) -> None:
    with served(app), pytest.raises(FunctionConfigInvalidError, match='call of the task "add": priority=3'):
        app.tasks["add"].apply_async((1, 2), priority=3)
    app = make_app()
    app.task(nothing, shared=False, name="t", time_limit=5)
    app.conf.task_soft_time_limit = 5
    with served(app, ignore=["time_limit", "task_soft_time_limit", "priority"]) as engine:
        routing = {"queue": "fast", "routing_key": "a", "exchange": "b", "compression": "zlib", "retry": False}
        assert outcome(engine, app.tasks["t"].apply_async(priority=3, retry_policy={}, **routing)) is None


def test_excluded_tasks_go_to_the_broker(app: celery.Celery) -> None:
    app.conf.update(broker_url="memory://", result_backend="cache+memory://")
    with served(app, exclude=["add"]) as engine:
        result = app.tasks["add"].delay(1, 2)
        engine.run_until_idle()
        assert engine.runs() == []
        with app.connection() as connection:
            message = connection.SimpleQueue("celery").get(timeout=WAIT)
            assert message.headers["id"] == result.id
        assert app.AsyncResult(result.id).state == "PENDING"
        revoked: list[Any] = []
        app.control.broadcast = lambda *args, arguments, **_: revoked.append((*args, arguments["task_id"]))
        result.revoke()
        assert revoked == [("revoke", result.id)]
        with pytest.raises(FunctionConfigInvalidError, match='"add" is on Celery'):
            chord([app.tasks["add"].s(1, 2)], app.tasks["total"].s()).apply_async()


def test_a_task_that_is_registered_later_is_refused(app: celery.Celery) -> None:
    with served(app):
        app.task(nothing, shared=False, name="late")
        with pytest.raises(FunctionConfigInvalidError, match=f'"late" was registered after.*import {__name__}'):
            app.tasks["late"].delay()


def test_a_rate_limit_is_a_throttle() -> None:
    app = make_app()
    app.task(nothing, shared=False, name="limited", rate_limit="2/m")
    with served(app) as engine:
        begin = engine.now
        for _ in range(6):
            app.tasks["limited"].delay()
        engine.run_until_idle()
        assert len(engine.runs()) == 6
        assert engine.now - begin >= dt.timedelta(minutes=1)


@pytest.mark.parametrize("command", variants(SERVERS.values(), [SERVERS["gunicorn"]]))
def test_celerys_own_layout_of_a_django_project_runs(tmp_path: Path, command: str) -> None:
    client = code_of("run-django-tasks.md", "Its client is in the `durable.py`")
    tasks = code_of("migrate-from-celery.md", "## Run the tasks that you have").replace("shop.", "myproject.")
    durable = client + tasks[: tasks.index("client =")] + tasks[tasks.index("tasks =") :]
    make_project("Django", tmp_path, is_installed_app=True, durable=durable)
    for name, code in PROJECT.items():
        (tmp_path / name).write_text(code)
    with (tmp_path / "myproject" / "settings.py").open("a") as settings:
        settings.write(SETTINGS)

    def run(*arguments: str) -> str:
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=tmp_path, check=True, timeout=120, stdout=subprocess.PIPE, text=True).stdout

    run("manage.py", "check")
    run("manage.py", "migrate")
    with server_running(command, tmp_path, DURABLY_DEV="1") as server:

        def get(path: str) -> Any:
            answer = urllib3.request("GET", f"{server.origin}{path}", timeout=60)
            assert answer.status == 200, server.log()
            return answer.json()

        eventually(lambda: server.get("/names") == 200, "the server answers")
        add, retry = "greetings.tasks.add", "greetings.tasks.retry"
        assert {add, retry, "beat.yearly"} < set(get("/names")["names"])
        ids = get("/start")["ids"]
        expected = [{"state": "SUCCESS", "result": 7}, {"state": "SUCCESS", "result": 2}]
        eventually(lambda: [get(f"/result/{each}") for each in ids], "tasks end", is_right=lambda it: it == expected)
        started = server.query("SELECT function_id FROM runs")
        assert sorted(started) == [f"shop-{add}", f"shop-{add}", f"shop-{retry}"]
    worker = "from myproject import app; app.loader.init_worker(); from greetings.durable import tasks; print(tasks)"
    assert run("-c", worker).strip() == "[]"
