"""The backend of Django's tasks, in a stock project with the code of the docs, on real servers."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import django
import pytest
import urllib3

from ..docs.pages import ROOT, blocks
from ..embedded.stock import Server, make_project, running
from ..variants import variants
from ..waiting import eventually

SERVERS = {
    "runserver": "python manage.py runserver {port} --noreload",
    "gunicorn": "gunicorn myproject.wsgi -b 127.0.0.1:{port} -w 2",
    "uvicorn": "uvicorn myproject.asgi:application --port {port}",
}
SETTINGS = """
INSTALLED_APPS += ["greetings", "durably.django", "django_tasks"]
BACKEND = "durably.django.TaskBackend"
TASKS = {"default": {"BACKEND": BACKEND}, "retried": {"BACKEND": BACKEND, "OPTIONS": {"retries": 2}}}
DATABASES["default"]["OPTIONS"] = {"timeout": 30}
DATABASES["default"]["ATOMIC_REQUESTS"] = False
"""
TASKS = """
import os
import signal

@task
def fail() -> None:
    raise ValueError("the task failed")


@task
def leave() -> None:
    raise SystemExit("bye")


@task
def return_a_function() -> object:
    return lambda: 1


@task(takes_context=True, backend="retried")
def die_twice(context) -> int:
    if context.attempt < 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return context.attempt


@task
def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@task(takes_context=True, backend="retried")
def succeed_at_last(context) -> int:
    if context.attempt < 3:
        raise KeyError(context.attempt)
    return context.attempt
"""
URLS = """
import datetime
import json

import durably
from asgiref.sync import async_to_sync
from django.db import transaction
from django.http import JsonResponse
from django.urls import path
from django.utils import timezone
from django_tasks.exceptions import TaskResultDoesNotExist, TaskResultMismatch
from durably.django.models import OutboxEvent
from greetings import tasks
from greetings.durable import client


def start(request, name):
    task, args = getattr(tasks, name), json.loads(request.GET.get("args", "[]"))
    if "seconds" in request.GET:
        task = task.using(run_after=timezone.now() + datetime.timedelta(seconds=float(request.GET["seconds"])))
    if "rolled_back" in request.GET:
        with transaction.atomic():
            result = task.enqueue(*args)
            assert task.get_result(result.id).status == "READY"
            transaction.set_rollback(True)
    else:
        result = async_to_sync(task.aenqueue)(*args) if "async" in request.GET else task.enqueue(*args)
    return JsonResponse({"id": result.id, "status": result.status})


def show(request, name, id):
    try:
        result = getattr(tasks, name).get_result(id)
    except (TaskResultDoesNotExist, TaskResultMismatch) as error:
        return JsonResponse({"error": type(error).__name__})
    if not result.is_finished:
        result.refresh()
    order = [t for t in (result.enqueued_at, result.started_at, result.last_attempted_at, result.finished_at) if t]
    return JsonResponse({
        "status": result.status,
        "value": result._return_value,
        "attempts": result.attempts,
        "errors": [error.exception_class.__name__ for error in result.errors],
        "traceback": "".join(error.traceback for error in result.errors),
        "times": len(order),
        "is_ordered": order == sorted(order),
        "args": result.args,
    })


def forge(request, how):
    with transaction.atomic():  # This event is not sent.
        task_id = tasks.add.enqueue(1, b=2.0).id
        fields = json.loads(OutboxEvent.objects.get(event__contains=task_id).event)
        transaction.set_rollback(True)
    event = durably.Event(name=fields["name"], id=fields["id"], data=fields["data"])
    if how == "id":
        event.id += "2"
    elif how == "backend":
        event.name = "django/tasks.retried"
    elif how == "unsigned":
        del event.data["signature"]
    elif how == "empty":
        event.data = {}
    elif how != "genuine":
        event.data[how] = json.loads(request.GET["value"])
    client.send_sync(event)
    return JsonResponse({"id": event.id})


