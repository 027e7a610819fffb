"""The dashboard in a Django project without users: a policy of the project's own, errors, prefixes."""

import subprocess
import sys
from pathlib import Path

PROJECT = """
import asyncio, sys
import django, durably, durably.django
from django.conf import settings
from django.core.exceptions import PermissionDenied
from django.http import Http404
from django.test import AsyncClient, Client
from django.urls import path
from durably.dashboard import Action
from durably.errors import FunctionConfigInvalidError

settings.configure(ALLOWED_HOSTS=["*"], ROOT_URLCONF="__main__", SECRET_KEY="x", FORCE_SCRIPT_NAME="/shop",
                   MIDDLEWARE=["django.middleware.csrf.CsrfViewMiddleware"])
django.setup()
client = durably.Client(app_id="shop", is_production=False, engine=durably.Embedded("durably.db"))

try:
    durably.django.dashboard(client)
except FunctionConfigInvalidError as error:
    assert "allow_anonymous=True" in str(error) and "django.contrib.auth" in str(error), error
else:
    raise AssertionError("a project without users needs a policy")


def by_header(action):
    match action.request.headers.get("x-user"):
        case "eve":
            raise PermissionDenied
        case "mallory":
            raise Http404
        case "broken":
            raise ValueError("the password is hunter2")
        case user:
            return user == "ada"


async def by_header_async(action):
    await asyncio.sleep(0)
    return by_header(action)


def dashboard(authorize, name):
    return path(f"{name}/", durably.django.dashboard(client, authorize=authorize, namespace=name))


urlpatterns = [
    dashboard(by_header, "plain"),
    dashboard(by_header_async, "async"),
    path("<str:tenant>/runs-of/", durably.django.dashboard(client, allow_anonymous=True, namespace="tenant")),
    path("open/", durably.django.dashboard(client, allow_anonymous=True)),
]


async def check_async():
    for user, status in EXPECTED.items():
        for name in ("plain", "async"):
            answer = await AsyncClient(raise_request_exception=False).get(f"/{name}/runs", headers={"x-user": user})
            assert answer.status_code == status, (user, name, answer.status_code, answer.content)


EXPECTED = {"ada": 200, "grace": 403, "eve": 403, "mallory": 404, "broken": 500}
for user, status in EXPECTED.items():
    for name in ("plain", "async"):
        answer = Client(raise_request_exception=False).get(f"/{name}/runs", headers={"x-user": user})
        assert answer.status_code == status, (user, name, answer.status_code, answer.content)
        assert b"hunter2" not in answer.content
        assert (b"It needs the permission view" in answer.content) == (user == "grace")
        if status == 200:
            assert f'href="/shop/{name}/assets/'.encode() in answer.content
asyncio.run(check_async())
browser = Client(enforce_csrf_checks=True)
assert browser.get("/open/events/send").cookies["durably-csrf"]["path"] == "/shop/open"
answer = Client().get("/a;b é/runs-of/events/send")
assert answer.status_code == 200, (answer.status_code, answer.content)
assert answer.cookies["durably-csrf"]["path"] == "/shop/a%3Bb%20%C3%A9/runs-of", answer.cookies
assert b'href="/shop/a%3Bb%20%C3%A9/runs-of/assets/' in answer.content
assert browser.post("/open/runs/x/cancel", "x", content_type="application/x-www-form-urlencoded").status_code == 403
assert Client().post("/open/runs/x/cancel", "x" * 3_000_000, content_type="text/plain").status_code == 413
print("done")
"""


def test_a_project_without_users(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROJECT], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
