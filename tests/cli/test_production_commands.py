"""``durably keys``, ``sync`` and ``health``: the commands of a deployment."""

import json
import re
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from durably.cli.start import SyncLog
from durably.engine.api.http.syncs import AcceptedSync
from durably.engine.model.overview import SyncResult
from durably.protocol.sync import SyncRequest

from . import apps
from .conftest import TIMEOUT_SECONDS, Command, Run, Start, environment, write

RunApp = Callable[[str], AbstractContextManager[str]]
APP = apps.FASTAPI.format(sdk="durably").replace("is_production=False", 'app_version="VERSION"')


def variables_of(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.splitlines())


def origin_of(engine: Command) -> str:
    return engine.until(r'"message":"engine started","origin":"([^"]+)"')[1]


def test_keys_are_long_and_new_each_time(run: Run) -> None:
    first, second = variables_of(run("keys").stdout), variables_of(run("keys").stdout)
    assert set(first) == {"DURABLY_SIGNING_KEY", "DURABLY_EVENT_KEY"}
    assert re.fullmatch(r"signkey-prod-[0-9a-f]{64}", first["DURABLY_SIGNING_KEY"])
    assert re.fullmatch(r"[0-9a-f]{64}", first["DURABLY_EVENT_KEY"])
    assert not set(first.values()) & set(second.values())


def test_a_key_of_the_dashboard_is_made_on_request(run: Run) -> None:
    made = variables_of(run("keys", "--dashboard").stdout)
    assert set(made) == {"DURABLY_SIGNING_KEY", "DURABLY_EVENT_KEY", "DURABLY_DASHBOARD_KEY"}
    assert len(set(made.values())) == 3


def test_keys_go_to_a_file_that_others_cannot_read(run: Run, directory: Path) -> None:
    written = run("keys", "--output", "durably.env")
    path = directory / "durably.env"
    before = path.read_text()
    assert (written.status, stat.S_IMODE(path.stat().st_mode)) == (0, 0o600)
    assert not any(value in written.stdout for value in variables_of(before).values())
    again = run("keys", "--output", "durably.env")
    assert (again.status, "may hold keys that are in use" in again.stderr) == (1, True)
    assert path.read_text() == before
    missing = run("keys", "--output", "nowhere/durably.env")
    assert (missing.status, "cannot write nowhere/durably.env" in missing.stderr) == (1, True)


@pytest.fixture
def keys(run: Run) -> dict[str, str]:
    return variables_of(run("keys").stdout)


@pytest.fixture
def engine(start: Start, keys: dict[str, str]) -> Command:
    return start("start", "--db", "engine.db", "--port", "0", **keys)


@pytest.fixture
def variables(engine: Command, keys: dict[str, str]) -> dict[str, str]:
    """The environment of the app and the commands."""
    return keys | {"DURABLY_ENGINE_URL": origin_of(engine)}


