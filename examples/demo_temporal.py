"""``make demo-temporal``: Temporal's development server, a worker and a FastAPI app; one order shipped, one cancelled.

Runs ``durably temporal dev main:app`` in ``examples/temporal_fastapi``, as a person would, and is a client of that
app: it places orders, follows them live, asks, signals and cancels, and prints what it asked and what came back.
"""

import asyncio
import contextlib
import json
import os
import re
import secrets
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

EXAMPLE = Path(__file__).parent / "temporal_fastapi"
STAFF_TOKEN = secrets.token_hex()
START_SECONDS = 60.0


class DemoFailedError(Exception):
    """Something did not go as a demo should; the message says what."""


async def main() -> None:
    print("$ durably temporal dev main:app")
    async with serve() as origin, aiohttp.ClientSession(origin) as http:
        shop = Shop(http)

        print("\nAn order, followed live while the warehouse works, and shipped.\n")
        await shop.post("/orders", {"order_id": "A-1"})
        async for event in shop.follow("order-A-1"):
            if is_processed(event):
                await shop.post("/api/orders/order-A-1/signals/ship")
        await shop.get("/orders/order-A-1", status="COMPLETED")

        print("\nAnother, asked how it is, held, and cancelled: what it had reserved is put back.\n")
        await shop.post("/orders", {"order_id": "A-2"})
        async for event in shop.follow("order-A-2"):
            if is_processed(event):
                await shop.get("/api/orders/order-A-2/queries/status")
                await shop.post("/api/orders/order-A-2/signals/hold", {"reason": "the customer moves house"})
                await shop.get("/api/orders/order-A-2/queries/status", result="on hold: the customer moves house")
                await shop.post("/orders/order-A-2/cancel")
        await shop.get("/orders/order-A-2", status="CANCELED")


def is_processed(event: dict[str, Any]) -> bool:
    return event.get("type") == "activity_task_completed" and event.get("name") == "process_order"


class Shop:
    """The example's app over HTTP. Each request and its answer are printed."""

    def __init__(self, http: aiohttp.ClientSession) -> None:
        self._http = http

    async def get(self, path: str, **expected: str) -> None:
        """``expected`` are members that the answer must have. Raises ``DemoFailedError``."""
        answer = await self._request("GET", path)
        if not expected.items() <= answer.items():
            raise DemoFailedError(f"{path} should answer with {expected}, not with {answer}")

    async def post(self, path: str, body: object = None) -> None:
        """Raises ``DemoFailedError``."""
        await self._request("POST", path, body)

    async def follow(self, workflow_id: str) -> AsyncIterator[dict[str, Any]]:
        """The events of a workflow until it ends, from the gateway. Raises ``DemoFailedError``."""
        path = f"/api/orders/{workflow_id}/events"
        print(f"GET {path}")
        async with self._http.get(path, headers=_headers(path)) as response:
            kind = ""
            async for line in response.content:
                name, _, value = line.decode().strip().partition(": ")
                if name == "event":
                    kind = value
                elif name == "data":
                    event = json.loads(value)
                    print(f"    {kind:<36} {_describe(event)}".rstrip())
                    yield event
        if kind not in ("result", "problem"):
            raise DemoFailedError(f"the events of {workflow_id} ended before the workflow did")

    async def _request(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        without = ["Content-Type"] if body is None else []  # aiohttp would name a type even of no body at all
        async with self._http.request(
            method, path, json=body, headers=_headers(path), skip_auto_headers=without
        ) as response:
            answer: dict[str, Any] = await response.json(content_type=None)
        sent = "" if body is None else f" {json.dumps(body)}"
        shown = {name: value for name, value in answer.items() if name != "links"}
        print(f"{method} {path}{sent}\n    {response.status} {json.dumps(shown)}")
        if not response.ok:
            raise DemoFailedError(f"{method} {path} was refused: {answer.get('detail', response.reason)}")
        return answer


def _headers(path: str) -> dict[str, str]:
    """Only the gateway's endpoints get credentials."""
    return {"Authorization": f"Bearer {STAFF_TOKEN}"} if path.startswith("/api/") else {}


def _describe(event: dict[str, Any]) -> str:
    attempt = f"attempt {event['attempt']}" if event.get("attempt", 1) > 1 else ""
    parts = (event.get("name"), attempt, event.get("result"), event.get("detail"))
    return ", ".join(str(each) for each in parts if each)


@contextlib.asynccontextmanager
async def serve() -> AsyncIterator[str]:
    """The example's origin, while all of it runs. Raises ``DemoFailedError`` with the log where it does not start."""
    with tempfile.TemporaryDirectory() as directory:
        options = ["--port", "0", "--ui-port", "0", "--app-port", "0", "--db", f"{directory}/temporal.db"]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "durably.cli", "temporal", "dev", "main:app", "--no-reload", *options),
            cwd=EXAMPLE,
            env={**os.environ, "STAFF_TOKEN": STAFF_TOKEN},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        assert process.stdout is not None
        log: list[str] = []
        try:
            async with asyncio.timeout(START_SECONDS):
                origin = await _wait_until_up(process.stdout, log)
            reading = asyncio.create_task(_read(process.stdout, log))
            yield origin
        except (TimeoutError, DemoFailedError, aiohttp.ClientError) as error:
            raise DemoFailedError(f"{''.join(log)}\n{error}") from error
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()
        await reading


async def _wait_until_up(output: asyncio.StreamReader, log: list[str]) -> str:
    """Until the worker works and the app accepts; prints what the command says of its parts."""
    origin, is_working = None, False
    async for line in output:
        log.append(line.decode())
        if re.match("Temporal at|working on|main:app is up", log[-1]):
            print(log[-1], end="")
        is_working |= log[-1].startswith("working on")
        origin = origin or re.search(r"main:app is up at (\S+)", log[-1])
        if is_working and origin:
            return origin[1]
    raise DemoFailedError("the command ended before the app was up")


async def _read(output: asyncio.StreamReader, log: list[str]) -> None:
    """Read the output into the log, so that a full pipe does not stop the processes that write."""
    async for line in output:
        log.append(line.decode())


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except DemoFailedError as failure:
        sys.exit(str(failure))
    except KeyboardInterrupt:
        sys.exit(0)
