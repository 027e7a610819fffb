"""The apps and engines under test.

By default the tests start all of them: our own app and engine, and the same app with two official SDKs, which keeps the
tests honest. The options name an app or an engine of another implementation; see the README.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

import pytest

from .. import wire
from ..fake_engine import FakeEngine, serving_fake_engine
from ..peers import node
from ..ports import free_port
from .app_under_test import App
from .engine_under_test import Engine
from .engines import ENGINES, SQLITE, RestartableEngine, Store, open_store, running_cloud_engine, running_dev_engine
from .programs import clean_environment, running
from .scripted_app import ScriptedApp, serving_scripted_app

HERE = Path(__file__).parent
DEFAULT_APPS = ("durably", "inngest", "inngest-npm")
_OPTIONS = {
    "--app-url": "app under test, in dev mode (its functions' URL)",
    "--cloud-app-url": "app under test, in cloud mode",
    "--fake-engine-port": "port of the engine that the tests play for the app under test",
    "--engine-url": "engine under test, in dev mode (its origin)",
    "--cloud-engine-url": "engine under test, in cloud mode",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("conformance")
    for option, text in _OPTIONS.items():
        group.addoption(option, help=text)
    group.addoption("--engine", choices=ENGINES, help="Durably's engine that is under test; the default is sqlite")


def option(config: pytest.Config, name: str) -> str | None:
    """An option, or the variable ``DURABLY_CONFORMANCE_APP_URL`` and so on."""
    given = config.getoption(name.removeprefix("--").replace("-", "_"), default=None)
    return given or os.environ.get("DURABLY_CONFORMANCE_" + name.removeprefix("--").replace("-", "_").upper())


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "app_name" in metafunc.fixturenames:
        given = any(option(metafunc.config, name) for name in ("--app-url", "--cloud-app-url"))
        only_engine = any(option(metafunc.config, name) for name in ("--engine-url", "--cloud-engine-url"))
        names = ("given",) if given else () if only_engine else DEFAULT_APPS
        slow = pytest.mark.timeout(node.INSTALL_SECONDS + 100)
        params = [pytest.param(name, marks=slow if name == "inngest-npm" else ()) for name in names]
        metafunc.parametrize("app_name", params, scope="session")


@pytest.fixture(scope="session")
def _fake_engine(pytestconfig: pytest.Config) -> Iterator[FakeEngine]:
    with serving_fake_engine(int(option(pytestconfig, "--fake-engine-port") or 0)) as engine:
        yield engine


@pytest.fixture(scope="session")
def _dev_app(app_name: str, _fake_engine: FakeEngine, pytestconfig: pytest.Config) -> Iterator[App]:
    with _start(app_name, option(pytestconfig, "--app-url"), INNGEST_DEV=_fake_engine.origin) as url:
        yield App(app_name, url, _fake_engine)


@pytest.fixture(scope="session")
def _cloud_app(app_name: str, _fake_engine: FakeEngine, pytestconfig: pytest.Config) -> Iterator[App]:
    with _start(
        app_name,
        option(pytestconfig, "--cloud-app-url"),
        INNGEST_BASE_URL=_fake_engine.origin,
        INNGEST_SIGNING_KEY=wire.SIGNING_KEY,
        INNGEST_SIGNING_KEY_FALLBACK=wire.FALLBACK_KEY,
        INNGEST_EVENT_KEY=wire.EVENT_KEY,
    ) as url:
        yield App(app_name, url, _fake_engine, key=wire.SIGNING_KEY)


@pytest.fixture
def fake_engine(_fake_engine: FakeEngine) -> FakeEngine:
    """The engine that the app under test knows, with nothing received yet."""
    _fake_engine.forget()
    return _fake_engine


@pytest.fixture
def app(_dev_app: App, fake_engine: FakeEngine) -> App:
    """The app under test in dev mode."""
    return _dev_app


@pytest.fixture
def cloud_app(_cloud_app: App, fake_engine: FakeEngine) -> App:
    """The app under test in cloud mode; calls are signed unless a test says otherwise."""
    return _cloud_app


@contextmanager
def _start(name: str, url: str | None, **variables: str) -> Iterator[str]:
    if name == "given":
        if url is None:
            pytest.skip("no app was given for this mode")
        yield url
        return
    port = free_port()
    if "INNGEST_SIGNING_KEY" in variables:
        variables["INNGEST_SERVE_ORIGIN"] = f"http://127.0.0.1:{port}"
    environment = clean_environment(PORT=str(port), CONFORMANCE_PACKAGE=name, **variables)
    with running(_COMMANDS[name](port), port, environment):
        yield f"http://127.0.0.1:{port}/api/inngest"


def _python_app(port: int) -> list[str]:
    server = [sys.executable, "-m", "uvicorn", "python_app:app", "--app-dir", str(HERE / "apps")]
    return [*server, "--port", str(port), "--log-level", "warning"]


def _npm_app(port: int) -> list[str]:
    node.install_packages()
    return [*node.node(), str(node.JS / "conformance.mjs")]


_COMMANDS: dict[str, Callable[[int], list[str]]] = {
    "durably": _python_app,
    "inngest": _python_app,
    "inngest-npm": _npm_app,
}


@pytest.fixture(scope="session")
def engine_name(pytestconfig: pytest.Config) -> str:
    """Durably's engine that is under test."""
    return option(pytestconfig, "--engine") or SQLITE


