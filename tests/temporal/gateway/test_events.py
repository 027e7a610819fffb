"""Event streams: from run to run, resumed at any event, and ended permanently in a real browser."""

import json
import shutil
import subprocess
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue
from typing import Any

import pytest

from durably.temporal import Temporal
from durably.temporal.gateway import FOR_OPERATORS, Gateway, GatewayResponse, Limits, expose

from ..app_server import AppServer
from ..workflows import TASK_QUEUE, StepsWorkflow
from .gateway_client import ask, make_request

pytestmark = pytest.mark.usefixtures("worker")

FOREIGN = "00000000-0000-4000-8000-000000000000"


@pytest.fixture
def gateway(temporal: Temporal) -> Gateway:
    exposed = expose(StepsWorkflow, name="chains", operations=FOR_OPERATORS)
    return Gateway(temporal, [exposed], allow_anonymous=True, limits=Limits(stream_limit=60))


async def connect(
    gateway: Gateway, workflow_id: str, last: str = "", *, principal: str | None = None
) -> GatewayResponse:
    headers = {"h_last_event_id": last} if last else {}
    return await gateway.handle(make_request(principal, "GET", f"chains/{workflow_id}/events", **headers))


async def read(response: GatewayResponse) -> AsyncIterator[tuple[str, str, Any]]:
    """The id, kind and data of each event that has an id."""
    assert response.stream is not None, response.body
    async with aclosing(response.stream()) as chunks:
        async for chunk in chunks:
            fields = dict(line.partition(": ")[::2] for line in chunk.decode().splitlines())
            if "id" in fields:
                yield fields["id"], fields["event"], json.loads(fields["data"])


async def test_cron_runs_are_followed(gateway: Gateway, temporal: Temporal) -> None:
    client = await temporal.client()
    handle = await client.start_workflow(
        "StepsWorkflow", [], id=f"cron-{uuid.uuid4().hex}", task_queue=TASK_QUEUE, cron_schedule="@every 1s"
    )
    seen, runs = [], []
    async for event in read(await connect(gateway, handle.id)):
        seen.append(event[0])
        if event[1] == "run":
            runs.append((event[2].get("previous_run_id"), event[2].get("cause"), event[2]["run_id"]))
            if len(runs) == 3:
                await handle.terminate()
    assert event[1:] == ("problem", event[2])
    assert event[2]["workflow_status"] == "terminated"
    assert [(previous, cause) for previous, cause, _ in runs] == [
        (None, None),
        (runs[0][2], "cron"),
        (runs[1][2], "cron"),
    ]
    assert [id async for id, _, _ in read(await connect(gateway, handle.id, seen[1]))] == seen[2:]
    assert (await connect(gateway, handle.id, seen[-1])).status_code == 204


async def test_an_event_id_of_another_workflow_is_ignored(gateway: Gateway, temporal: Temporal) -> None:
    client = await temporal.client()
    workflow_id = f"chain-{uuid.uuid4().hex}"
    former = await client.start_workflow("StepsWorkflow", [], id=workflow_id, task_queue=TASK_QUEUE)
    await former.result()
    other = await client.start_workflow("StepsWorkflow", [], id=f"{workflow_id}-2", task_queue=TASK_QUEUE)
    await other.result()
    latest = await client.start_workflow("StepsWorkflow", [], id=workflow_id, task_queue=TASK_QUEUE)
    await latest.result()
    whole = [id async for id, _, _ in read(await connect(gateway, workflow_id))]
    assert whole[0] == f"{latest.first_execution_run_id}:0"
    for run_id in (former.first_execution_run_id, other.first_execution_run_id, FOREIGN):
        for last in (f"{run_id}:1", f"{run_id}:end"):
            assert [id async for id, _, _ in read(await connect(gateway, workflow_id, last))] == whole
    for last in ("7", "x", ":", f"{latest.first_execution_run_id}:-1", "é"):
        assert [id async for id, _, _ in read(await connect(gateway, workflow_id, last))] == whole


async def test_a_stream_follows_a_reset_after_the_end(gateway: Gateway, temporal: Temporal) -> None:
    client = await temporal.client()
    handle = await client.start_workflow("StepsWorkflow", [], id=f"c-{uuid.uuid4().hex}", task_queue=TASK_QUEUE)
    await handle.result()
    before = [event async for event in read(await connect(gateway, handle.id))]
    reset = await ask(gateway, None, "POST", f"chains/{handle.id}/reset", {"to": "first_workflow_task"})
    assert reset.status == 202
    after = [event async for event in read(await connect(gateway, handle.id, before[-1][0]))]
    kinds = [kind for _, kind, _ in after]
    assert (kinds[0], after[0][2]["cause"], kinds[-1]) == ("run", "reset", "result")
    assert (await connect(gateway, handle.id, after[-1][0])).status_code == 204


