"""``start_on_commit``: when workflows start, and when they do not."""

from pathlib import Path

import pytest

from ..dev_server import DevServer
from .test_django import run

pytestmark = pytest.mark.usefixtures("worker")

TOOLS = """
import durably.temporal.django
urls = settings.ROOT_URLCONF
import asyncio
import os
from asgiref.sync import async_to_sync, sync_to_async
from django.core.exceptions import SynchronousOnlyOperation
from django.db import transaction
from django.http import HttpResponse
from django.test import AsyncClient, Client, TestCase
from django.urls import path
from temporalio.service import RPCError
from tests.temporal.workflows import SleepingWorkflow

ids = iter(uuid.uuid4().hex for _ in range(100))

def exists(id):
    try:
        return temporal.sync.get_workflow_handle(id).describe().id == id
    except RPCError:
        return False

def start(id):
    start_on_commit(SleepingWorkflow.run, id=id, task_queue=temporal.task_queue)

async def astart(id):
    await sync_to_async(start_on_commit)(SleepingWorkflow.run, id=id, task_queue=temporal.task_queue)
"""


def check(server: DevServer, tmp_path: Path, code: str) -> None:
    run(server, tmp_path / "db.sqlite3", code, "", TOOLS)


@pytest.mark.slow
def test_async_views_start_workflows_at_the_commit(server: DevServer, tmp_path: Path) -> None:
    """Under an ASGI server and under WSGI, where Django runs the view on its own loop."""
    code = """
        def store(id, failing=False):
            with transaction.atomic():
                start(id)
                assert not exists(id)
                if failing:
                    raise ZeroDivisionError

        def enter_and_leave(id):
            with transaction.atomic():
                async_to_sync(astart)(id)
                assert not exists(id)

        async def plain(request, id):
            await astart(id)
            return HttpResponse("started")

        async def stored(request, id):
            await sync_to_async(store)(id)
            return HttpResponse("started")

        async def rolled_back(request, id):
            try:
                await sync_to_async(store)(id, failing=True)
            except ZeroDivisionError:
                return HttpResponse("nothing")

        async def nested(request, id):
            await sync_to_async(enter_and_leave)(id)
            return HttpResponse("started")

        async def wrong(request, id):
            try:
                start(id)
            except SynchronousOnlyOperation as error:
                return HttpResponse(str(error))

        views = [plain, stored, rolled_back, nested, wrong]
        urls.urlpatterns += [path(f"{view.__name__}/<id>", view) for view in views]
        urls.urlpatterns += [path("sync/<id>", lambda request, id: HttpResponse(str(store(id))))]

        def check(get):
            def asked(view):
                id = next(ids)
                response = get(f"/{view}/{id}")
                assert response.status_code == 200, response.content
                return exists(id), response.content.decode()

            assert asked("sync") == (True, "None")
            assert asked("plain") == (True, "started")
            assert asked("stored") == (True, "started")
            assert asked("rolled_back") == (False, "nothing")
            assert asked("nested") == (True, "started")
            for unsafe in ("", "true"):
                os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = unsafe
                assert "await sync_to_async(start_on_commit)" in asked("wrong")[1]
            os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = ""

        check(Client().get)
        check(lambda url: asyncio.run(AsyncClient().get(url)))
    """
    check(server, tmp_path, code)


@pytest.mark.slow
def test_rollbacks_and_savepoints(server: DevServer, tmp_path: Path) -> None:
    code = """
        inner, outer, alone = (next(ids) for _ in range(3))
        with transaction.atomic():
            start(outer)
            try:
                with transaction.atomic():
                    start(inner)
                    raise ZeroDivisionError
            except ZeroDivisionError:
                pass
            assert not exists(outer)
        assert [exists(id) for id in (inner, outer)] == [False, True]
        start(alone)
        assert exists(alone)
    """
    check(server, tmp_path, code)


@pytest.mark.slow
def test_test_case_sees_workflows_that_would_start(server: DevServer, tmp_path: Path) -> None:
    code = """
        import unittest

        class Tests(TestCase):
            databases = {"default"}

            def test_sync(self):
                id, dropped = next(ids), next(ids)
                with self.captureOnCommitCallbacks(execute=True) as callbacks:
                    start(id)
                    assert not exists(id)
                assert len(callbacks) == 1
                assert exists(id)
                start(dropped)
                assert not exists(dropped)

        result = unittest.TextTestRunner().run(unittest.defaultTestLoader.loadTestsFromTestCase(Tests))
        assert (result.wasSuccessful(), result.testsRun) == (True, 1)
    """
    check(server, tmp_path, code)
