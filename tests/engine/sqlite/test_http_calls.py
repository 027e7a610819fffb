"""The request of a call, and what becomes of each kind of answer."""

import datetime as dt
import json
import socket
import threading
from pathlib import Path

import msgspec
import pytest
import rfc8785
from aiohttp import web

from durably.engine.core import calls
from durably.engine.core.calls import Answer, AnswerVerification, CallData, build_body, to_sign
from durably.engine.model.functions import SyncedFunction
from durably.engine.model.runs import UpdateKind
from durably.engine.model.settings import EngineSettings
from durably.engine.sqlite import call_dispatch
from durably.engine.sqlite.after_commit import ScheduledCall
from durably.engine.sqlite.engine import SqliteEngine
from durably.protocol.headers import ServerKind
from durably.protocol.signatures import verify

from ..conftest import QUICK, ended, only_run, opened, output, run_to_end, send
from ..small_app import SmallApp, Steps, serve

KEY = "signkey-test-0123456789abcdef0123456789abcdef"


def simple(app: SmallApp, *, retries: int = 0) -> None:
    @app.function("simple", retries=retries)
    def run(steps: Steps) -> object:
        return "fine"


async def test_call_content_from_memory_equals_the_stored_content(
    engine: SqliteEngine, app: SmallApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    @app.function("mixed", retries=1)
    def mixed(steps: Steps) -> object:
        steps.run("a", lambda: 1)
        steps.parallel(steps.running("b", lambda: 2), steps.running("c", lambda: 3))
        steps.sleep("pause", "10ms")
        steps.run("large", lambda: "x" * 5000)
        return steps.run("last", lambda: 4)

    from_memory: dict[str, list[bool]] = {"small": [], "large": []}
    call = call_dispatch.CallDispatcher._call

    async def compare(self: call_dispatch.CallDispatcher, scheduled: ScheduledCall, data: CallData) -> Answer:
        generations = [each.generation for each in (data.call, *data.also)]
        stored = await self._reader.read(
            lambda connection: call_dispatch.read_call(connection, scheduled.run_key, generations)
        )
        assert stored is not None
        memos = [*data.memos]
        # A step that runs beside this call's may have ended since the call was made.
        assert [*stored.memos][: len(memos)] == memos
        assert build_body(data) == build_body(msgspec.structs.replace(stored, memos=memos))
        from_memory["large" if len(json.loads(data.events[0])["data"].get("text", "")) else "small"].append(
            isinstance(data.memos, tuple) or not data.memos
        )
        return await call(self, scheduled, data)

    monkeypatch.setattr(call_dispatch.CallDispatcher, "_call", compare)
    await engine.sync_app(app.sync_request())
    assert output(await run_to_end(engine, "mixed")) == 4
    assert output(await run_to_end(engine, "mixed", text="x" * 5000)) == 4
    # Discovery and a; discovery that finds b and c; these; and so on.
    assert from_memory["small"][:2] == [True, True]
    assert not from_memory["small"][-1]
    assert not any(from_memory["large"][1:])


async def test_the_calls_of_a_sequential_run_are_made_without_reading(
    engine: SqliteEngine, app: SmallApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    @app.function("sequential")
    def sequential(steps: Steps) -> object:
        return [steps.run(f"step {number}", lambda number=number: number) for number in range(5)]  # type: ignore[misc]

    reads: list[int] = []
    read_call = call_dispatch.read_call
    monkeypatch.setattr(call_dispatch, "read_call", lambda *args: [reads.append(1), read_call(*args)][1])
    await engine.sync_app(app.sync_request())
    assert output(await run_to_end(engine, "sequential")) == [0, 1, 2, 3, 4]
    assert len(app.calls) == 6
    assert not reads


async def test_signed_calls_are_canonical(path: Path, app: SmallApp) -> None:
    """Their signature holds for the bytes as they are, and in canonical form; of a database from unsigned days too."""

    @app.function("numbers")
    def numbers(steps: Steps) -> object:
        steps.run("a", lambda: {"z": 1.0, "a": [1e21, 0.1, -0.0, "é\u2028\U0001f600"], "\U0001f600": 1, "\ufb33": 2})
        steps.sleep("later", "20ms")

    app.signing_key = KEY
    signed = msgspec.structs.replace(QUICK, signing_key=KEY, server_kind=ServerKind.CLOUD)
    for settings in (signed, QUICK, signed):
        async with opened(path, settings) as engine:
            await engine.sync_app(app.sync_request())
            await run_to_end(engine, "numbers", f=2.50, b={"y": None, "x": 1e3})

    for body, request in zip(app.bodies, app.requests, strict=True):
        if signature := request.headers.get("x-inngest-signature"):
            assert body == rfc8785.dumps(json.loads(body))
            assert verify(body, signature, [KEY], dt.datetime.now(dt.UTC).timestamp()) == KEY
            assert request.headers["x-inngest-server-kind"] == "cloud"
    assert len([request for request in app.requests if "x-inngest-signature" in request.headers]) == 6


def bare(status: int, body: bytes, **headers: str) -> web.Response:
    return web.Response(status=status, body=body, headers={name.replace("_", "-"): v for name, v in headers.items()})


DEEP = b"[" * 100_000 + b"]" * 100_000


@pytest.mark.parametrize(
    ("status", "content", "reason"),
    [
        (200, DEEP, "the function's return value cannot be read"),
        (206, b'[{"id":"a","op":"StepRun","data":' + DEEP + b"}]", "is not a list of ops"),
        (201, b'{"status":200,"headers":{},"body":' + DEEP + b"}", "malformed"),
    ],
)
async def test_an_answer_nested_too_deeply_fails_the_run_at_once(
    engine: SqliteEngine, app: SmallApp, status: int, content: bytes, reason: str
) -> None:
    simple(app, retries=3)
    app.before = lambda call: bare(status, content, x_inngest_sdk="py:v1")
    await engine.sync_app(app.sync_request())
    run = await run_to_end(engine, "simple")
    assert (output(run)["name"], len(app.calls)) == ("AnswerInvalidError", 1)
    assert reason in output(run)["message"]
    assert "nested too deeply" in output(run)["message"]


async def test_an_app_that_is_down_is_called_until_it_is_back(engine: SqliteEngine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    app = SmallApp()
    app.url = f"http://127.0.0.1:{port}/api/inngest"
    simple(app)
    await engine.sync_app(app.sync_request())
    with engine.watch() as updates:
        run_id = await only_run(engine, await send(engine, "simple"))
        unreached = 0
        async for update in updates:
            unreached += update.kind == UpdateKind.UNREACHED
            if unreached == 3:
                assert update.error is not None
                assert f"127.0.0.1:{port}" in update.error
                break
    async with serve(app, port):
        run = await ended(engine, run_id)
    assert output(run) == "fine"
    assert [call.ctx.attempt for call in app.calls] == [0]


async def test_a_call_that_takes_too_long(path: Path, app: SmallApp) -> None:
    simple(app)
    settings: EngineSettings = msgspec.structs.replace(QUICK, call_timeout=dt.timedelta(milliseconds=50))
    async with opened(path, settings) as engine:
        app.gate.clear()
        await engine.sync_app(app.sync_request())
        run = await run_to_end(engine, "simple")
        assert output(run)["name"] == "CallTimeoutError"


async def test_no_more_calls_than_allowed_are_under_way(path: Path, app: SmallApp) -> None:
    simple(app)
    settings: EngineSettings = msgspec.structs.replace(QUICK, max_calls=3)
    async with opened(path, settings) as engine:
        await engine.sync_app(app.sync_request())
        app.gate.clear()
        runs = [await only_run(engine, await send(engine, "simple")) for _ in range(8)]
        await app.wait_for_calls(3)
        flying = [call.in_flight for run_id in runs for call in await engine.run_calls(run_id)]
        assert flying == [True] * 3 + [False] * 5
        app.gate.set()
        assert [output(await ended(engine, run_id)) for run_id in runs] == ["fine"] * 8


async def test_a_large_call_is_canonicalised_off_the_event_loop(
    path: Path, app: SmallApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For apps of other SDKs. For a megabyte it may take 0.1 s."""

    @app.function("large")
    def large(steps: Steps) -> object:
        return steps.run("a", lambda: {"z": "x" * 20_000, "a": [1.50, 1e21, 2**60 + 1]})

    threads: list[threading.Thread] = []
    canonicalize = calls.canonicalize

    def note_thread(body: bytes) -> bytes | None:
        threads.append(threading.current_thread())
        return canonicalize(body)

    monkeypatch.setattr(calls, "canonicalize", note_thread)
    app.signing_key = KEY
    settings = msgspec.structs.replace(QUICK, signing_key=KEY)
    async with opened(path, settings) as engine:
        await engine.sync_app(app.sync_request())
        await run_to_end(engine, "large", number=2**53 + 1)
    assert len(threads) == len(app.bodies) == 2
    assert threads[0] is threading.current_thread()
    assert threads[1] is not threading.current_thread()
    sent = app.bodies[1]
    assert b'"number":9007199254740993' in sent
    assert b'{"a":[1.5,1e+21,1152921504606846977],"z":"xx' in sent
    now = dt.datetime.now(dt.UTC).timestamp()
    assert verify(to_sign(sent), app.requests[1].headers["x-inngest-signature"], [KEY], now) == KEY


async def test_a_large_call_of_durablys_app_is_signed_as_it_is(
    path: Path, app: SmallApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It verifies the bytes that it gets."""
    simple(app)
    app.signing_key = KEY
    monkeypatch.setattr(SyncedFunction, "signs_whole_answers", True)
    monkeypatch.setattr(AnswerVerification, "refuse", lambda *_: None)
    async with opened(path, msgspec.structs.replace(QUICK, signing_key=KEY)) as engine:
        await engine.sync_app(app.sync_request())
        await run_to_end(engine, "simple", z=2**53 + 1, text="x" * 20_000, a=1.50)
    (body,) = app.bodies
    assert b'{"z":9007199254740993,"text":"xx' in body
    now = dt.datetime.now(dt.UTC).timestamp()
    assert verify(body, app.requests[0].headers["x-inngest-signature"], [KEY], now) == KEY


async def test_events_and_memos_are_stored_as_they_came(path: Path, app: SmallApp) -> None:
    """A canonical form costs up to 0.1 s for a megabyte, during which nothing else would be stored."""

    @app.function("stored")
    def stored(steps: Steps) -> object:
        return steps.run("a", lambda: {"z": 1.0, "a": 2})

    app.signing_key = KEY
    async with opened(path, msgspec.structs.replace(QUICK, signing_key=KEY)) as engine:
        await engine.sync_app(app.sync_request())
        run = await run_to_end(engine, "stored", z=1.0, a=2)
        batch, memos = await engine.run_batch(run.id), await engine.run_actions(run.id)
    assert batch is not None
    assert b'"data":{"z":1.0,"a":2}' in bytes(batch)
    assert memos is not None
    assert b'{"z":1.0,"a":2}' in bytes(memos).replace(b" ", b"")
