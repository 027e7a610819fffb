"""Middleware classes that were written for the ``inngest`` package: they work, or are refused by name."""

import asyncio
import functools
from collections.abc import Iterator
from typing import Any

import inngest
import inngest_encryption
import pytest
from inngest._internal import server_lib

from durably import Client, Context, ContextSync, Event, MiddlewareSync
from durably.errors import FunctionConfigInvalidError

from ..execution.engine import Run, complete, engine_for
from ..fake_engine import FakeEngine as HTTPEngine
from ..fake_engine import serving_fake_engine

OFFICIAL_HOOKS = (
    "transform_input",
    "before_execution",
    "after_execution",
    "transform_output",
    "before_response",
    "before_send_events",
    "after_send_events",
)
KINDS = [(function, middleware) for function in ("async", "sync") for middleware in ("async", "sync")]


def client_with(*middleware: Any, **options: Any) -> Client:
    return Client(app_id="app", is_production=False, middleware=list(middleware), **options)


@pytest.fixture(params=KINDS, ids=lambda kinds: "{} function, {} middleware".format(*kinds))
def kinds(request: pytest.FixtureRequest) -> tuple[str, str]:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def http_engine() -> Iterator[HTTPEngine]:
    with serving_fake_engine() as engine:
        yield engine


async def one_step(ctx: Context) -> str:
    return await ctx.step.run("a", str, "output")


def one_step_sync(ctx: ContextSync) -> str:
    return ctx.step.run("a", str, "output")


def recording(log: list[str], kind: str) -> Any:
    """A middleware class of ``inngest`` with all of its hooks, which uses its arguments as such classes do."""

    def note(hook: str, self: Any, args: tuple[Any, ...]) -> None:
        log.append(hook)
        assert self.client.app_id == "app"
        self.client.logger.debug("a hook")
        if hook == "transform_input":
            ctx, function, steps = args
            assert (ctx.run_id, function.local_id.partition("_")[0], len(ctx.events)) == ("01RUN", "one", 1)
            assert [memo.error for memo in steps.values()] == [None] * steps.size
            ctx.event.data = {"changed": True}
        elif hook == "transform_output":
            (result,) = args
            if result.step is not None:
                assert result.step.op is server_lib.Opcode.STEP_RUN
                assert result.has_output()
            result.output = f"changed {result.output}"

    def make(hook: str) -> Any:
        def record(self: Any, *args: Any) -> None:
            note(hook, self, args)

        async def record_later(self: Any, *args: Any) -> None:
            await asyncio.sleep(0)
            note(hook, self, args)

        return record_later if kind == "async" else record

    base = inngest.Middleware if kind == "async" else inngest.MiddlewareSync
    return type("Recording", (base,), {hook: make(hook) for hook in OFFICIAL_HOOKS})


@pytest.mark.parametrize("blocking", [True, False])
async def test_middleware_of_inngest_runs_in_every_call(kinds: tuple[str, str], blocking: bool) -> None:
    function, middleware = kinds
    log: list[str] = []
    handler = one_step if function == "async" else one_step_sync
    output = await complete(handler, client=client_with(recording(log, middleware)), blocking=blocking)
    assert output == "changed changed output"
    assert log == list(OFFICIAL_HOOKS[:5]) * 2


async def test_its_base_classes_are_middleware_without_any_hook_of_ours(kinds: tuple[str, str]) -> None:
    function, middleware = kinds
    base = inngest.Middleware if middleware == "async" else inngest.MiddlewareSync
    assert await complete(one_step if function == "async" else one_step_sync, client=client_with(base)) == "output"


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_it_may_send_events_of_its_own_class(kind: str, http_engine: HTTPEngine) -> None:
    class Extra(inngest.MiddlewareSync):
        def before_send_events(self, events: list[Any]) -> None:
            events.append(inngest.Event(name="extra", data={"n": 1}, id="x"))

    class ExtraLater(inngest.Middleware):
        async def before_send_events(self, events: list[Any]) -> None:
            events.append(inngest.Event(name="extra", data={"n": 1}, id="x"))

    client = client_with(Extra if kind == "sync" else ExtraLater, event_api_base_url=http_engine.origin)
    await client.send(Event(name="own"))
    await asyncio.to_thread(client.send_sync, Event(name="own"))
    for request in http_engine.to("/e/"):
        assert [(event["name"], event["data"]) for event in request.json] == [("own", {}), ("extra", {"n": 1})]
        assert request.json[1]["id"] == "x"


