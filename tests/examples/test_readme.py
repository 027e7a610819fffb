"""The README's first function works in each framework, word for word."""

import asyncio
import re
from pathlib import Path

import pytest

from durably import Event
from durably.cli.dev_server import DevOptions, DevServer
from durably.engine.views import UpdateKind

README = (Path(__file__).parents[2] / "README.md").read_text()
FUNCTION = re.search(r"```python\n(import datetime\n.*?)```", README, re.DOTALL)
APPS = {
    re.split(r"<br>|\s", name)[0].lower(): code
    for name, code in re.findall(r"<td>([A-Z][^\n]*?)</td><td>\s*```python\n(.*?)```", README, re.DOTALL)
}
DJANGO = """
import django.conf, django.core.wsgi
django.conf.settings.configure(ALLOWED_HOSTS=["*"], ROOT_URLCONF="main", SECRET_KEY="x")
app = django.core.wsgi.get_wsgi_application()
"""


def test_the_readme_shows_all_five() -> None:
    assert FUNCTION is not None
    assert set(APPS) == {"fastapi", "flask", "django", "tornado", "digitalocean"}


@pytest.mark.parametrize("framework", sorted(APPS))
async def test_first_function(framework: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert FUNCTION is not None
    (tmp_path / "durable.py").write_text(FUNCTION[1].replace("seconds=3", "milliseconds=10"))
    (tmp_path / "main.py").write_text(APPS[framework])
    target = "main:main" if framework == "digitalocean" else "main:app"
    if framework == "django":
        (tmp_path / "project.py").write_text(DJANGO)
        target = "project:app"
    monkeypatch.chdir(tmp_path)
    options = DevOptions(target=target, port=0, app_port=0, database=tmp_path / "engine.db")
    async with DevServer(options) as dev, asyncio.timeout(30):
        with dev.engine.watch() as updates:
            await dev.engine.send_events([Event(name="shop/visitor.came", data={"name": "Ada"})])
            async for update in updates:
                if update.kind in (UpdateKind.RUN_COMPLETED, UpdateKind.RUN_FAILED):
                    assert update.kind is UpdateKind.RUN_COMPLETED, update.error
                    assert update.output is not None
                    assert bytes(update.output) == b'"Hello, Ada!"'
                    return
    raise AssertionError("the engine stopped")
