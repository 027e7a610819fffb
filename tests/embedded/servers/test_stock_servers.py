"""Stock projects under common servers: an event from a view starts a run, and a sleeping run continues after
a restart."""

from pathlib import Path

import pytest

from ...variants import variants
from ...waiting import eventually
from ..stock import make_project, running

SERVERS = {
    "FastAPI": [
        "uvicorn main:app --port {port} --workers 3",
        "uvicorn main:app --port {port} --lifespan off",
        "gunicorn main:app -b 127.0.0.1:{port} -w 2 -k uvicorn_worker.UvicornWorker",
        "hypercorn main:app -b 127.0.0.1:{port}",
        "daphne main:app -p {port}",
    ],
    "Flask": [
        "gunicorn main:app -b 127.0.0.1:{port} -w 2",
        "gunicorn main:app -b 127.0.0.1:{port} -w 2 -k gthread --threads 4",
        "waitress-serve --listen 127.0.0.1:{port} main:app",
        "flask --app main run --port {port}",
    ],
    "Litestar": ["uvicorn main:app --port {port} --workers 3", "hypercorn main:app -b 127.0.0.1:{port}"],
    "Quart": ["hypercorn main:app -b 127.0.0.1:{port} --workers 2", "quart --app main run --port {port}"],
    "aiohttp": ["python main.py {port}", "gunicorn main:app -b 127.0.0.1:{port} -w 2 -k aiohttp.GunicornWebWorker"],
    "Sanic": ["sanic main:app --port {port} --workers 2", "uvicorn main:app --port {port} --workers 2"],
    "WSGI": [
        "gunicorn main:app -b 127.0.0.1:{port} -w 2",
        "waitress-serve --listen 127.0.0.1:{port} main:app",
    ],
    "Django": [
        "uvicorn myproject.asgi:application --port {port}",
        "uvicorn myproject.asgi:application --port {port} --workers 3",
        "hypercorn myproject.asgi:application -b 127.0.0.1:{port}",
        "daphne myproject.asgi:application -p {port}",
        "waitress-serve --listen 127.0.0.1:{port} myproject.wsgi:application",
        "python manage.py runserver {port}",
    ],
}
"""Servers that the tests of restarts below do not start."""
CASES = [(framework, command) for framework, commands in SERVERS.items() for command in commands]
QUICK = [
    ("FastAPI", "uvicorn main:app --port {port} --workers 3"),
    ("Flask", "gunicorn main:app -b 127.0.0.1:{port} -w 2"),
    ("Flask", "waitress-serve --listen 127.0.0.1:{port} main:app"),
]


@pytest.mark.parametrize(("framework", "command"), variants(CASES, QUICK, name="-".join))
def test_an_event_that_a_view_sends_runs(framework: str, command: str, tmp_path: Path) -> None:
    make_project(framework, tmp_path)
    with running(command, tmp_path) as server:
        server.send()
        server.wait_asleep()


RESTARTED = [
    ("FastAPI", "uvicorn main:app --port {port}"),
    ("Flask", "gunicorn main:app -b 127.0.0.1:{port} -w 2 --preload"),
    ("Flask", "flask --app main run --port {port} --debug"),
    ("Litestar", "uvicorn main:app --port {port} --workers 2"),
    ("Quart", "hypercorn main:app -b 127.0.0.1:{port} --workers 2"),
    ("aiohttp", "python main.py {port}"),
    ("Sanic", "sanic main:app --port {port} --workers 2"),
    ("WSGI", "gunicorn main:app -b 127.0.0.1:{port} -w 2"),
]


@pytest.mark.parametrize(("framework", "command"), variants(RESTARTED, [], name="-".join))
def test_sleeping_run_continues_after_a_restart_without_a_request(framework: str, command: str, tmp_path: Path) -> None:
    make_project(framework, tmp_path)
    with running(command, tmp_path) as server:
        server.send()
        server.wait_asleep()
    with running(command, tmp_path) as server:
        server.wait_completed()
        assert "INSTALLED_APPS" not in server.log()


@pytest.mark.slow
def test_sleeping_run_continues_with_the_first_request_of_any_url(tmp_path: Path) -> None:
    """Stock Django loads ``urls.py``, and with it the functions, with the first request."""
    make_project("Django", tmp_path)
    command = "gunicorn myproject.wsgi -b 127.0.0.1:{port}"
    with running(command, tmp_path) as server:
        server.send()
        server.wait_asleep()
    with running(command, tmp_path) as server:
        while server.get("/nowhere") != 404:
            pass
        server.wait_completed()
        assert server.get("/nowhere") == 404
        assert server.log().count('write INSTALLED_APPS += ["durably.django"]') == 2  # once for each server


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/send", "/nowhere"])
def test_functions_that_django_does_not_find_are_named(path: str, tmp_path: Path) -> None:
    """Whether the first request sends an event or not."""
    make_project("Django", tmp_path, is_installed_app=True)
    app, urls = tmp_path / "greetings", tmp_path / "myproject" / "urls.py"
    (app / "durable.py").rename(app / "tasks.py")
    urls.write_text(urls.read_text().replace("greetings.durable", "greetings.tasks"))
    with running("python manage.py runserver --noreload {port}", tmp_path) as server:
        for _ in range(2):
            eventually(lambda: server.get(path) in (200, 404), "the server answers")
        eventually(lambda: "'shop-greet' (in greetings.tasks)" in server.log(), "the functions are named")
        assert server.log().count("'shop-greet' (in greetings.tasks)") == 1
        assert "correct the path" not in server.log()


INSTALLED = [
    "uvicorn myproject.asgi:application --port {port} --workers 2",
    "gunicorn myproject.wsgi -b 127.0.0.1:{port} -w 2 --preload",
    "python manage.py runserver {port}",
]


@pytest.mark.parametrize("command", variants(INSTALLED, INSTALLED[2:]))
def test_an_installed_app_starts_with_the_server(command: str, tmp_path: Path) -> None:
    make_project("Django", tmp_path, is_installed_app=True)
    with running(command, tmp_path) as server:
        server.send()
        server.wait_asleep()
    with running(command, tmp_path) as server:
        server.wait_completed()
        assert "INSTALLED_APPS" not in server.log()