async def test_a_reset_of_an_earlier_run_ends_the_open_run(temporal: Temporal) -> None:
    exposed = expose(StepsWorkflow, name="chains", signals="all", operations=FOR_OPERATORS)
    gateway = Gateway(temporal, [exposed], allow_anonymous=True, limits=Limits(stream_limit=60))
    started = (await ask(gateway, None, "POST", "chains", {"steps": ["again", "wait"]})).json
    place, first = f"chains/{started['workflow_id']}", started["run_id"]

    async def wait_for_next(run_id: str) -> str:
        """The run that follows by continue-as-new, once it has started."""
        following = ""
        async for _, kind, data in read(await connect(gateway, started["workflow_id"], f"{run_id}:1")):
            if kind == "run":
                following = data["run_id"]
            elif following and kind == "workflow_execution_started":
                break
        return following

    second = await wait_for_next(first)
    reset = await ask(gateway, None, "POST", f"{place}/reset", {"to": "first_workflow_task"}, run_id=first)
    assert reset.status == 202
    for operation in ("signals/go", "cancel", "terminate"):
        refused = await ask(gateway, None, "POST", f"{place}/{operation}", run_id=second)
        assert (operation, refused.status) == (operation, 409), refused.json
    fourth = await wait_for_next(reset.json["run_id"])
    assert (await ask(gateway, None, "POST", f"{place}/signals/go", run_id=fourth)).status == 202
    done = await ask(gateway, None, "GET", f"{place}/result", wait="30")
    assert (done.status, done.json["result"]) == (200, "done")
    of_second = await ask(gateway, None, "GET", f"{place}/result", run_id=second)
    assert (of_second.status, of_second.json["workflow_status"]) == (424, "terminated")


@pytest.mark.parametrize(
    ("step", "last_kind"),
    [("hand over", "workflow_execution_signaled"), ("become another", "workflow_execution_continued_as_new")],
)
async def test_a_stream_ends_when_the_owner_changes(temporal: Temporal, step: str, last_kind: str) -> None:
    """The stream contains neither the next run nor the result."""
    exposed = expose(StepsWorkflow, name="chains", owner=str, signals="all", operations=FOR_OPERATORS)
    owned = Gateway(temporal, [exposed], authorize=lambda action: True, limits=Limits(stream_limit=60))
    started = (await ask(owned, "ada", "POST", "chains", {"steps": ["wait", step]})).json
    place = f"chains/{started['workflow_id']}"
    seen = []
    async for event in read(await connect(owned, started["workflow_id"], principal="ada")):
        seen.append(event)
        if event[1] == "workflow_execution_started":
            assert (await ask(owned, "ada", "POST", f"{place}/signals/go")).status == 202
    assert [kind for _, kind, _ in seen][-2:] == [last_kind, "problem"]
    assert seen[-1][2]["status"] == 404
    assert "done" not in json.dumps([data for _, _, data in seen])
    again = await connect(owned, started["workflow_id"], seen[-2][0], principal="ada")
    assert again.status_code == 404
    if step == "become another":
        await (await temporal.client()).get_workflow_handle(started["workflow_id"]).terminate()


PAGE = """<!doctype html><script>
const source = new EventSource("EVENTS");
let reports = Promise.resolve();  // One after another, so that they arrive in the order of the events.
const report = (kind, data) =>
  reports = reports.then(() => fetch("/report", {method: "POST", body: JSON.stringify([kind, data])}));
for (const kind of ["run", "workflow_execution_started", "workflow_execution_signaled", "workflow_execution_completed",
                    "result", "problem"])
  source.addEventListener(kind, event => report(kind, event.lastEventId));
source.onopen = () => report("open", "");
source.onerror = () => report("error", source.readyState === EventSource.CLOSED ? "closed" : "connecting");
</script>"""


@contextmanager
def page_server(page: str) -> Iterator[tuple[str, "Queue[tuple[str, str]]"]]:
    """Serves a page, and collects what its script reports."""
    reports: Queue[tuple[str, str]] = Queue()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(page.encode())

        def do_POST(self) -> None:
            kind, data = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            reports.put((kind, data))
            self._send(b"")

        def _send(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/", reports
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.slow
def test_a_browser_reads_each_event_once_and_stops(apps: Callable[..., AppServer], tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("there is no browser: install chromium")
    # Streams end after a second, so that the browser reconnects before and after the end of the workflow.
    app = apps("fastapi", TEST_MAX_WAIT="0.1")
    order = {"order_id": uuid.uuid4().hex, "amount": 1, "lines": ["wait"]}
    place = app.post("/open/orders", order).headers["Location"]
    seen: list[str] = []
    states: list[str] = []
    with page_server(PAGE.replace("EVENTS", f"{app.origin}{place}/events")) as (url, reports):
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-web-security"]
        command += [f"--user-data-dir={tmp_path}", "--remote-debugging-port=0", url]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while "closed" not in states:
                kind, data = reports.get(timeout=60)
                if kind in ("open", "error"):
                    states.append(data or kind)
                else:
                    seen.append(f"{kind} {data}")
                if states == ["open", "connecting", "open"] and kind == "open":
                    app.post(f"{place}/signals/ship")
        finally:
            process.terminate()
            process.wait(30)
    assert len(set(seen)) == len(seen), seen
    kinds = [each.partition(" ")[0] for each in seen]
    assert sorted(kinds, key=kinds.index) == [
        "run",
        "workflow_execution_started",
        "workflow_execution_signaled",
        "workflow_execution_completed",
        "result",
    ]
    assert states[:3] == ["open", "connecting", "open"]
    assert states[-2:] == ["connecting", "closed"], states