urlpatterns = [path("start/<name>", start), path("result/<name>/<id>", show), path("forge/<how>", forge)]
"""


def adapted(code: str) -> str:
    """Code for the installed Django: since version 6 it has the tasks itself."""
    if django.VERSION < (6,):
        return code
    return code.replace(', "django_tasks"', "").replace("django_tasks", "django.tasks")


WITHOUT_TIME_ZONES = """
import django
from myproject import settings

settings.USE_TZ = False
settings.TASKS["elsewhere"] = {"BACKEND": settings.BACKEND, "OPTIONS": {"using": "elsewhere"}}
django.setup()

from django.core.checks import run_checks
from django.utils import timezone
from greetings import tasks

assert [error.id for error in run_checks()] == ["durably.E001"]
result = tasks.add.enqueue(1)
again = tasks.add.get_result(result.id)
assert again.enqueued_at == result.enqueued_at
while not again.is_finished:
    again.refresh()
assert again.enqueued_at <= again.started_at <= again.finished_at <= timezone.now()
"""

NOT_INSTALLED = """
import django
from myproject import settings

settings.INSTALLED_APPS.remove("durably.django")
django.setup()

from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

try:
    import_string(settings.TASKS["default"]["BACKEND"])
except ImproperlyConfigured as error:
    assert 'INSTALLED_APPS += ["durably.django"]' in str(error)
else:
    raise AssertionError