@pytest.fixture(autouse=True)
def _skip_differences(request: pytest.FixtureRequest, engine_name: str) -> None:
    differs = request.node.get_closest_marker("differs")
    if differs is not None and engine_name in differs.kwargs:
        pytest.skip(f"the engine {engine_name!r} differs: {differs.kwargs[engine_name]}")


@pytest.fixture(scope="session")
def engine(pytestconfig: pytest.Config, engine_name: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """The engine under test in dev mode."""
    _skip_unless_default_or(pytestconfig, "--engine-url")
    if url := option(pytestconfig, "--engine-url"):
        yield Engine(url.rstrip("/"))
        return
    with (
        open_store(engine_name, tmp_path_factory.mktemp("engine")) as store,
        running_dev_engine(store, free_port()) as (started, _),
    ):
        yield started


@pytest.fixture(scope="session")
def cloud_engine(
    pytestconfig: pytest.Config, engine_name: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engine]:
    """The engine under test in cloud mode, with the keys of ``wire``."""
    _skip_unless_default_or(pytestconfig, "--cloud-engine-url")
    if url := option(pytestconfig, "--cloud-engine-url"):
        yield Engine(url.rstrip("/"), wire.EVENT_KEY, wire.SIGNING_KEY)
        return
    with (
        open_store(engine_name, tmp_path_factory.mktemp("engine")) as store,
        running_cloud_engine(store, free_port()) as started,
    ):
        yield started


@pytest.fixture
def script(engine: Engine) -> Iterator[ScriptedApp]:
    """An app that the test plays, with the engine in dev mode."""
    with serving_scripted_app(engine) as scripted:
        yield scripted


@pytest.fixture
def cloud_script(cloud_engine: Engine) -> Iterator[ScriptedApp]:
    """An app that the test plays, with the engine in cloud mode."""
    with serving_scripted_app(cloud_engine) as scripted:
        yield scripted


@pytest.fixture
def store(pytestconfig: pytest.Config, engine_name: str, tmp_path: Path) -> Iterator[Store]:
    """The state of an engine of the test's own."""
    _skip_unless_default_or(pytestconfig, "nothing: engines that are given cannot be killed")
    with open_store(engine_name, tmp_path) as opened:
        yield opened


@pytest.fixture
def restartable(store: Store) -> Callable[[], AbstractContextManager[RestartableEngine]]:
    """Starts an engine, the same at each time: state and address stay."""
    return partial(running_dev_engine, store, free_port())


def _skip_unless_default_or(config: pytest.Config, name: str) -> None:
    if any(option(config, other) for other in _OPTIONS if other.endswith("-url")) and (
        name not in _OPTIONS or not option(config, name)
    ):
        pytest.skip(f"needs {name}")
