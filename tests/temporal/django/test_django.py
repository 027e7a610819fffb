"""Django's settings, transactions, permissions and async views, each in a process, because settings are global."""

import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ..dev_server import DevServer

pytestmark = pytest.mark.usefixtures("worker")

SETUP = """
import os, sys, uuid
from types import ModuleType
import django
from django.conf import settings

urls = ModuleType("urls")
urls.urlpatterns = []
options = dict(
    ALLOWED_HOSTS=["*"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": sys.argv[2]}},
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes"],
    MIDDLEWARE=["durably.temporal.django.TemporalErrorMiddleware"],
    PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],
    ROOT_URLCONF=urls,
    SECRET_KEY="for tests only",
    TEMPORAL_SERVER=sys.argv[1],
    TEMPORAL_TASK_QUEUE="orders",
)
"""
READY = """
settings.configure(**options)
django.setup()
from django.core.management import call_command
from durably.temporal.django import *
call_command("migrate", verbosity=0)
"""


@pytest.fixture(autouse=True)
def database(tmp_path: Path) -> Path:
    return tmp_path / "db.sqlite3"


def run(server: DevServer, database: Path, code: str, before: str = "", tools: str = "") -> None:
    whole = SETUP + textwrap.dedent(before) + READY + tools + textwrap.dedent(code)
    done = subprocess.run(
        [sys.executable, "-c", whole, server.address, str(database)],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def authenticate_with_token(get_response: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A project's middleware that lets the view decide whether a user is needed."""
    from django.contrib.auth.models import AnonymousUser, User
    from django.utils.functional import SimpleLazyObject

    def authenticate(request: Any) -> Any:
        if name := request.headers.get("Token"):
            request.user = SimpleLazyObject(lambda: User.objects.filter(username=name).first() or AnonymousUser())
        return get_response(request)

    return authenticate


def test_the_connection_is_that_of_the_settings(server: DevServer, database: Path) -> None:
    code = """
        from durably.temporal.encryption import EncryptionCodec
        assert temporal.settings.address == sys.argv[1]
        assert temporal.settings.task_queue == "orders"
        assert temporal.settings.namespace == "default"
        assert temporal.sync.client.identity == "django"
        assert isinstance(temporal.data_converter.payload_codec, EncryptionCodec)
    """
    before = """
        from durably.temporal.encryption import EncryptionKey
        key = EncryptionKey.generate("2026").export()
        options["TEMPORAL"] = {"NAMESPACE": "default", "ENCRYPTION_KEYS": [key], "OPTIONS": {"identity": "django"}}
    """
    run(server, database, code, before)


@pytest.mark.slow
def test_a_wrong_key_of_the_settings_is_named(server: DevServer, database: Path) -> None:
    code = """
        from durably.temporal import TemporalSettingsError
        try:
            connections["default"]
        except TemporalSettingsError as error:
            assert "unknown key 'ADRESS'" in str(error), error
        else:
            raise AssertionError
    """
    run(server, database, code, 'options["TEMPORAL"] = {"ADRESS": "x:1"}')


def test_a_workflow_starts_with_the_commit_and_not_after_a_rollback(server: DevServer, database: Path) -> None:
    code = """
        from django.db import transaction
        from temporalio.service import RPCError
        from tests.temporal.workflows import SleepingWorkflow

        kept, dropped = uuid.uuid4().hex, uuid.uuid4().hex

        def exists(id):
            try:
                return temporal.sync.get_workflow_handle(id).describe().id == id
            except RPCError:
                return False

        with transaction.atomic():
            start_on_commit(SleepingWorkflow.run, id=kept, task_queue=temporal.task_queue)
            assert not exists(kept)
        assert exists(kept)
        try:
            with transaction.atomic():
                start_on_commit(SleepingWorkflow.run, id=dropped, task_queue=temporal.task_queue)
                raise ZeroDivisionError
        except ZeroDivisionError:
            pass
        assert not exists(dropped)
    """
    run(server, database, code)


@pytest.mark.slow
def test_permissions_decide_and_errors_are_problems(server: DevServer, database: Path) -> None:
    code = """
        import asyncio
        from asgiref.sync import sync_to_async
        from django.contrib.auth.models import Permission, User
        from django.http import HttpResponse
        from django.test import AsyncClient, Client
        from django.urls import path, reverse
        from durably.temporal.gateway import Gateway, Operation, expose
        from tests.temporal.workflows import SleepingWorkflow

        authorize = require_permissions({Operation.START: "auth.add_user"}, otherwise="auth.view_user")
        gateway = Gateway(temporal, [expose(SleepingWorkflow)], authorize=authorize)

        async def direct(request):
            client = await temporal.client()
            await client.get_workflow_handle("none").describe()

        urls.urlpatterns += [path("api/", globals()["urls_of"](gateway)), path("direct", direct)]
        user = User.objects.create_user("ann")

        def start(client, **headers):
            return client.post("/api/sleeping", content_type="application/json", headers=headers)

        client = Client()
        anonymous = start(client)
        assert (anonymous.status_code, anonymous["WWW-Authenticate"]) == (401, "Session")
        client.force_login(user)
        assert start(client).status_code == 403
        user.user_permissions.add(Permission.objects.get(codename="add_user"))
        started = start(client)
        assert started.status_code == 202, started.content
        assert client.get(started["Location"]).status_code == 403
        assert client.get("/api/openapi.json").json()["openapi"] == "3.1.0"
        assert client.get("/direct").status_code == 404
        assert client.get("/direct")["Content-Type"] == "application/problem+json"

        async def over_asgi():
            client = AsyncClient()
            assert (await start(client)).status_code == 401
            await sync_to_async(client.force_login)(user)  # aforce_login is of Django 5
            assert (await start(client)).status_code == 202
            assert (await client.get("/direct")).status_code == 404
            # Whom a middleware finds counts, and not who the session says it is.
            assert (await start(client, token="ann")).status_code == 202
            assert (await start(client, token="none")).status_code == 401

        asyncio.run(over_asgi())
    """
    before = """
        options["INSTALLED_APPS"] += ["django.contrib.sessions"]
        options["MIDDLEWARE"] += [
            "django.contrib.sessions.middleware.SessionMiddleware",
            "django.contrib.auth.middleware.AuthenticationMiddleware",
            "tests.temporal.django.test_django.authenticate_with_token",
        ]
    """
    run(
        server,
        database,
        "import durably.temporal.django\nurls = settings.ROOT_URLCONF\nurls_of = durably.temporal.django.urls\n"
        + textwrap.dedent(code),
        before,
    )


@pytest.mark.slow
def test_anonymous_gateway_does_not_load_the_user(server: DevServer, database: Path) -> None:
    """A session and its user would cost each request a thread and a query."""
    code = """
        import asyncio
        from django.test import AsyncClient, Client
        from django.urls import path
        from durably.temporal.gateway import Gateway, expose
        from tests.temporal.workflows import SleepingWorkflow

        def principal(request):
            raise AssertionError("not to be shown")

        gateway = Gateway(temporal, [expose(SleepingWorkflow)], allow_anonymous=True)
        urls.urlpatterns += [path("api/", globals()["urls_of"](gateway, principal=principal))]
        arguments = {"path": "/api/sleeping", "content_type": "application/json"}
        assert Client().post(**arguments).status_code == 202
        assert asyncio.run(AsyncClient().post(**arguments)).status_code == 202
    """
    run(
        server,
        database,
        "import durably.temporal.django\nurls = settings.ROOT_URLCONF\nurls_of = durably.temporal.django.urls\n"
        + textwrap.dedent(code),
    )
