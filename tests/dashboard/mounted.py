"""Stock projects with the dashboard of ``docs/how-to/dashboard.md``, word for word, on real servers."""

import functools
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

import urllib3

from ..embedded.stock import SENDING, WSGI, Server, code_of, make_project, running
from ..waiting import eventually

COMMANDS = {
    "fastapi": ("FastAPI", "uvicorn main:app --port {port} --workers 2"),
    "flask": ("Flask", "gunicorn main:app -b 127.0.0.1:{port} -w 1"),
    "django-wsgi": ("Django", "gunicorn myproject.wsgi -b 127.0.0.1:{port} -w 1"),
    "django-asgi": ("Django", "uvicorn myproject.asgi:application --port {port}"),
    "tornado": ("Tornado", "python main.py {port}"),
    "litestar": ("Litestar", "uvicorn main:app --port {port} --workers 2"),
    "quart": ("Quart", "hypercorn main:app -b 127.0.0.1:{port}"),
    "aiohttp": ("aiohttp", "python main.py {port}"),
    "sanic": ("Sanic", "sanic main:app --port {port} --workers 2"),
    "wsgi": ("WSGI", "gunicorn main:app -b 127.0.0.1:{port} -w 1"),
}
"""The frameworks, and the commands of their servers. gunicorn has one worker, which does one thing. uvicorn has two:
the leader and a follower."""

_POLICY = """
from durably.dashboard import Action


def authorize(action: Action) -> bool:
    user = action.request.headers.get("x-user")
    return user == "ada" or (user == "grace" and not action.is_change)
"""
_AROUND = """
app = durably.wsgi.dashboard(app, client, authorize=authorize)
"""
_LIKE_FASTAPI = """
durably.{name}.dashboard(app, client, authorize=authorize)
"""

_TORNADO = """
import durably, sys

class Send(tornado.web.RequestHandler):
    async def get(self):
        self.write({"ids": await client.send(durably.Event(name="shop/visitor.came", data={"name": "Ada"}))})

app.add_handlers(r".*", [("/send", Send)])
"""
_SETTINGS = """
INSTALLED_APPS += ["durably.django"]
DATABASES["default"]["OPTIONS"] = {"timeout": 30}
"""
_USERS = """
import django
django.setup()
from django.contrib.auth.models import Permission, User
from django.core.management import call_command
from django.test import Client

call_command("check", fail_level="WARNING", verbosity=0)
call_command("makemigrations", check_changes=True, verbosity=0)
call_command("migrate", verbosity=0)
may = Permission.objects.filter(content_type__app_label="durably")
people = {"viewer": ["view_dashboard"], "operator": ["view_dashboard", "change_dashboard"], "stranger": [], "clerk": []}
for name, permissions in people.items():
    user = User.objects.create_user(name, is_staff=name != "stranger")
    user.user_permissions.set(may.filter(codename__in=permissions))
    client = Client()
    client.force_login(user)
    print("session", name, client.cookies["sessionid"].value)
"""
FORM = "application/x-www-form-urlencoded"


@dataclass
class Answer:
    status: int
    headers: urllib3.HTTPHeaderDict
    text: str


class Mounted:
    """A running app with a dashboard at ``/durably``. ``people`` are the headers by which the app knows them."""

    def __init__(self, name: str, server: Server, people: Mapping[str, Mapping[str, str]]) -> None:
        self.name, self.server, self.people = name, server, people
        self._http = urllib3.PoolManager(retries=False, timeout=60)

    @property
    def is_django(self) -> bool:
        return self.name.startswith("django")

    @property
    def is_sync(self) -> bool:
        return self.name in ("flask", "wsgi", "django-wsgi")

    @contextmanager
    def stream(self, person: str, path: str) -> Iterator[Iterator[str]]:
        """The lines of a streamed answer."""
        headers = dict(self.people[person])
        url = f"{self.server.origin}{path}"
        response = self._http.request("GET", url, headers=headers, preload_content=False)
        try:
            yield _lines(response)
        finally:
            response.close()

    def ask(self, person: str, path: str, method: str = "GET", body: bytes | None = None, **headers: str) -> Answer:
        given = {**self.people[person], **{name.replace("_", "-"): value for name, value in headers.items()}}
        if "cookie" in self.people[person] and "cookie" in headers:
            given["cookie"] = f"{self.people[person]['cookie']}; {headers['cookie']}"
        response = self._http.request(method, f"{self.server.origin}{path}", body=body, headers=given, redirect=False)
        return Answer(response.status, response.headers, response.data.decode())

    def post(
        self, person: str, path: str, cookie: str, headers: Mapping[str, str] | None = None, **form: str
    ) -> Answer:
        sent = {"content-type": FORM, **(headers or {})}
        return self.ask(person, path, "POST", urlencode(form).encode(), cookie=cookie, **sent)

    def new_run(self) -> str:
        """The id of a new run, which sleeps for an hour."""
        before = set(self.server.query("SELECT id FROM runs"))
        self.server.send()
        [run_id] = set(self.server.query("SELECT id FROM runs")) - before
        return run_id

    def form_of(self, person: str, path: str) -> tuple[str, str]:
        """The token of a page's forms, and the cookie that belongs to it."""
        answer = self.ask(person, path)
        tokens = set(re.findall(r'name="csrf" value="([^"]+)"', answer.text))
        assert len(tokens) == 1, answer.text
        [cookie] = [each for each in answer.headers.getlist("set-cookie") if each.startswith("durably-csrf=")]
        return tokens.pop(), cookie.partition(";")[0]


