"""The README's app, and the first function of how-to/serve.md in each framework, work word for word."""

import asyncio
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from durably import Event
from durably.cli.dev import DevOptions, DevServer
from durably.dashboard import Action
from durably.engine.model.runs import UpdateKind

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGE = (ROOT / "docs" / "how-to" / "serve.md").read_text()
FUNCTION = re.search(r"```python\n(import datetime\n.*?)```", PAGE, re.DOTALL)
APPS = {
    name.lower(): code
    for name, code in re.findall(r"^\*\*([\w ]+)\*\*[^\n]*\n\n```python\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE)
}
DJANGO = """
import django.conf, django.core.wsgi
django.conf.settings.configure(ALLOWED_HOSTS=["*"], ROOT_URLCONF="main", SECRET_KEY="x")
app = django.core.wsgi.get_wsgi_application()
"""


async def output_of_run(target: str, directory: Path, *events: Event) -> bytes:
    """The output of the run that the first event starts."""
    options = DevOptions(target=target, port=0, app_port=0, database=directory / "engine.db")
    async with DevServer(options) as dev, asyncio.timeout(30):
        with dev.engine.watch() as updates:
            await dev.engine.send_events([events[0]])
            async for update in updates:
                if update.kind is UpdateKind.WAITING:
                    await dev.engine.send_events(list(events[1:]))
                if update.kind in (UpdateKind.RUN_COMPLETED, UpdateKind.RUN_FAILED):
                    assert update.kind is UpdateKind.RUN_COMPLETED, update.error
                    assert update.output is not None
                    return bytes(update.output)
    raise AssertionError("the engine stopped")


def test_the_page_shows_each_framework() -> None:
    assert FUNCTION is not None
    assert set(APPS) == {
        *(
            "fastapi",
            "starlette",
            "litestar",
            "flask",
            "django",
            "quart",
            "aiohttp",
            "sanic",
            "tornado",
            "digitalocean",
            "aws lambda",
            "google cloud",
        ),
    }


@pytest.mark.parametrize("framework", sorted(APPS))
async def test_first_function_runs_in_each_framework(
    framework: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert FUNCTION is not None
    (tmp_path / "durable.py").write_text(FUNCTION[1].replace("seconds=3", "milliseconds=10"))
    (tmp_path / "main.py").write_text(APPS[framework])
    target = "main:" + {"digitalocean": "main", "google cloud": "main", "aws lambda": "handler"}.get(framework, "app")
    if framework == "django":
        (tmp_path / "project.py").write_text(DJANGO)
        target = "project:app"
    monkeypatch.chdir(tmp_path)
    came = Event(name="shop/visitor.came", data={"name": "Ada"})
    assert await output_of_run(target, tmp_path, came) == b'"Hello, Ada!"'


async def test_the_app_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [code] = re.findall(r"```python\n# main\.py\n(.*?)```", README, re.DOTALL)
    (tmp_path / "main.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    data = {"email": "ada@example.com"}
    events = Event(name="user/signed.up", data=data), Event(name="user/logged.in", data=data)
    assert await output_of_run("main:app", tmp_path, *events) == b'"done"'


def test_the_dashboard_of_the_readme_is_that_of_the_tested_project() -> None:
    """``tests/dashboard/test_mounting.py`` runs the blocks of the page in stock projects."""
    page = (ROOT / "docs" / "how-to" / "dashboard.md").read_text()
    [policy, code] = re.findall(
        r"```python\n(from durably.dashboard.*?)\n\n\n(durably\.fast_api\.dashboard.*?)\n```", README, re.DOTALL
    )[0]
    names: dict[str, Any] = {}
    exec(policy, names)
    for user, is_allowed in [("ada", True), ("grace", False)]:
        request = SimpleNamespace(headers={"x-user": user})
        assert names["authorize"](Action(name="view", request=request)) is is_allowed
    lines = [line.partition("#")[0].rstrip() for line in code.splitlines()]
    assert len(lines) == 1
    for line in lines:
        assert f"\n{line}\n" in page


def test_the_file_of_the_dashboards_page_is_that_of_serve_with_the_engine_in_process() -> None:
    assert FUNCTION is not None
    page = (ROOT / "docs" / "how-to" / "dashboard.md").read_text()
    engine = 'app_id="shop", engine=durably.Embedded("durably.db")'
    assert FUNCTION[1].replace('app_id="shop"', engine) in page
