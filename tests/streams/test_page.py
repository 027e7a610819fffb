"""The page of ``docs/how-to/follow-a-run.md``, word for word, in a browser: FastAPI, Flask and Django."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from ..dashboard.browser import BrowserThread
from ..docs.pages import DOCS, blocks
from ..embedded.stock import Server, make_project, running
from ..variants import variants
from ..waiting import eventually

BLOCKS = list(blocks(DOCS / "how-to" / "follow-a-run.md"))
[PAGE] = [block.text for block in BLOCKS if block.language == "html" and "EventSource" in block.text]
[UPLOAD] = [
    block.text for block in BLOCKS if block.language == "html" and "upload" not in PAGE and "<form" in block.text
]
SUMMARY = "There were 50 rows, and all of them are imported."
ORDERS = 6000
SERVERS = {
    "fastapi": "uvicorn main:app --port {port} --workers 2",
    "flask": "gunicorn main:app -b 127.0.0.1:{port} -k gthread -w 2 --threads 8",
    "flask-run": "flask --app main run --port {port}",
    "flask-one-thread": "gunicorn main:app -b 127.0.0.1:{port}",
    "django": "python manage.py runserver {port} --noreload",
    "django-asgi": "uvicorn myproject.asgi:application --port {port}",
}


def file_of(name: str, containing: str = "") -> str:
    [text] = [each.text for each in BLOCKS if each.text.startswith(f"# {name}\n") and containing in each.text]
    return text


def write_project(name: str, directory: Path) -> None:
    if name.startswith("django"):
        write_django(directory)
        return
    # A row takes long enough for a browser to open the page meanwhile, also on a busy machine.
    work = "await asyncio.sleep(0.02)  # Do the work here."
    assert work in file_of("durable.py")
    (directory / "durable.py").write_text(file_of("durable.py").replace(work, "await asyncio.sleep(0.1)"))
    (directory / "main.py").write_text(file_of("main.py", "fast_api" if name == "fastapi" else "durably.flask"))
    (directory / "templates").mkdir()
    (directory / "templates" / "run.html").write_text(PAGE)


def write_django(directory: Path) -> None:
    make_project("Django", directory)
    shop = directory / "shop"
    subprocess.run([sys.executable, "manage.py", "startapp", "shop"], cwd=directory, check=True, timeout=60)
    (directory / "myproject" / "urls.py").write_text(file_of("myproject/urls.py"))
    (shop / "durable.py").write_text(file_of("shop/durable.py"))
    (shop / "views.py").write_text(file_of("shop/views.py"))
    (shop / "templates").mkdir()
    (shop / "templates" / "run.html").write_text(PAGE)
    (shop / "templates" / "upload.html").write_text(UPLOAD)
    django = (DOCS / "how-to" / "use-django.md").read_text()
    [models] = re.findall(r"```python\n(# shop/models\.py\n.*?)```", django, re.DOTALL)
    (shop / "models.py").write_text(models)
    settings = directory / "myproject" / "settings.py"
    settings.write_text(settings.read_text() + 'INSTALLED_APPS += ["shop", "durably.django"]\n')
    for command in (["makemigrations", "shop"], ["migrate"]):
        subprocess.run([sys.executable, "manage.py", *command], cwd=directory, check=True, timeout=60)


@pytest.fixture(scope="module")
def browser() -> Iterator[BrowserThread]:
    browser = BrowserThread()
    yield browser
    browser.close()


@pytest.fixture(params=variants(SERVERS, ["fastapi", "flask", "django"]))
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    write_project(request.param, tmp_path)
    with running(SERVERS[request.param], tmp_path, DURABLY_DEV="1") as server:
        path = "/imports" if request.param.startswith("django") else "/"
        eventually(lambda: server.get(path) in (200, 404), server.log)
        yield server


def begin(page: Page, server: Server) -> None:
    """Start an import as a visitor does."""
    if (server.directory / "manage.py").exists():
        page.goto(f"{server.origin}/imports")
        orders = "\n".join(f"ada{number}@example.com,{number}" for number in range(ORDERS))
        page.set_input_files("[name=orders]", {"name": "orders.csv", "mimeType": "text/csv", "buffer": orders.encode()})
        page.click("button")
        return
    page.goto(f"{server.origin}/")
    page.evaluate(
        """() => { const form = document.createElement("form"); form.method = "post"; form.action = "/imports"
                   document.body.append(form); form.submit() }"""
    )
    page.wait_for_url("**/imports/*")


def test_a_page_shows_a_run_from_its_start_to_its_end(browser: BrowserThread, server: Server) -> None:
    requests: list[str] = []

    def visit() -> None:
        page = browser.browser.new_page()
        page.set_default_timeout(60_000)
        page.on("request", lambda request: requests.append(request.url))
        begin(page, server)
        bar, status = page.locator("#bar"), page.locator("#status")
        expect(status).to_have_text("Running", timeout=60_000)
        page.wait_for_function("() => bar.value > 0 && bar.value < 1")
        expect(status).to_have_text("Completed", timeout=60_000)
        assert bar.evaluate("bar => bar.value") == 1
        assert page.locator("#note").inner_text() in ("50 of 50 rows", f"{ORDERS} of {ORDERS} orders")
        text = f"{ORDERS} orders are imported." if (server.directory / "manage.py").exists() else SUMMARY
        assert page.locator("#text").inner_text().strip() == text
        page.wait_for_function("() => source.readyState === EventSource.CLOSED")  # after a 204
        # A page that is opened again shows the same.
        page.reload()
        expect(status).to_have_text("Completed", timeout=60_000)
        assert page.locator("#text").inner_text().strip() == text
        page.close()
        # Another visitor needs the token, or has no session of the run.
        other = browser.browser.new_page()
        [url, *_] = [request for request in requests if "/streams?" in request]
        assert other.request.get(url).status == (200 if "token=" in url else 403)
        assert other.request.get(re.sub(r"token=\w", "token=x", url)).status in (401, 403)
        other.close()

    try:
        browser.run(visit)
    except BaseException:
        print(server.log())
        raise
