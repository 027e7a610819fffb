"""The official JavaScript client subscribes to a channel of our engine, and publishes to it.

Its version 4.24.0 fails at the first message of a text that is published in chunks, on any server: it uses a variable
before it sets it. ``tests/engine/api/http/test_realtime.py`` has that part.
"""

import json
import subprocess
from typing import Any

import pytest

from .. import wire
from ..conformance.engine_under_test import Engine
from ..conformance.programs import clean_environment
from . import node

pytestmark = pytest.mark.timeout(node.INSTALL_SECONDS + 100)


@pytest.mark.parametrize("mode", ["dev", "cloud"])
def test_the_official_client_subscribes_and_publishes(request: pytest.FixtureRequest, mode: str) -> None:
    engine: Engine = request.getfixturevalue(f"{mode}_engine")
    node.install_packages()
    settings = {"INNGEST_BASE_URL": engine.origin, "PEER_MODE": mode, "PEER_CHANNEL": "orders:42"}
    if mode == "cloud":
        settings |= {"INNGEST_SIGNING_KEY": wire.SIGNING_KEY, "INNGEST_EVENT_KEY": wire.EVENT_KEY}
    done = subprocess.run(
        [*node.node(), str(node.JS / "realtime.mjs")],
        env=clean_environment(**settings),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    frame: dict[str, Any] = {"kind": "data", "channel": "orders:42", "topic": "status"}
    assert json.loads(done.stdout.splitlines()[-1]) == [
        {**frame, "data": {"step": 1}},
        {**frame, "data": "plain text"},
    ]