"""


class Site:
    def __init__(self, server: Server, directory: Path, command: str) -> None:
        self.server, self.directory, self.command = server, directory, command

    def get(self, path: str) -> Any:
        answer = urllib3.request("GET", f"{self.server.origin}{path}", timeout=60)
        assert answer.status == 200, self.server.log()
        return answer.json()

    def start(self, name: str, query: str = "") -> str:
        started = self.get(f"/start/{name}{query}")
        assert started["status"] == "READY"
        return str(started["id"])

    def result(self, name: str, result_id: str) -> Any:
        return self.get(f"/result/{name}/{result_id}")

    def finished(self, name: str, result_id: str) -> Any:
        return eventually(
            lambda: self.result(name, result_id),
            f"{name} ends",
            is_right=lambda result: result["status"] in ("SUCCESSFUL", "FAILED"),
        )


@pytest.fixture(scope="module", params=variants(SERVERS, ["runserver", "gunicorn"]))
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("tasks")
    code = {block.text.split("\n")[0]: block.text for block in blocks(ROOT / "docs/how-to/run-django-tasks.md")}
    make_project("Django", directory, is_installed_app=True, durable=code["# shop/durable.py"])
    (directory / "greetings" / "tasks.py").write_text(adapted(code["# shop/tasks.py"] + TASKS))
    (directory / "myproject" / "urls.py").write_text(adapted(URLS))
    settings = directory / "myproject" / "settings.py"
    stock = 'INSTALLED_APPS += ["greetings", "durably.django"]'
    settings.write_text(settings.read_text().replace(stock, adapted(SETTINGS)))
    for command in ("migrate", "check"):
        subprocess.run([sys.executable, "manage.py", command, "-v0"], cwd=directory, check=True, timeout=120)
    with running(SERVERS[request.param], directory, DURABLY_DEV="1") as server:
        eventually(lambda: server.get("/") == 404, server.log)
        yield Site(server, directory, SERVERS[request.param])


@pytest.mark.parametrize("query", ["?args=[1,2]", "?args=[1,2]&async"])
def test_a_task_returns_its_value(site: Site, query: str) -> None:
    result = site.finished("add", site.start("add", query))
    assert (result["status"], result["value"], result["attempts"], result["args"]) == ("SUCCESSFUL", 3, 1, [1, 2])
    assert (result["errors"], result["times"], result["is_ordered"]) == ([], 4, True)


def test_an_async_task_has_its_context(site: Site) -> None:
    result_id = site.start("attempt_of", '?args=["é"]')
    assert site.finished("attempt_of", result_id)["value"] == [result_id, 1, "é"]


@pytest.mark.parametrize(
    ("name", "error"), [("fail", "ValueError"), ("leave", "SystemExit"), ("return_a_function", "TypeError")]
)
def test_a_task_fails_with_its_error_and_traceback(site: Site, name: str, error: str) -> None:
    result = site.finished(name, site.start(name))
    assert (result["status"], result["errors"], result["attempts"]) == ("FAILED", [error], 1)
    assert f"\n{error}: " in result["traceback"]
    assert result["is_ordered"]


def test_a_task_is_attempted_again(site: Site) -> None:
    result = site.finished("succeed_at_last", site.start("succeed_at_last"))
    assert (result["status"], result["value"], result["attempts"]) == ("SUCCESSFUL", 3, 3)
    assert result["errors"] == ["KeyError", "KeyError"]


def test_attempts_that_died_with_their_process_are_counted(site: Site) -> None:
    if "gunicorn" not in site.command:
        pytest.skip("only gunicorn replaces a process that has died")
    result = site.finished("die_twice", site.start("die_twice"))
    assert (result["status"], result["value"], result["attempts"]) == ("SUCCESSFUL", 3, 3)
    assert (result["errors"], result["is_ordered"]) == (["WorkerLostError"] * 2, True)
    result = site.finished("die", site.start("die"))
    assert (result["status"], result["attempts"], result["errors"]) == ("FAILED", 1, ["WorkerLostError"])


def test_a_task_waits_until_run_after(site: Site) -> None:
    assert site.finished("add", site.start("add", "?args=[1]&seconds=2"))["value"] == 2
    later = site.start("add", "?args=[1]&seconds=3600")
    assert (site.result("add", later)["status"], site.result("add", later)["attempts"]) == ("READY", 0)


def test_a_task_of_a_transaction_that_is_rolled_back_does_not_exist(site: Site) -> None:
    result_id = site.start("add", "?args=[1]&rolled_back")
    assert site.result("add", result_id) == {"error": "TaskResultDoesNotExist"}
    assert site.result("add", "unknown") == {"error": "TaskResultDoesNotExist"}
    assert site.result("fail", site.start("add", "?args=[1]")) == {"error": "TaskResultMismatch"}


@pytest.mark.parametrize("code", [WITHOUT_TIME_ZONES, NOT_INSTALLED], ids=["without time zones", "not installed"])
def test_times_are_as_the_projects_and_unusable_settings_are_reported(site: Site, code: str) -> None:
    environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "myproject.settings", "DURABLY_DEV": "1"}
    command = [sys.executable, "-c", adapted(code)]
    subprocess.run(command, cwd=site.directory, check=True, timeout=60, env=environment)


FORGED = ["unsigned", "empty", "id", "backend", 'task?value="greetings.views"', "args?value=[3]", "kwargs?value={}"]
FORGED += ["priority?value=9", 'queue?value="mail"', 'run_after?value="never"', 'signature?value="a"']


@pytest.mark.parametrize("how", FORGED)
def test_an_event_that_the_project_has_not_signed_runs_no_task(site: Site, how: str) -> None:
    event_id = site.get(f"/forge/{how}")["id"]
    ended = f"SELECT status || output FROM runs JOIN events ON event_key = events.key WHERE sender_id = '{event_id}'"
    [outcome] = eventually(lambda: site.server.query(f"{ended} AND runs.ended_at IS NOT NULL"), "the run ends")
    assert outcome.startswith("Failed")
    assert "no valid signature" in outcome
    assert site.result("add", event_id) == {"error": "TaskResultDoesNotExist"}


def test_a_signed_event_runs_its_task(site: Site) -> None:
    assert site.finished("add", site.get("/forge/genuine")["id"])["value"] == 3
