"""An app that speaks the protocol by hand, over real HTTP: functions are plain code over ``Steps``.

A step without a memo ends the call; several are found at once with ``Steps.parallel``. What was called, and how
often each step was executed, is kept for tests to look at.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from aiohttp import web

from durably.protocol.call import CallRequest, decode_call
from durably.protocol.headers import DISCOVER
from durably.protocol.opcodes import hash_step_id
from durably.protocol.signatures import sign
from durably.protocol.sync import SyncRequest, decode_sync

SDK_HEADERS = {"x-inngest-sdk": "py:v0.0.1", "x-inngest-req-version": "2"}


class Found(BaseException):
    def __init__(self, *ops: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        self.ops = list(ops)
        self.headers = headers or {}


class StepFailed(Exception):
    """The memo of a step is an error."""


class Raised(Exception):
    """Raise in a step or function, to choose the headers of the answer."""

    def __init__(self, message: str, **headers: str) -> None:
        super().__init__(message)
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class Steps:
    def __init__(self, app: "SmallApp", call: CallRequest, memos: dict[str, Any], target: str) -> None:
        self.app, self.call, self.memos, self.target = app, call, memos, target
        self.event = call.event
        self.attempt = call.ctx.attempt

    def run(self, step_id: str, work: Callable[[], Any] = lambda: None) -> Any:
        return self.parallel(self.running(step_id, work))[0]

    def options(self, step_id: str, op: str, **opts: Any) -> Any:
        return self.parallel(self.asking(step_id, op, **opts))[0]

    def sleep(self, step_id: str, duration: str) -> None:
        self.options(step_id, "Sleep", duration=duration)

    def wait_for_event(self, step_id: str, event: str, timeout: str = "1h", expression: str | None = None) -> Any:
        return self.options(
            step_id, "WaitForEvent", event=event, timeout=timeout, **({"if": expression} if expression else {})
        )

    def invoke(self, step_id: str, function_id: str, data: Any = None, timeout: str | None = None) -> Any:
        return self.options(
            step_id, "InvokeFunction", function_id=function_id, payload={"data": data or {}}, timeout=timeout
        )

    # parallel: a branch is a memo's reader, and what it asks for where there is none

    def running(self, step_id: str, work: Callable[[], Any] = lambda: None, *, race: bool = False) -> "Branch":
        return Branch(step_id, {"op": "StepRun", "opts": {"parallelMode": "race"} if race else None}, work)

    def wait_registered(self, step_id: str, event: str, expression: str | None = None) -> Any:
        """Wait for an event beside a step whose call follows the registration of the wait.

        A test that has seen the calls can send the event.
        """
        opts = {"event": event, "timeout": "1h", **({"if": expression} if expression else {})}
        self.parallel(self.asking(step_id, "WaitForEvent", **opts), self.running("registered"))
        return self.wait_for_event(step_id, event, expression=expression)

    def asking(self, step_id: str, op: str, **opts: Any) -> "Branch":
        return Branch(step_id, {"op": op, "opts": opts}, None)

    def parallel(self, *branches: "Branch") -> list[Any]:
        missing = [branch for branch in branches if hash_step_id(branch.step_id) not in self.memos]
        if missing:
            self._find(missing)
        return [self._memo(branch) for branch in branches]

    def has(self, step_id: str) -> bool:
        return hash_step_id(step_id) in self.memos

    def _memo(self, branch: "Branch") -> Any:
        memo = self.memos[hash_step_id(branch.step_id)]
        if isinstance(memo, dict) and "error" in memo:
            raise StepFailed(memo["error"]["message"], memo["error"]["name"])
        return memo["data"] if isinstance(memo, dict) and set(memo) == {"data"} else memo

    def _find(self, missing: list["Branch"]) -> None:
        if self.target != DISCOVER:
            for branch in missing:
                if hash_step_id(branch.step_id) == self.target:
                    self._execute(branch)
            raise Found({"id": self.target, "op": "StepNotFound"})
        if len(missing) == 1 and not self.call.ctx.disable_immediate_execution:
            self._execute(missing[0])
        raise Found(*(branch.planned() if branch.work else branch.op() for branch in missing))

    def _execute(self, branch: "Branch") -> None:
        if branch.work is None:
            raise Found(branch.op())
        self.app.executions[branch.step_id] += 1
        try:
            raise Found({**branch.op(), "data": branch.work()})
        except Exception as error:
            op = {**branch.op(), "op": "StepError", "error": {"name": type(error).__name__, "message": str(error)}}
            raise Found(op, headers=getattr(error, "headers", None)) from None


class Branch:
    def __init__(self, step_id: str, parts: dict[str, Any], work: Callable[[], Any] | None) -> None:
        self.step_id, self.parts, self.work = step_id, parts, work

    def op(self) -> dict[str, Any]:
        named = {"id": hash_step_id(self.step_id), "name": self.step_id, "displayName": self.step_id}
        return {**named, **self.parts, "userland": {"id": self.step_id}}

    def planned(self) -> dict[str, Any]:
        return {**self.op(), "op": "StepPlanned"}


Handler = Callable[[Steps], Any]


class SmallApp:
    """``before`` may answer a call itself; ``gate`` holds calls back while it is cleared. Answers are signed with the
    ``signing_key``, if there is one."""

    def __init__(self, app_id: str = "app") -> None:
        self.app_id = app_id
        self.functions: dict[str, tuple[Handler, dict[str, Any]]] = {}
        self.calls: list[CallRequest] = []
        self.requests: list[web.Request] = []
        self.bodies: list[bytes] = []
        self.executions: Counter[str] = Counter()
        self.before: Callable[[CallRequest], web.StreamResponse | None] = lambda call: None
        self.gate = asyncio.Event()
        self.gate.set()
        self.called = asyncio.Condition()
        self.url = ""
        self.signing_key: str | None = None

    def function(self, name: str, *, event: str | None = None, **config: Any) -> Callable[[Handler], Handler]:
        def register(handler: Handler) -> Handler:
            triggers = config.pop("triggers", [{"event": event or name}])
            self.functions[f"{self.app_id}-{name}"] = (handler, {"triggers": triggers, **config})
            return handler

        return register

    def sync_request(self) -> SyncRequest:
        return decode_sync(msgspec.json.encode(self.sync_body()))

    def sync_body(self) -> dict[str, Any]:
        functions = []
        for function_id, (_, config) in self.functions.items():
            config = dict(config)
            retries = {"attempts": config.pop("retries", 4)}
            url = f"{self.url}?fnId={function_id}&stepId=step"
            step = {"id": "step", "name": "step", "runtime": {"type": "http", "url": url}, "retries": retries}
            functions.append({"id": function_id, "name": function_id, "steps": {"step": step}, **config})
        return {"url": self.url, "appName": self.app_id, "sdk": "py:v0", "functions": functions}

    async def wait_for_calls(self, count: int) -> None:
        async with self.called:
            await self.called.wait_for(lambda: len(self.calls) >= count)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        call = decode_call(body)
        self.calls.append(call)
        self.requests.append(request)
        self.bodies.append(body)
        async with self.called:
            self.called.notify_all()
        await self.gate.wait()
        answer = self.before(call)
        if answer is not None:
            return answer
        steps = Steps(self, call, msgspec.json.decode(body)["steps"], request.query["stepId"])
        answered = self.run(steps, request.query["fnId"])
        if self.signing_key:
            assert isinstance(answered.body, bytes)
            answered.headers["x-inngest-signature"] = sign(answered.body, self.signing_key, int(time.time()))
        return answered

    def run(self, steps: Steps, function_id: str) -> web.Response:
        handler, _ = self.functions[function_id]
        try:
            result = handler(steps)
            return reply(200, result)
        except Found as found:
            return reply(206, found.ops, found.headers)
        except Exception as error:
            content = {"name": type(error).__name__, "message": str(error), "code": "unknown", "stack": None}
            return reply(500, content, getattr(error, "headers", None))


def reply(status: int, content: Any, headers: dict[str, str] | None = None) -> web.Response:
    body = msgspec.json.encode(content)
    headers = {**SDK_HEADERS, "content-type": "application/json", **(headers or {})}
    return web.Response(status=status, body=body, headers=headers)


@asynccontextmanager
async def serving(
    site: web.Application | Callable[[Any], Awaitable[web.StreamResponse]], port: int = 0
) -> AsyncIterator[str]:
    """The origin of a server with an application, or with one handler for all requests."""
    runner = (
        web.AppRunner(site, access_log=None, shutdown_timeout=0.1)
        if isinstance(site, web.Application)
        else web.ServerRunner(web.Server(site, access_log=None), shutdown_timeout=0.1)
    )
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def serve(app: SmallApp, port: int = 0) -> AsyncIterator[SmallApp]:
    """On a real port, which is kept in ``app.url``."""
    site = web.Application(client_max_size=64 * 1024 * 1024)
    site.router.add_post("/api/inngest", app.handle)
    async with serving(site, port) as origin:
        app.url = f"{origin}/api/inngest"
        try:
            yield app
        finally:
            app.gate.set()
