"""``durably start``: keys, signed syncs and calls, a log for machines."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import urllib3

from durably.cli.start import StartOptions, read_dashboard_keys
from durably.cli.text import CliError
from durably.protocol.signatures import bearer_token, sign

from ..variants import variants
from . import apps
from .conftest import TIMEOUT_SECONDS, Command, Run, Start, write

SIGNING_KEY = "signkey-prod-" + "0123456789abcdef" * 4
EVENT_KEY = "event-key-of-the-shop"
KEYS = {"DURABLY_SIGNING_KEY": SIGNING_KEY, "DURABLY_EVENT_KEY": EVENT_KEY}
OFFICIAL_NAMES = {
    "DURABLY_ENGINE_URL": "INNGEST_BASE_URL",
    "DURABLY_SIGNING_KEY": "INNGEST_SIGNING_KEY",
    "DURABLY_EVENT_KEY": "INNGEST_EVENT_KEY",
}


def logged(command: Command, message: str) -> dict[str, object]:
    """The first line of the log with this message."""
    line = json.loads(command.until(rf'\{{.*"message":"{message}".*\}}')[0])
    assert isinstance(line, dict)
    return line


@pytest.mark.parametrize(
    ("keys", "options", "problem"),
    [
        ({}, (), "DURABLY_SIGNING_KEY"),
        ({"DURABLY_SIGNING_KEY": SIGNING_KEY}, (), "DURABLY_EVENT_KEY"),
        (KEYS | {"DURABLY_EVENT_KEY": ""}, (), "DURABLY_EVENT_KEY"),
        (KEYS, ("",), "no event key"),
        (KEYS, ("a-key", " "), "an event key is blank"),
        (KEYS, ("a-key", "a\nb"), "an event key is blank"),
    ],
)
def test_start_requires_keys(run: Run, keys: dict[str, str], options: tuple[str, ...], problem: str) -> None:
    event_keys = [part for key in options for part in ("--event-key", key)]
    result = run("start", "--db", "engine.db", "--port", "0", *event_keys, **keys)
    assert (result.status, "Traceback" in result.stderr) == (1, False)
    assert problem in result.stderr
    assert SIGNING_KEY not in result.stderr


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--host", ""),
        ("--dashboard-url", "x"),
        ("--dashboard-url", "javascript:alert(1)"),
        *(("--metrics-address", address) for address in ("9464", "a:port", ":9464", "::1:9464", "127.0.0.1:70000")),
    ],
)
def test_an_option_with_a_useless_value_is_refused(run: Run, option: str, value: str) -> None:
    result = run("start", "--db", "engine.db", "--port", "0", "--event-key", "a-key", option, value, **KEYS)
    assert (result.status, f"'{option}'" in result.stderr) == (2, True)


def test_a_taken_port_is_named_with_its_option(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        options = ("--event-key", "a-key", "--metrics-address", address)
        result = run("start", "--db", "engine.db", "--port", "0", *options, **KEYS)
    assert result.status == 1
    assert "choose another (--metrics-address)" in result.stderr


def test_a_database_is_required(run: Run) -> None:
    result = run("start", "--port", "0", **KEYS)
    assert result.status == 2
    assert "--db" in result.stderr


def test_a_missing_directory_is_not_created(run: Run, directory: Path) -> None:
    result = run("start", "--db", "missing/engine.db", "--port", "0", **KEYS)
    assert result.status == 1
    assert f"there is no directory {directory.resolve() / 'missing'}" in " ".join(result.stderr.split())
    assert not (directory / "missing").exists()


def test_a_new_database_is_logged(start: Start, directory: Path) -> None:
    for is_new in (True, False):
        engine = start("start", "--db", "engine.db", "--port", "0", **KEYS)
        engine.until('"message":"engine started"')
        assert ("new database created" in engine.output) is is_new
        engine.stop()


@pytest.mark.parametrize("sdk", variants(["durably", "inngest"], ["durably"]))
def test_an_app_is_synced_called_and_logged(start: Start, run: Run, directory: Path, sdk: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    write(directory / "shop.py", apps.FASTAPI.format(sdk=sdk).replace(", is_production=False", ""))
    url = f"http://127.0.0.1:{port}/api/inngest"
    engine = start("start", "--db", "engine.db", "--port", "0", "-u", url, **KEYS)
    origin = str(logged(engine, "engine started")["origin"])
    variables = KEYS | {"DURABLY_ENGINE_URL": origin}
    if sdk == "inngest":
        variables = {OFFICIAL_NAMES[name]: value for name, value in variables.items()}
    app = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "shop:app", "--port", str(port), "--log-level", "error"],
        cwd=directory,
        env=os.environ | variables,
    )
    try:
        assert logged(engine, "app synced")["app_id"] == "shop"
        result = run("invoke", "shop-place", "--data", '{"total": 3}', DURABLY_ENGINE_URL=origin, **KEYS)
        assert (result.status, result.stdout) == (0, '{"charged": 3}\n'), result.stderr
        ended = logged(engine, "run completed")
        assert (ended["function_id"], ended["level"]) == ("shop-place", "info")
        assert "charged" not in engine.output
    finally:
        app.terminate()
        app.wait(TIMEOUT_SECONDS)
    assert engine.stop(signal.SIGTERM) == 0
    logged(engine, "engine stopped")
    for secret in (SIGNING_KEY, SIGNING_KEY.removeprefix("signkey-prod-"), EVENT_KEY):
        assert secret not in engine.output


def dashboard_keys(key: str | None, viewer_key: str | None = None) -> object:
    given: dict[str, Any] = dict.fromkeys(StartOptions.__struct_fields__)
    given |= {"signing_key": SIGNING_KEY, "event_keys": [EVENT_KEY], "dashboard_key": key}
    return read_dashboard_keys(StartOptions(**given | {"dashboard_viewer_key": viewer_key}))


@pytest.mark.parametrize(
    ("keys", "pattern"),
    [
        (("short",), "16 characters"),
        ((SIGNING_KEY,), "must not be another key"),
        ((None, "v" * 16), "needs --dashboard-key"),
        (("k" * 16, "k" * 16), "must differ"),
        (("k" * 16, "short"), "16 characters"),
        (("k" * 16, SIGNING_KEY), "must not be another key"),
    ],
)
def test_a_key_of_the_dashboard_that_is_not_safe_is_refused(keys: tuple[Any, ...], pattern: str) -> None:
    with pytest.raises(CliError, match=pattern) as raised:
        dashboard_keys(*keys)
    assert SIGNING_KEY not in raised.value.message
    assert dashboard_keys("k" * 16, "v" * 16) is not None
    assert dashboard_keys(None) is None


def test_the_dashboard_is_reached_by_a_proxy_that_removes_a_prefix(start: Start) -> None:
    command = start(
        *("start", "--db", "engine.db", "--port", "0", "--dashboard-url", "https://ops.example/tools/durably/"),
        DURABLY_DASHBOARD_KEY="the key of a dashboard",
        **KEYS,
    )
    origin = logged(command, "dashboard served")["url"].rstrip("/")
    prefix, headers = "/tools/durably", urllib3.make_headers(basic_auth="ada:the key of a dashboard")

    def ask(path: str, **headers: str) -> urllib3.BaseHTTPResponse:
        assert path.startswith(prefix), path
        return urllib3.request("GET", origin + path.removeprefix(prefix), headers=headers, redirect=False)

    assert ask(f"{prefix}/runs").status == 401
    page = ask(f"{prefix}/runs?status=Failed", **headers)
    assert page.status == 200
    links = set(re.findall(r'(?:href|src)="([^"#]+)"', page.data.decode()))
    assert len(links) > 10
    for link in links:
        assert link.startswith("?") or ask(link.replace("&amp;", "&"), **headers).status in (200, 303, 405), link


def test_clients_need_the_keys(start: Start, run: Run) -> None:
    engine = start("start", "--db", "engine.db", "--port", "0", **KEYS)
    origin = str(logged(engine, "engine started")["origin"])
    refused = run("runs", "list", "--url", origin)
    assert (refused.status, "signing key" in refused.stderr) == (1, True)
    refused = run("send", "a", "--url", origin, DURABLY_EVENT_KEY="wrong-key-of-mine")
    assert (refused.status, "event key" in refused.stderr) == (1, True)
    assert "wrong-key-of-mine" not in refused.stderr
    sent = run("send", "a", "--url", origin, DURABLY_EVENT_KEY=EVENT_KEY)
    assert sent.status == 0
    listed = run(
        "runs", "list", "--url", origin, "--signing-key", "signkey-prod-99", "--signing-key-fallback", SIGNING_KEY
    )
    assert (listed.status, listed.stderr) == (0, "no runs\n")


def test_an_engine_whose_database_was_deleted_stays_and_refuses(start: Start, run: Run, directory: Path) -> None:
    """A supervisor would restart it with an empty database."""
    engine = start("start", "--db", "engine.db", "--port", "0", **KEYS)
    origin = str(logged(engine, "engine started")["origin"])
    (directory / "engine.db").unlink()
    engine.until("the database was deleted .*this engine stops")
    engine.until("put its database back")
    assert urllib3.request("GET", f"{origin}/ready", retries=False, timeout=TIMEOUT_SECONDS).status == 503
    refused = run("send", "a", "--url", origin, **KEYS)
    assert (refused.status, "the database was deleted" in refused.stderr) == (1, True)
    assert not (directory / "engine.db").exists()
    assert engine.stop(signal.SIGTERM) == 0


def test_the_password_of_an_apps_url_is_not_logged(start: Start) -> None:
    engine = start("start", "--db", "engine.db", "--port", "0", **KEYS)
    origin = str(logged(engine, "engine started")["origin"])
    runtime = {"type": "http", "url": "http://me:pa55word@127.0.0.1:1/api?fnId=shop-f"}
    function = {
        "id": "shop-f",
        "triggers": [{"event": "f"}],
        "steps": {"step": {"id": "step", "name": "step", "runtime": runtime}},
    }
    body = json.dumps(
        {"url": "http://me:pa55word@127.0.0.1:1/api?token=t0ken", "appName": "shop", "functions": [function]}
    ).encode()
    headers = {
        "authorization": f"Bearer {bearer_token(SIGNING_KEY)}",
        "x-inngest-signature": sign(body, SIGNING_KEY, int(time.time())),
    }
    assert (
        urllib3.request("POST", f"{origin}/fn/register", body=body, headers=headers, timeout=TIMEOUT_SECONDS).status
        == 200
    )
    assert logged(engine, "app synced")["url"] == "http://127.0.0.1:1/api?token=***"
    assert "pa55word" not in engine.output
    assert "t0ken" not in engine.output


def test_metrics_have_an_address_of_their_own_without_a_key(start: Start) -> None:
    engine = start("start", "--db", "engine.db", "--port", "0", "--metrics-address", "127.0.0.1:0", **KEYS)
    url = logged(engine, "engine started")["metrics"]
    response = urllib3.request("GET", str(url), timeout=TIMEOUT_SECONDS)
    assert response.status == 200
    assert b"durably_up 1.0" in response.data
