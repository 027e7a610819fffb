"""Workers of the official SDKs dial our engine, and run functions over the connection."""

import subprocess
import sys
from collections.abc import Iterator

import pytest

from .. import wire
from ..conformance.engine_under_test import Engine
from ..conformance.programs import clean_environment
from ..waiting import eventually
from . import node
from .harness import HERE, PeerApp

pytestmark = pytest.mark.timeout(node.INSTALL_SECONDS + 100)

WORKERS = ["python-dev", "python-cloud", "javascript-dev", "javascript-cloud"]


@pytest.fixture(scope="module", params=WORKERS)
def app(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PeerApp]:
    language, mode = request.param.split("-")
    engine: Engine = request.getfixturevalue(f"{mode}_engine")
    command = [sys.executable, str(HERE / "apps" / "connect_app.py")]
    if language == "javascript":
        node.install_packages()
        command = [*node.node(), str(node.JS / "connect.mjs")]
    settings = {"INNGEST_DEV": engine.origin}
    if mode == "cloud":
        keys = {"INNGEST_SIGNING_KEY": wire.SIGNING_KEY, "INNGEST_EVENT_KEY": wire.EVENT_KEY}
        settings = {"INNGEST_BASE_URL": engine.origin, **keys}
    app_id = f"connect-{request.param}"
    log = tmp_path_factory.mktemp("worker") / "log"
    with log.open("wb") as output:
        worker = subprocess.Popen(
            command,
            env=clean_environment(PEER_APP_ID=app_id, **settings),
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=HERE,
        )
    try:
        eventually(
            lambda: engine.api("GET", f"/v1/apps/{app_id}/functions").status == 200,
            f"the worker to connect: {log}",
        )
        yield PeerApp(engine, app_id, mode == "cloud")
        worker.terminate()
        assert worker.wait(30) in (0, -15), log.read_text()
    finally:
        worker.kill()
        worker.wait()


def test_a_function_with_steps_completes(app: PeerApp) -> None:
    app.start(["steps"])
    assert app.output("steps") == [1, 2, 3]


def test_an_error_fails_the_run(app: PeerApp) -> None:
    app.start(["fail"])
    assert app.error("fail")["message"] == "no more"


def test_a_call_may_last_longer_than_its_lease(app: PeerApp) -> None:
    app.start(["slow"], seconds=46)
    assert app.output("slow") == "done"
    (run_id,) = (app.run_id("slow"),)
    assert not any(step["attempt"] for step in app.steps("slow")), run_id
