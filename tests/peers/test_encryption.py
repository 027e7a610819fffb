"""Apps of ``durably`` and of both official SDKs, with one key, on one engine: each decrypts the others' data."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from durably.encryption import Cipher

from .. import wire
from ..conformance.engine_under_test import Engine
from ..variants import variants
from ..waiting import eventually
from . import node
from .harness import PeerApp, running_app, uvicorn

KEY = "the key of all apps"
SECRET = "4111-1111-1111-1111"

pytestmark = pytest.mark.timeout(node.INSTALL_SECONDS + 100)


def start(engine: Engine, package: str, app_id: str) -> Any:
    command = uvicorn("encryption_app") if package != "js" else [*node.node(), str(node.JS / "encryption.mjs")]
    return running_app(engine, app_id, command, PEER_PACKAGE=package, PEER_KEY=KEY)


@pytest.fixture(scope="module")
def apps(dev_engine: Engine) -> Iterator[dict[str, PeerApp]]:
    node.install_packages()
    with ExitStack() as stack:
        yield {
            package: stack.enter_context(start(dev_engine, package, f"sealed-{package}"))
            for package in ("durably", "inngest", "js")
        }


@pytest.mark.parametrize(
    ("asking", "replying"), [("durably", "inngest"), ("inngest", "durably"), ("durably", "js"), ("js", "durably")]
)
def test_events_invokes_and_outputs_are_read_by_the_other(apps: dict[str, PeerApp], asking: str, replying: str) -> None:
    app, other, cipher = apps[asking], apps[replying], Cipher(KEY)
    secret = f"{SECRET} from {asking}"
    app.start(["ask"], encrypted=cipher.encrypt(secret), other=other.id)
    assert cipher.decrypt(app.output("ask")) == {"reply": secret}

    def has_replies() -> bool | None:
        runs = app.engine.data(f"/v1/runs?function_id={other.id}-reply")
        found = [run for run in runs if run["ended_at"] and cipher.decrypt(run["output"]) == {"reply": secret}]
        return len(found) == 2 or None

    eventually(has_replies, "the replies to the event and to the invoke")
    shown = [app.engine.api("GET", f"/v1/runs/{app.run_id('ask')}/steps").body]
    shown += [json.dumps(app.engine.data(f"/v1/events?name={other.id}/reply&limit=100")).encode()]
    shown += [json.dumps(app.engine.data("/v1/events?name=inngest/function.invoked&limit=100")).encode()]
    assert all(b"__ENCRYPTED__" in body for body in shown)
    assert not any(SECRET.encode() in body for body in shown)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "second"), variants([("inngest", "durably"), ("durably", "inngest")], [("inngest", "durably")])
)
def test_run_continues_after_the_app_has_changed_its_sdk(dev_engine: Engine, first: str, second: str) -> None:
    app_id, cipher = f"handed-to-{second}", Cipher(KEY)
    with start(dev_engine, first, app_id) as app:
        app.start(["handed"], encrypted=cipher.encrypt(SECRET))
        app.wait_for_step("handed", "waiting")
        event_ids = app.event_ids
    with start(dev_engine, second, app_id) as app:
        app.event_ids |= event_ids
        dev_engine.send(wire.event(f"{app_id}/go", {}))
        assert cipher.decrypt(app.output("handed")) == [SECRET, True]