def _lines(response: urllib3.BaseHTTPResponse) -> Iterator[str]:
    rest = b""
    for chunk in response.stream(65_536):
        *lines, rest = (rest + chunk).split(b"\n")
        yield from (line.decode() for line in lines)


@contextmanager
def mounted(name: str, directory: Path) -> Iterator[Mounted]:
    framework, command = COMMANDS[name]
    code = code_of_dashboard(framework)
    people = make_django(directory, code) if framework == "Django" else make_plain(framework, directory, code)
    with running(command, directory) as server:
        eventually(lambda: server.get("/send") == 200, server.log)
        yield Mounted(name, server, people)


def code_of_dashboard(framework: str) -> str:
    """The code of the page. The page names differences only for frameworks that are like FastAPI."""
    if framework in ("FastAPI", "Flask", "Django", "Tornado"):
        return code_of("dashboard.md", f"\n**{framework}**")
    if framework == "WSGI":
        return WSGI + _POLICY.replace('headers.get("x-user")', 'get("HTTP_X_USER")') + _AROUND
    served = code_of("serve.md", f"\n**{framework}**")
    if framework != "Litestar":
        return served + _POLICY + _LIKE_FASTAPI.format(name=framework.lower())
    plugins = "[durably.litestar.serve(client, [greet]), durably.litestar.dashboard(client, authorize=authorize)]"
    assert plugins.partition(",")[0] in served
    imports, _, _ = served.partition("\napp = ")
    return f"{imports}{_POLICY}\napp = Litestar(plugins={plugins})\n"


def make_plain(framework: str, directory: Path, code: str) -> dict[str, dict[str, str]]:
    make_project("FastAPI", directory)  # for its durable.py
    sending = _TORNADO if framework == "Tornado" else SENDING.get(framework, "")
    code = code.replace("8000", "int(sys.argv[1])").replace("\n\nasync def main()", f"\n{sending}\n\nasync def main()")
    (directory / "main.py").write_text(code if framework in ("Tornado", "WSGI") else code + sending)
    make_sleep_long(directory)
    return {
        "operator": {"x-user": "ada"},
        "viewer": {"x-user": "grace"},
        "stranger": {"x-user": "eve"},
        "anonymous": {},
    }


@functools.cache
def make_django(directory: Path, code: str) -> dict[str, dict[str, str]]:
    make_project("Django", directory)
    (directory / "myproject" / "urls.py").write_text(code + SENDING["Django"])
    settings = directory / "myproject" / "settings.py"
    settings.write_text(settings.read_text() + _SETTINGS)
    make_sleep_long(directory)
    command = [
        sys.executable,
        "-c",
        f"import os; os.environ['DJANGO_SETTINGS_MODULE'] = 'myproject.settings'\n{_USERS}",
    ]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    sessions = dict(re.findall(r"^session (\w+) (\w+)$", done.stdout, re.MULTILINE))
    return {"anonymous": {}, **{name: {"cookie": f"sessionid={key}"} for name, key in sessions.items()}}


def make_sleep_long(directory: Path) -> None:
    durable = directory / "durable.py"
    assert "seconds=3" in durable.read_text()
    durable.write_text(durable.read_text().replace("seconds=3", "hours=1"))
