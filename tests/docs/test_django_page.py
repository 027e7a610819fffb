"""The page on Django, word for word: its project, tests and commands, under each server that it names."""

import http.client
import re
import signal
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.cookiejar import CookieJar
from urllib.parse import urlencode

import pytest

from ..cli.conftest import Command
from ..otel.collector import Collector, collecting
from ..waiting import eventually
from .conftest import Folder
from .pages import DOCS, blocks

PAGE = DOCS / "how-to" / "use-django.md"
BLOCKS = list(blocks(PAGE))
ORDER = urlencode({"email": "ada@example.com", "cents": 900}).encode()
PASSWORD = "for tests only"


def commands(containing: str) -> list[str]:
    """The commands of the first block that has this one, without comments."""
    console = next(block.text for block in BLOCKS if block.language == "console" and containing in block.text)
    return re.findall(r"^\$ (.*?)(?: +# .*)?$", console, re.MULTILINE)


def write_project(folder: Folder) -> None:
    _, *make = commands("django-admin")
    folder.run(*make)
    for block in BLOCKS:
        if named := re.match(r"# ([\w/]+\.py)(, the end)?\n", block.text):
            file = folder.path / named[1]
            assert file.parent.is_dir()
            file.write_text((file.read_text() if named[2] else "") + block.text)


class Site:
    """A running server of the project."""

    def __init__(self, folder: Folder, server: Command) -> None:
        self.folder, self.server = folder, server
        self.origin = folder.here("http://127.0.0.1:8000")
        self._cookies = CookieJar()
        self._browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(self._cookies))

    def ask(self, path: str, form: bytes | None = None, **headers: str) -> tuple[int, str]:
        try:
            with self._browser.open(urllib.request.Request(self.origin + path, form, headers), timeout=30) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except (OSError, http.client.HTTPException):
            return 0, self.server.output

    def wait(self, look: Callable[[], object]) -> None:
        try:
            # The database of the engine may not exist yet: orders are placed without it.
            eventually(look, "the server does it", ignore=(sqlite3.OperationalError,))
        except AssertionError:
            raise AssertionError(self.server.output) from None

    def wait_up(self) -> None:
        self.wait(lambda: self.ask("/admin/login/")[0] == 200)

    def log_in(self) -> None:
        _, page = self.ask("/admin/login/?next=/durably/")
        token = re.findall(r'name="csrfmiddlewaretoken" value="(\w+)"', page)[0]
        form = {"username": "ada", "password": PASSWORD, "csrfmiddlewaretoken": token, "next": "/durably/"}
        status, page = self.ask("/admin/login/", urlencode(form).encode())
        assert (status, "· Durably</title>" in page) == (200, True), page

    def place_order(self) -> None:
        """Place an order, and wait until all of its runs have ended."""
        before = len(self.completed())
        assert self.ask("/orders", ORDER)[0] == 201
        self.wait(lambda: len(self.completed()) == before + 2)

    def completed(self) -> list[str]:
        with closing(sqlite3.connect(f"file:{self.folder.path / 'durably.db'}?mode=ro", uri=True)) as connection:
            rows = connection.execute("SELECT function_id FROM runs WHERE status = 'Completed'")
            return [function_id for (function_id,) in rows]


@contextmanager
def serving(folder: Folder, *lines: str) -> Iterator[Site]:
    server = folder.start(*lines)
    site = Site(folder, server)
    site.wait_up()
    yield site
    server.stop(signal.SIGTERM)


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


@pytest.mark.slow
def test_documented_django_project_works_under_each_server(folder: Folder, collector: Collector) -> None:
    write_project(folder)
    *migrate, create_superuser, run_server = commands("runserver")
    folder.run(
        *migrate,
        f"DJANGO_SUPERUSER_PASSWORD='{PASSWORD}' {create_superuser} --noinput --username ada --email ada@example.com",
    )

    # Test it.
    [run_tests] = commands("manage.py test")
    assert "Found 3 test(s)." in folder.run(run_tests)
    assert not (folder.path / "durably.db").exists()

    # Run it.
    assert run_server.startswith("DURABLY_DEV=1 python")
    with serving(folder, "export DURABLY_DEV=1", f"{run_server.partition(' ')[2]} --noreload 8000") as site:
        place_order, list_runs = commands("curl -d")
        assert '{"order": 1}' in folder.run(place_order)
        site.wait(lambda: len(site.completed()) == 2)
        assert re.search(r"INFO durably.*order 1 is shipped", site.server.output)
        assert "is now the leader of the database" in site.server.output
        assert "not run" not in site.server.output
        listed = folder.run(list_runs)
        assert listed.count("Completed") == 2
        assert site.ask("/durably/")[1].count('type="password"') == 1  # the login
        site.log_in()

    # In production, with metrics and traces.
    variables = "export SECRET_KEY=secret METRICS_TOKEN=token OTEL_BSP_SCHEDULE_DELAY=100"
    set_endpoint, _ = commands("OTEL_EXPORTER")
    set_endpoint = set_endpoint.replace("http://127.0.0.1:4318", collector.endpoint)
    _, with_gunicorn, with_uvicorn = commands("uvicorn myproject")
    [scrape] = commands("Authorization: Bearer")
    for server in (with_gunicorn, f"{with_gunicorn} --preload", with_uvicorn):
        collector.spans.clear()
        with serving(folder, variables, set_endpoint, server) as site:
            site.wait(lambda: "is now the leader" in site.server.output)  # without a request
            site.place_order()
            assert "durably_up 1.0" in folder.run("METRICS_TOKEN=token", scrape)
            assert [site.ask("/metrics")[0], site.ask("/metrics", authorization="Bearer ")[0]] == [403, 403]
            path = collector.path_of("step charge")
            assert path[0] == ("shop", "send shop/order.placed")
            assert path[-2:] == [("shop", "process shop-fulfil"), ("shop", "step charge")]


@pytest.mark.slow
def test_the_project_with_an_engine_of_its_own(folder: Folder) -> None:
    write_project(folder)
    durable, urls = folder.path / "shop" / "durable.py", folder.path / "myproject" / "urls.py"
    [client] = [block.text for block in BLOCKS if block.text == 'client = durably.Client(app_id="shop")\n']
    [endpoint] = [block.text for block in BLOCKS if block.text.startswith("urlpatterns += ")]
    kept = re.sub(r"^(engine = |prometheus_client\.).*\n", "", durable.read_text(), flags=re.MULTILINE)
    durable.write_text(re.sub(r"^client = .*\n", client, kept, flags=re.MULTILINE))
    urls.write_text(urls.read_text() + endpoint)
    folder.run("export DURABLY_DEV=1", "python manage.py makemigrations shop", "python manage.py migrate")
    text = PAGE.read_text()
    [dev] = re.findall(r"`(durably dev .*?)`", text)
    running = folder.start(f"{dev} --no-reload --port 8288 --app-port 8000")
    running.until("synced shop: shop-fulfil, shop-thank")
    running.until("is up at")
    assert Site(folder, running).ask("/orders", ORDER)[0] == 201
    running.until(r'run completed .*"thanked ada@example.com"')