@pytest.fixture
def run_app(directory: Path, variables: dict[str, str]) -> RunApp:
    """Serves the app, from its source, at one port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

    @contextmanager
    def running(source: str) -> Iterator[str]:
        write(directory / "shop.py", source)
        command = [sys.executable, "-m", "uvicorn", "shop:app", "--port", str(port), "--log-level", "error"]
        app = subprocess.Popen(command, cwd=directory, env=environment() | variables)
        try:
            yield f"http://127.0.0.1:{port}/api/inngest"
        finally:
            app.terminate()
            app.wait(TIMEOUT_SECONDS)

    return running


@pytest.mark.slow
def test_sync_reports_the_changes_of_each_deployment(
    engine: Command, run: Run, run_app: RunApp, variables: dict[str, str]
) -> None:
    with run_app(APP.replace("VERSION", "1.0")) as url:
        synced = run("sync", url, "--wait", "80s", **variables)
        assert synced.stdout == f"synced shop 1.0 at {url}: 1 function\n  + shop-place\n", synced.stderr
        again = run("sync", url, **variables)
        assert again.stdout == f"synced shop 1.0 at {url}: 1 function, unchanged\n"
    with run_app(APP.replace("VERSION", "1.1").replace("order/placed", "order/paid")) as url:
        synced = run("sync", url, "--wait", "80s", **variables)
        assert synced.stdout == f"synced shop 1.1 at {url}: 1 function\n  ~ shop-place\n"
    with run_app(APP.replace("VERSION", "1.1").replace('"place"', '"order"')) as url:
        synced = run("sync", url, "--wait", "80s", "--json", **variables)
        done = json.loads(synced.stdout)
        assert (done["added"], done["removed"]) == (["shop-order"], ["shop-place"])
        moved = run("sync", url.replace("127.0.0.1", "localhost"), **variables)
        assert f"\n  moved from {url}\n" in moved.stdout, moved.stderr
        health = run("health", **variables)
        assert (health.status, health.stdout) == (0, "ready\n")
    logged = [json.loads(line) for line in engine.output.splitlines() if '"app synced"' in line]
    moved_line = logged.pop()
    assert (moved_line["previous_url"], "previous_url" in logged[-1]) == (url, False)
    assert [(line["version"], line.get("added"), line.get("changed")) for line in logged] == [
        ("1.0", ["shop-place"], None),
        ("1.1", None, ["shop-place"]),
        ("1.1", ["shop-order"], None),
    ]


def test_failed_sync_exits_with_1(run: Run, run_app: RunApp, variables: dict[str, str]) -> None:
    away = run("sync", "http://127.0.0.1:9/api/inngest", "--wait", "600ms", **variables)
    assert (away.status, away.stdout) == (1, "")
    assert "no app answers at http://127.0.0.1:9/api/inngest: connection refused" in away.stderr
    with run_app(APP.replace("VERSION", "1")) as url:
        run("sync", url, "--wait", "80s", **variables)
        elsewhere = run("sync", url.replace("inngest", "elsewhere"), "--wait", "80s", **variables)
        assert (elsewhere.status, "serves no functions" in elsewhere.stderr) == (1, True)
        keyless = {"DURABLY_ENGINE_URL": variables["DURABLY_ENGINE_URL"]}
        refused = run("sync", url, "--wait", "80s", **keyless)
        assert (refused.status, "DURABLY_SIGNING_KEY" in refused.stderr) == (1, True)
    assert run("sync", "shop:8000", **variables).status == 2


def test_an_engine_that_is_down_is_not_healthy(run: Run) -> None:
    result = run("health", DURABLY_ENGINE_URL="http://127.0.0.1:9")
    assert (result.status, "no engine answers at http://127.0.0.1:9" in result.stderr) == (1, True)


@pytest.mark.parametrize(
    ("url", "reason"),
    [("http://127.0.0.1:9", "connection refused"), ("http://engine.invalid", "the host's name cannot be resolved")],
)
def test_an_engine_that_does_not_answer_gets_the_advice_of_its_mode(run: Run, url: str, reason: str) -> None:
    production = run("runs", "list", DURABLY_ENGINE_URL=url, DURABLY_SIGNING_KEY="signkey-prod-" + "0" * 64)
    assert reason in production.stderr
    assert "Is `durably start` running there?" in production.stderr
    assert "durably dev" not in production.stderr
    assert "`durably dev`" in run("runs", "list", "--url", url).stderr


@pytest.mark.slow
def test_apps_of_u_are_synced_again_after_a_deployment(
    start: Start, keys: dict[str, str], run_app: RunApp, variables: dict[str, str], directory: Path
) -> None:
    with run_app(APP.replace("VERSION", "1.0")) as url:
        options = ("--db", "second.db", "--port", "0", "-u", url, "--poll-interval", "0.1")
        engine = start("start", *options, **keys)
        end = engine.until(r'"app synced".*"version":"1\.0".*"added":\["shop-place"\]').end()
    with run_app(APP.replace("VERSION", "2.0")):
        engine.until(r'"app synced".*"version":"2\.0"', after=end)
    engine.stop()
    assert len(re.findall("app synced", engine.output)) == 2


def test_systemd_is_notified_when_the_engine_is_ready(start: Start, keys: dict[str, str], tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(str(tmp_path / "notify"))
        supervisor.settimeout(TIMEOUT_SECONDS)
        engine = start("start", "--db", "engine.db", "--port", "0", **keys, NOTIFY_SOCKET=str(tmp_path / "notify"))
        assert supervisor.recv(100) == b"READY=1"
        assert "engine started" in engine.output or origin_of(engine)
        engine.stop()
        assert supervisor.recv(100) == b"STOPPING=1"


BARE = "signkey-prod-"
TWO_NAMES = {"DURABLY_SIGNING_KEY": "signkey-prod-secret", "INNGEST_SIGNING_KEY": "signkey-prod-other"}


@pytest.mark.parametrize(
    ("arguments", "variables", "problem"),
    [
        ((), {"DURABLY_SIGNING_KEY": BARE}, "in DURABLY_SIGNING_KEY has nothing after its prefix"),
        ((), {"DURABLY_SIGNING_KEY_FALLBACK": BARE}, "in DURABLY_SIGNING_KEY_FALLBACK has nothing after its prefix"),
        (("--signing-key", BARE), {}, "in --signing-key has nothing after its prefix"),
        (("--signing-key", ""), {}, "in --signing-key is empty"),
        ((), TWO_NAMES, "DURABLY_SIGNING_KEY and INNGEST_SIGNING_KEY are two names"),
    ],
)
def test_unusable_signing_keys_are_named(
    run: Run, arguments: tuple[str, ...], variables: dict[str, str], problem: str
) -> None:
    for command in (("start", "--db", "engine.db"), ("runs", "list")):
        result = run(*command, *arguments, **variables)
        assert (result.status, problem in result.stderr) == (1, True)
        assert "secret" not in result.stderr
        assert "Traceback" not in result.stderr


def test_syncs_that_change_nothing_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "durably.start")
    log = SyncLog()
    request = SyncRequest(url="http://127.0.0.1:8000/api", functions=[], app_name="shop")

    def note(*, version: str = "1", previous: str = "1", modified: bool = False) -> bool:
        """Whether a sync with this result is logged."""
        caplog.clear()
        result = SyncResult(app_id="shop", modified=modified, version=version, previous_version=previous)
        log.note(AcceptedSync(request, result, None))
        return bool(caplog.records)

    assert note()  # the first since the engine's start
    assert not note()
    assert note(version="2")
    assert note(modified=True)
    assert not note()
