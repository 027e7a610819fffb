"""Each example runs as its docstring says: `durably dev`, real HTTP to the app, and the engine's own eyes."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from examples.showcase.events import send_events

from durably import Event
from durably.cli.dev import DevOptions, DevServer
from durably.engine.model.runs import RunStatus, RunUpdate, StepStatus, UpdateKind

from ..waiting import async_eventually

ROOT = Path(__file__).parents[2]
ENDS = {UpdateKind.RUN_COMPLETED, UpdateKind.RUN_FAILED, UpdateKind.RUN_CANCELLED}


class Example:
    """A running example: requests to its app, and what happens to runs."""

    def __init__(self, dev: DevServer, http: aiohttp.ClientSession, updates: AsyncIterator[RunUpdate]) -> None:
        self.dev = dev
        self._http = http
        self._updates = updates

    async def post(self, path: str, body: Any = None) -> None:
        async with self._http.post(path, json=body) as response:
            assert response.status == 202, await response.text()

    async def until(self, *kinds: UpdateKind) -> RunUpdate:
        async with asyncio.timeout(30):
            async for update in self._updates:
                if update.kind in kinds:
                    return update
        raise AssertionError("the engine stopped")

    async def output(self, function_id: str) -> Any:
        """The output of the next run of the function that ends."""
        while True:
            update = await self.until(*ENDS)
            if update.function_id == function_id:
                assert update.kind is UpdateKind.RUN_COMPLETED, update.error
                assert update.output is not None
                return json.loads(bytes(update.output))


@asynccontextmanager
async def running(target: str, directory: Path) -> AsyncIterator[Example]:
    options = DevOptions(target=f"examples.{target}", port=0, app_port=0, database=directory / "engine.db")
    async with DevServer(options) as dev:
        assert dev.app is not None
        async with aiohttp.ClientSession(dev.app.origin) as http:
            with dev.engine.watch() as updates:
                yield Example(dev, http, updates)


@pytest.fixture(autouse=True)
def _at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.slow
async def test_fastapi_example_ships_an_order(tmp_path: Path) -> None:
    async with running("fastapi_orders.app:app", tmp_path) as example:
        await example.post("/orders", {"id": "A-1", "total": 42})
        retry = await example.until(UpdateKind.RETRYING)
        assert retry.step == "charge-card"
        await example.until(UpdateKind.WAITING)
        await example.post("/orders/A-1/delivered?signed_by=Ada")
        assert await example.output("shop-fulfil-order") == {
            "order": "A-1",
            "status": "delivered",
            "signed_by": "Ada",
            "payment": "paid 42 for A-1",
            "receipt": "receipt-A-1.pdf",
            "stock": "shelf 7 for A-1",
        }


async def test_flask_example_ends_when_the_user_returns(tmp_path: Path) -> None:
    async with running("flask_signup.app:app", tmp_path) as example:
        await example.post("/signups/ada@example.com")
        await example.until(UpdateKind.WAITING)
        await example.post("/logins/ada@example.com")
        assert await example.output("signup-onboard") == "came back"


@pytest.mark.parametrize("application", ["application", "asgi_application"])
async def test_django_example_writes_a_report(application: str, tmp_path: Path) -> None:
    async with running(f"django_reports.app:{application}", tmp_path) as example:
        await example.post("/reports", {"regions": ["north", "south"]})
        assert await example.output("reports-build-report") == {"best": "north", "total": 44}


async def test_tornado_example_makes_thumbnails(tmp_path: Path) -> None:
    async with running("tornado_thumbnails.app:app", tmp_path) as example:
        await example.post("/pictures/cat.png")
        assert await example.output("pictures-make-thumbnails") == ["cat.png@64", "cat.png@256", "cat.png@1024"]

        await example.post("/pictures/cat.txt")
        assert await example.output("pictures-make-thumbnails-failure") == "removed what was made of cat.txt"


async def test_digital_ocean_example_handles_webhooks(tmp_path: Path) -> None:
    async with running("digital_ocean_webhooks.app:main", tmp_path) as example:
        url = "https://example.com/hook"
        await example.dev.engine.send_events([Event(name="webhook/requested", data={"url": url})])
        await example.until(UpdateKind.WAITING)
        await example.dev.engine.signal(f"retry {url}", True)
        assert await example.output("webhooks-deliver") == f"delivered to {url}"


@pytest.mark.slow
async def test_showcase_has_runs_of_every_kind(tmp_path: Path) -> None:
    async with running("showcase.app:app", tmp_path) as example, asyncio.timeout(60):
        engine = example.dev.engine
        await send_events(engine)
        expected = {
            ("import-catalogue", RunStatus.COMPLETED),
            ("pack-parcel", RunStatus.COMPLETED),
            ("print-label", RunStatus.COMPLETED),
            ("settle-invoice", RunStatus.COMPLETED),
            ("settle-invoice", RunStatus.FAILED),
            ("approve-refund", RunStatus.CANCELLED),
            ("report-sales", RunStatus.COMPLETED),
            ("ask-for-review", StepStatus.SLEEPING),
            ("approve-refund", StepStatus.WAITING),
            ("update-accounts", StepStatus.RETRYING),
            ("resize-photos", RunStatus.RUNNING),
            ("resize-photos", RunStatus.SCHEDULED),
            ("send-newsletter", RunStatus.SKIPPED),
        }
        seen: set[tuple[str, str]] = set()

        async def missing() -> set[tuple[str, str]]:
            for run in await engine.list_runs(limit=100):
                name = run.function_id.removeprefix("back-office-")
                seen.update({(name, run.status)}, {(name, step.status) for step in await engine.run_steps(run.id)})
            return expected - seen

        await async_eventually(missing, "the showcase has each kind of run", is_right=lambda left: not left)
        [misspelled] = await engine.list_events(name="refund/requestd")
        assert await engine.event_runs(misspelled.id) == []


def test_demo_shows_a_run_and_exits_with_0() -> None:
    demo = subprocess.run(
        [sys.executable, "-m", "examples.demo"],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "160"},  # a plugin of pytest's may have set a narrow terminal
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert demo.returncode == 0, demo.stdout + demo.stderr
    for shown in ("charge-card", "the payment provider hung up", "send-receipt", "reserve-stock", "sleeps", "waits"):
        assert shown in demo.stdout, demo.stdout
    assert '"status":"delivered"' in demo.stdout
    assert re.search(r"^Look at the run: http://127\.0\.0\.1:\d+/runs/\w{26}$", demo.stdout, re.MULTILINE)
    assert r"\n" not in demo.stdout, "no line break is shown escaped"


def test_dev_ends_with_the_link_and_takes_any_port(tmp_path: Path) -> None:
    log = tmp_path / "dev.log"
    with log.open("w") as output:
        dev = subprocess.Popen(
            [sys.executable, "-m", "examples.demo", "--stay", "--port", "0", "--app-port", "0"],
            cwd=ROOT,
            env={**os.environ, "COLUMNS": "160"},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            link = re.compile(r"^Runs of every kind: http://127\.0\.0\.1:\d+/$", re.MULTILINE)
            for _ in range(600):
                if dev.poll() is not None or link.search(log.read_text()):
                    break
                time.sleep(0.1)
            shown = log.read_text()
            assert link.search(shown), shown
        finally:
            dev.send_signal(signal.SIGINT)
            dev.wait(30)
    assert len(re.findall(r"shop-fulfil-order +■  run completed", shown)) == 1, "each update is printed once"
