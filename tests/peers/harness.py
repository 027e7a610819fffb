"""Apps of official SDKs on our engine: starting both, syncing, and following runs."""

import sys
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from .. import wire
from ..conformance.client import request
from ..conformance.engine_under_test import Engine
from ..conformance.programs import clean_environment, running
from ..ports import free_port
from ..variants import variants
from ..waiting import eventually

HERE = Path(__file__).parent
DURABLY = (sys.executable, "-c", "from durably.cli import main; main()")
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
"""The trace context of all events. The engine passes it on in the calls, and it must not disturb official SDKs."""
FUNCTION_PATH = "/api/inngest"


@contextmanager
def running_engine(database: Path, *, cloud: bool = False, temporal: str | None = None) -> Iterator[Engine]:
    """``durably dev``, or ``durably start`` with the keys of ``wire``; on a Temporal server with ``temporal``."""
    port = free_port()
    store = ["--db", str(database)] if temporal is None else ["--temporal", temporal]
    common = ["--port", str(port), *store, "--allow-private-addresses"]
    origin = f"http://127.0.0.1:{port}"
    if cloud:
        # The official Python SDK does not sign answers that it streams.
        unsigned = ["--unsigned-answers-of", "peer-fast-api-cloud-streaming"]
        with running([*DURABLY, "start", *common, *unsigned], port, clean_environment(**_KEYS), cwd=database.parent):
            yield Engine(origin, wire.EVENT_KEY, wire.SIGNING_KEY)
    else:
        with running([*DURABLY, "dev", *common], port, clean_environment(), cwd=database.parent):
            yield Engine(origin)


_KEYS = {"INNGEST_SIGNING_KEY": wire.SIGNING_KEY, "INNGEST_EVENT_KEY": wire.EVENT_KEY}


@dataclass
class PeerApp:
    """A running app, synced with the engine. Its function ``x`` is triggered by the event ``<app>/x``."""

    engine: Engine
    id: str
    is_cloud: bool
    is_on_temporal: bool = False
    event_ids: dict[str, str] = field(default_factory=dict)

    def start(self, names: Mapping[str, Any] | list[str], **data: Any) -> None:
        """Trigger the functions, all at once."""
        ids = self.engine.send(*(wire.event(f"{self.id}/{name}", data) for name in names), traceparent=TRACEPARENT)
        self.event_ids |= dict(zip(names, ids, strict=True))

    def run_id(self, name: str) -> str:
        """The run of a function that was started. Lists of runs on Temporal lag."""
        path = f"/v1/events/{self.event_ids[name]}/runs"
        (run,) = eventually(lambda: self.engine.data(path) or None, f"the run of {name}")
        return run["run_id"]  # type: ignore[no-any-return]

    def output(self, name: str) -> Any:
        """The output of the run, which has to complete."""
        return self.engine.completed(self.run_id(name))

    def error(self, name: str) -> Any:
        """The error of the run, which has to fail."""
        return self.engine.failed(self.run_id(name))

    def steps(self, name: str) -> list[Any]:
        return self.engine.data(f"/v1/runs/{self.run_id(name)}/steps")  # type: ignore[no-any-return]

    def wait_for_step(self, name: str, status: str) -> None:
        """Until a step of the run is in the status."""

        def look() -> bool | None:
            return any(step["status"] == status for step in self.steps(name)) or None

        eventually(look, f"a {status} step of {name}")

    def run_of_event(self, name: str, function: str) -> Any:
        """The run of a function that another event than ours started, once it has ended."""
        function_id = f"{self.id}-{function}"

        def look() -> Any:
            events = self.engine.data(f"/v1/events?name={name}&limit=100")
            runs = [run for event in events for run in self.engine.data(f"/v1/events/{event['internal_id']}/runs")]
            return next((run for run in runs if run["function_id"] == function_id and run["ended_at"]), None)

        return eventually(look, f"a run of {function_id}")


@contextmanager
def running_app(
    engine: Engine, app_id: str, command: list[str], *, cloud: bool = False, **variables: str
) -> Iterator[PeerApp]:
    """The app, synced. ``{port}`` in the command is where it is to listen."""
    port = free_port()
    mode = {"INNGEST_BASE_URL": engine.origin, **_KEYS} if cloud else {"INNGEST_DEV": engine.origin}
    environment = clean_environment(PORT=str(port), PEER_APP_ID=app_id, **mode, **variables)
    placed = [part.format(port=port) for part in command]
    with running(placed, port, environment, cwd=HERE):
        headers = {"x-inngest-server-kind": "cloud" if cloud else "dev"}
        answer = request("PUT", f"http://127.0.0.1:{port}{FUNCTION_PATH}", b"", headers)
        assert answer.status == 200, answer.body
        yield PeerApp(engine, app_id, cloud, is_on_temporal=app_id.endswith("-temporal"))


def with_soak(apps: Mapping[str, Any], quick: Container[str]) -> list[Any]:
    """The apps as parameters. Those on Temporal belong to `make soak`; ``test_on_temporal.py`` has a part of them."""
    on_temporal = [name for name in apps if name.endswith("-temporal")]
    return [
        *variants([name for name in apps if name not in on_temporal], quick),
        *(pytest.param(name, marks=pytest.mark.soak) for name in on_temporal),
    ]


def uvicorn(module: str, directory: Path = HERE / "apps") -> list[str]:
    server = [sys.executable, "-m", "uvicorn", f"{module}:app", "--app-dir", str(directory)]
    return [*server, "--port", "{port}", "--log-level", "warning"]


def werkzeug(module: str) -> list[str]:
    program = f"import sys; sys.path.insert(0, {str(HERE / 'apps')!r}); from {module} import app; "
    return [sys.executable, "-c", program.replace("{", "{{") + "app.run(port={port}, threaded=True)"]
