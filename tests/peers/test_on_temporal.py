"""The official SDKs on ``durably start --temporal``: a part of what `make soak` runs there."""

from collections.abc import Iterator

import pytest

from .. import wire
from ..conformance.engine_under_test import Engine
from . import node, test_javascript_sdk, test_python_sdk
from .conftest import Provider
from .harness import PeerApp, running_app, uvicorn

pytestmark = [pytest.mark.timeout(node.INSTALL_SECONDS + 100), pytest.mark.slow]

NAMES = ["run", "wait", "invoke", "parallel", "infer", "step-fail", "non-retriable"]
SDKS = {"python": test_python_sdk, "javascript": test_javascript_sdk}


@pytest.fixture(scope="module", params=SDKS)
def app(request: pytest.FixtureRequest, temporal_engine: Engine, provider: Provider) -> Iterator[PeerApp]:
    if request.param == "javascript":
        node.install_packages()
        command, origin = [*node.node(), str(node.JS / "app.mjs")], provider.origin
    else:
        command, origin = uvicorn("fast_api_app"), provider.origin + "/v1"
    variables = {"PEER_CHECKPOINTING": "on"}
    with running_app(temporal_engine, f"peer-{request.param}-temporal", command, cloud=True, **variables) as started:
        started.start(NAMES, id=1, provider=origin)
        yield started


@pytest.mark.parametrize("name", NAMES)
def test_a_function_runs_to_its_end(app: PeerApp, name: str) -> None:
    expected = SDKS["javascript" if "javascript" in app.id else "python"]
    if name in expected.FAILED:
        assert expected.FAILED[name] in app.error(name)["message"]
        return
    if name == "wait":
        app.wait_for_step("wait", "waiting")
        app.engine.send(wire.event(f"{app.id}/answer", {"id": 1, "answer": True}))
    assert app.output(name) == expected.COMPLETED[name]