SECRET = "the key of the app"
REFUSED = {
    "factory": inngest_encryption.EncryptionMiddleware.factory(SECRET),
    "partial": functools.partial(inngest_encryption.EncryptionMiddleware, secret_key=SECRET),
}


@pytest.mark.parametrize("middleware", REFUSED.values(), ids=REFUSED.keys())
def test_encryption_that_leaves_data_in_the_clear_is_refused_by_name(middleware: Any) -> None:
    client = client_with()
    make = client.create_function
    constructions: dict[str, Any] = {
        "Client.middleware": lambda: client_with(middleware),
        "Client.add_middleware": lambda: client.add_middleware(middleware),
        'function "f"': lambda: make(fn_id="f", trigger=[], middleware=[middleware])(one_step),
    }
    for where, construct in constructions.items():
        with pytest.raises(FunctionConfigInvalidError) as caught:
            construct()
        message = str(caught.value)
        assert message.startswith(where)
        assert "EncryptionMiddleware of inngest_encryption" in message
        assert "durably.encryption.EncryptionMiddleware" in message
        assert SECRET not in message


async def test_a_function_that_makes_refused_middleware_is_found_out_before_anything_is_sent(
    http_engine: HTTPEngine,
) -> None:
    class Derived(inngest_encryption.EncryptionMiddleware):
        pass

    client = client_with(
        lambda client, request: Derived(client, request, SECRET), event_api_base_url=http_engine.origin
    )
    with pytest.raises(FunctionConfigInvalidError, match="Derived of inngest_encryption"):
        await client.send(Event(name="e", data={"encrypted": "secret"}))
    assert http_engine.to("/e/") == []
    run = Run({"name": "e", "data": {}, "id": "1", "ts": 1})
    await engine_for(one_step, client=client, max_attempts=1).drive(run)
    assert "Derived of inngest_encryption" in run.output["message"]


def test_a_hook_that_is_not_called_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A later version of the package may have more hooks; unused new hooks do no harm."""
    monkeypatch.setattr(inngest.Middleware, "before_retry", lambda self: None, raising=False)
    client_with(type("Fine", (inngest.Middleware,), {}))
    with pytest.raises(FunctionConfigInvalidError, match=r"Broken, written for .* does not call: before_retry"):
        client_with(type("Broken", (inngest.Middleware,), {"before_retry": lambda self: None}))


def test_an_unknown_version_of_the_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(server_lib, "Opcode")
    with pytest.raises(FunctionConfigInvalidError, match="Some was written for a version of the inngest package"):
        client_with(type("Some", (inngest.Middleware,), {}))


class NoHooks:
    def __init__(self, client: Any, request: Any) -> None:
        pass


UNUSABLE = {
    "an object": (MiddlewareSync(None, None), "not as 'MiddlewareSync' object"),  # type: ignore[arg-type]
    "a class without hooks": (NoHooks, "NoHooks has none of the hooks"),
}


@pytest.mark.parametrize(("middleware", "message"), UNUSABLE.values(), ids=UNUSABLE.keys())
def test_non_middleware_is_refused_at_construction(middleware: Any, message: str) -> None:
    with pytest.raises(FunctionConfigInvalidError, match=message):
        client_with(middleware)


async def test_a_factory_that_makes_nothing_fails_the_call() -> None:
    run = Run({"name": "e", "data": {}, "id": "1", "ts": 1})
    await engine_for(one_step, client=client_with(lambda client, request: None), max_attempts=1).drive(run)
    assert "NoneType has none of the hooks" in run.output["message"]
