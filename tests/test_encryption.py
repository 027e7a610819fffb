"""``durably.encryption``: no plaintext leaves the app, and all data is decrypted, also from and to other SDKs."""

import asyncio
import datetime as dt
import itertools
import json
from collections.abc import Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import inngest
import inngest_encryption
import pydantic
import pytest

import durably
from durably import Client, Context, ContextSync, Embedded, Event, TriggerEvent
from durably.comm import CommHandler
from durably.encryption import ALL_FIELDS, Cipher, DecryptionError, EncryptionMiddleware
from durably.engine.model.settings import EngineSettings
from durably.errors import FunctionConfigInvalidError
from durably.protocol.opcodes import hash_step_id
from durably.testing.engine import TestEngine

from .execution.engine import Run, engine_for
from .fake_engine import FakeEngine as HTTPEngine
from .fake_engine import serving_fake_engine

KEY = "a long key of the app"
SECRET = "4111-1111-1111-1111"
HEX_KEY = b"00112233445566778899aabbccddeeff" * 2


def client_with(*middleware: Any, **options: Any) -> Client:
    return Client(app_id="app", is_production=False, middleware=list(middleware), **options)


@pytest.fixture
def http_engine() -> Iterator[HTTPEngine]:
    with serving_fake_engine() as engine:
        yield engine


class Official:
    """The middleware of the ``inngest-encryption`` package, called as its SDK calls it."""

    def __init__(self, key: bytes | str, **options: Any) -> None:
        client = inngest.Inngest(app_id="app", is_production=False)
        self._middleware = inngest_encryption.EncryptionMiddleware(client, None, key, **options)

    def encrypt(self, output: Any) -> Any:
        """The output in the form that it sends."""
        result = inngest.TransformOutputResult(error=None, output=output, step=None)
        self._middleware.transform_output(result)
        return result.output

    def encrypt_event(self, data: dict[str, Any]) -> Any:
        event = inngest.Event(name="e", data=data)
        self._middleware.before_send_events([event])
        return event.data

    def decrypt_event(self, data: Any) -> Any:
        """The input of a function."""
        return self._middleware._decrypt_event_data(data)

    def decrypt(self, memo: Any) -> Any:
        return self._middleware._decrypt(memo)


VALUES = [{"a": [1, 2.5, None, "ü \U0001f600"]}, "text", 7, True, [], ""]
KEYS: list[tuple[bytes | str, bytes | str]] = [
    (KEY, KEY),
    (HEX_KEY, HEX_KEY),
    (HEX_KEY, bytes.fromhex(HEX_KEY.decode())),
]


@pytest.mark.parametrize(("theirs", "ours"), KEYS, ids=["text", "hex digits", "32 bytes"])
def test_encryption_is_compatible_with_the_official_package(theirs: bytes | str, ours: bytes | str) -> None:
    official, cipher = Official(theirs), Cipher(ours)
    for value in VALUES:
        assert cipher.decrypt(official.encrypt(value)) == value
        sealed = json.loads(json.dumps(cipher.encrypt(value)))
        assert official.decrypt(sealed) == value
        assert sealed.keys() == official.encrypt(value).keys()


# -- runs that one SDK began and the other goes on with


async def pay(ctx: Context) -> Any:
    card = await ctx.step.run("card", lambda: {"card": ctx.event.data["encrypted"]["card"]})
    receipt = await ctx.step.invoke_by_id("receipt", function_id="receipt", data={"encrypted": card, "shop": 1})
    answer = await ctx.step.wait_for_event("answer", event="answer", timeout=1000)
    return [card, receipt, answer and answer.data, [event.data["plain"] for event in ctx.events]]


def pay_sync(ctx: ContextSync) -> Any:
    card = ctx.step.run("card", lambda: {"card": ctx.event.data["encrypted"]["card"]})
    receipt = ctx.step.invoke_by_id("receipt", function_id="receipt", data={"encrypted": card, "shop": 1})
    answer = ctx.step.wait_for_event("answer", event="answer", timeout=1000)
    return [card, receipt, answer and answer.data, [event.data["plain"] for event in ctx.events]]


@pytest.mark.parametrize("handler", [pay, pay_sync])
async def test_run_moves_between_the_official_sdk_and_durably(handler: Any) -> None:
    official = Official(KEY)
    data = official.encrypt_event({"encrypted": {"card": SECRET}, "plain": True})
    replies = {
        "receipt": {"data": official.encrypt("receipt of theirs")},
        "answer": {"name": "answer", "data": official.encrypt_event({"encrypted": SECRET, "n": 1}), "id": "2", "ts": 1},
    }
    engine = engine_for(handler, client=client_with(EncryptionMiddleware.factory(KEY)), replies=replies)
    run = Run(
        {"name": "e", "data": data, "id": "1", "ts": 1},
        memos={hash_step_id("card"): {"data": official.encrypt({"card": "theirs"})}},
        stack=[hash_step_id("card")],
    )
    await engine.drive(run)
    assert official.decrypt(run.output) == [
        {"card": "theirs"},
        "receipt of theirs",
        {"encrypted": SECRET, "n": 1},
        [True],
    ]

    run = await engine.run(data=data)
    assert official.decrypt(run.memos[hash_step_id("card")]["data"]) == {"card": SECRET}
    [invoke] = [op for answer in run.answers[:-1] for op in answer.ops if op["op"] == "InvokeFunction"]
    assert official.decrypt_event(invoke["opts"]["payload"]["data"]) == {"encrypted": {"card": SECRET}, "shop": 1}
    assert SECRET not in json.dumps(run.bodies)
    assert not any(SECRET.encode() in answer.body for answer in run.answers)


async def test_events_are_read_by_the_official_sdk(http_engine: HTTPEngine) -> None:
    class Order(pydantic.BaseModel):
        encrypted: str
        n: int

    client = client_with(EncryptionMiddleware.factory(KEY), event_api_base_url=http_engine.origin)
    events = [
        Event(name="dict", data={"encrypted": SECRET, "n": 1}),
        Event(name="model", data=Order(encrypted=SECRET, n=1)),  # type: ignore[arg-type]
    ]
    await client.send(events)
    assert events[0].data == {"encrypted": SECRET, "n": 1}
    await asyncio.to_thread(client.send_sync, events)
    for request in http_engine.to("/e/"):
        for event in request.json:
            assert SECRET not in json.dumps(event)
            assert event["data"]["n"] == 1
            assert Official(KEY).decrypt_event(event["data"]) == {"encrypted": SECRET, "n": 1}


async def test_data_that_the_official_sdk_encrypted_as_a_whole_is_read() -> None:
    async def f(ctx: Context) -> Any:
        return ctx.event.data

    data = Official(KEY).encrypt({"a": SECRET}) | {"_inngest": {"kept": True}}
    run = await engine_for(f, client=client_with(EncryptionMiddleware.factory(KEY))).run(data=data)
    assert Cipher(KEY).decrypt(run.output) == {"a": SECRET, "_inngest": {"kept": True}}


# -- the engine knows nothing


def make_functions(client: Client) -> list[Any]:
    """All ways by which data leaves functions, except data that the engine must read."""

    @client.create_function(fn_id="echo", trigger=[])
    async def echo(ctx: Context) -> Any:
        return ctx.event.data["encrypted"]

    @client.create_function(fn_id="sent", trigger=TriggerEvent(event="sent"))
    def sent(ctx: ContextSync) -> Any:
        return ctx.step.run("a", lambda: ctx.event.data["encrypted"])

    @client.create_function(fn_id="later", trigger=durably.TriggerDeferred())
    async def later(ctx: Context) -> Any:
        return ctx.event.data["encrypted"]

    async def on_failure(ctx: Context) -> Any:
        return await ctx.step.run("original", lambda: ctx.event.data["event"]["data"])

    @client.create_function(fn_id="main", trigger=TriggerEvent(event="main"), on_failure=on_failure, retries=0)
    async def main(ctx: Context) -> Any:
        secret = ctx.event.data["encrypted"]["card"]
        data = {"encrypted": secret}
        ctx.defer("later", function=later, data=data)
        found = [await ctx.step.run("a", lambda: secret)]
        found += await asyncio.gather(
            ctx.step.invoke("first", function=echo, data=data),
            ctx.step.invoke("second", function=echo, data=data),
            ctx.step.run("parallel", lambda: [secret]),
        )
        found.append(await ctx.step.invoke("alone", function=echo, data=data))
        await ctx.step.send_event("send", Event(name="sent", data=data))
        event = await ctx.step.wait_for_event("wait", event="answer", timeout=dt.timedelta(seconds=20))
        found.append(event and event.data["encrypted"])
        if "fail" in ctx.event.data:
            raise durably.NonRetriableError("failed")
        return found

    @client.create_function(fn_id="finished", trigger=TriggerEvent(event="inngest/function.finished"))
    async def finished(ctx: Context) -> Any:
        return None if ctx.event.data["function_id"] == "app-finished" else ctx.event.data.get("result")

    return [echo, sent, main, finished, later]


FOUND = [SECRET, SECRET, SECRET, [SECRET], SECRET, SECRET]


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("fields", ["encrypted", ALL_FIELDS])
async def test_all_that_was_encrypted_comes_back(checkpointing: bool, fields: str) -> None:
    client = client_with(EncryptionMiddleware.factory(KEY, event_encryption_field=fields))
    main, sent = (functions := make_functions(client))[2], functions[1]
    open_run = Cipher(KEY).decrypt
    async with TestEngine(client, functions, checkpointing=checkpointing) as engine:
        run = await engine.send(Event(name="main", data={"encrypted": {"card": SECRET}}))
        await engine.send(Event(name="answer", data={"encrypted": SECRET}))
        assert open_run((await run.wait()).output) == FOUND
        [sent_run] = engine.runs(sent)
        assert open_run(sent_run.output) == SECRET
        results = [open_run(run.output) for run in engine.runs(functions[3])]
        assert FOUND in results
        assert SECRET in results
        [deferred] = engine.runs(functions[4])
        assert open_run((await deferred.wait()).output) == SECRET

        run = await engine.send(Event(name="main", data={"encrypted": {"card": SECRET}, "fail": True}))
        await engine.send(Event(name="answer", data={"encrypted": SECRET}))
        (await run.wait()).assert_failed(message="failed")
        [failure] = [run for run in engine.runs() if run.function_id == "app-main-failure"]
        assert open_run(failure.output)["encrypted"] == {"card": SECRET}
        assert engine.runs(main)[-1].status == "Failed"


@asynccontextmanager
async def in_process(client: Client, functions: list[Any]) -> Any:
    CommHandler(client=client, framework="test", functions=functions)
    assert client.engine is not None
    async with client.engine.running():  # type: ignore[attr-defined]
        yield client.engine


def read_all(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


@pytest.mark.parametrize("is_encrypted", [True, False], ids=["encrypted", "plain"])
async def test_the_database_holds_nothing_readable(tmp_path: Path, is_encrypted: bool) -> None:
    """Without encryption the same search finds the secret, so the search looks in the right place."""
    engine = Embedded(tmp_path / "durably.db", settings=EngineSettings(close_grace=dt.timedelta(0)))
    middleware = [EncryptionMiddleware.factory(KEY)] if is_encrypted else []
    client = client_with(*middleware, engine=engine)
    async with in_process(client, make_functions(client)), asyncio.timeout(20):
        for data in ({"encrypted": {"card": SECRET}}, {"encrypted": {"card": SECRET}, "fail": True}):
            [event_id] = await client.send(Event(name="main", data=data))
            while not (runs := await engine.event_runs(event_id)) or runs[0].ended_at is None:
                await client.send(Event(name="answer", data={"encrypted": SECRET}))
                await asyncio.sleep(0.02)
            assert runs[0].status == ("Failed" if "fail" in data else "Completed")
        files = read_all(tmp_path)
    assert any(b"main" in content for content in files.values())
    assert any(SECRET.encode() in content for content in files.values()) is not is_encrypted


# -- keys


async def echo_twice(ctx: Context) -> Any:
    return [ctx.event.data["encrypted"], await ctx.step.run("charge", lambda: SECRET), await ctx.step.run("b", str)]


def echo_twice_sync(ctx: ContextSync) -> Any:
    return [ctx.event.data["encrypted"], ctx.step.run("charge", lambda: SECRET), ctx.step.run("b", str)]


async def test_keys_rotate_without_an_interruption() -> None:
    """Deploy the new key for decryption, then for encryption, then remove the old key: runs continue."""
    stages = [(KEY, None), (KEY, ["new"]), ("new", [KEY]), ("new", None)]
    ciphers = [Cipher(key, fallbacks) for key, fallbacks in stages]
    for before, after in itertools.pairwise(ciphers):
        assert after.decrypt(before.encrypt("a")) == "a"
        assert before.decrypt(after.encrypt("a")) == "a"
    with pytest.raises(DecryptionError):
        ciphers[3].decrypt(ciphers[0].encrypt("a"))

    client = client_with(EncryptionMiddleware.factory("new", fallback_decryption_keys=["other", KEY]))
    memos = {hash_step_id("charge"): {"data": Cipher(KEY).encrypt("by the old key")}}
    event = {"name": "e", "data": {"encrypted": Cipher("other").encrypt("by another")}, "id": "1", "ts": 1}
    run = Run(event, memos=memos, stack=list(memos))
    await engine_for(echo_twice, client=client).drive(run)
    assert Cipher("new").decrypt(run.output) == ["by another", "by the old key", ""]


async def test_decrypt_only_encrypts_nothing_and_reads_all(http_engine: HTTPEngine) -> None:
    client = client_with(EncryptionMiddleware.factory(KEY, decrypt_only=True), event_api_base_url=http_engine.origin)
    await client.send(Event(name="e", data={"encrypted": "plain"}))
    assert http_engine.to("/e/")[0].json[0]["data"] == {"encrypted": "plain"}
    run = await engine_for(echo_twice, client=client).run(data={"encrypted": Cipher(KEY).encrypt("x")})
    assert run.output == ["x", SECRET, ""]


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("handler", [echo_twice, echo_twice_sync])
async def test_a_wrong_key_ends_the_call_and_names_the_step(handler: Any, checkpointing: bool) -> None:
    async def careful(ctx: Context) -> Any:
        try:
            return await ctx.step.run("charge", str)
        except Exception:
            return "swallowed"

    memos = {hash_step_id("charge"): {"data": Cipher("another key").encrypt(SECRET)}}
    for function in (handler, careful):
        client = client_with(EncryptionMiddleware.factory(KEY), checkpointing=checkpointing)
        run = Run({"name": "e", "data": {"encrypted": 1}, "id": "1", "ts": 1}, memos=dict(memos), stack=list(memos))
        await engine_for(function, client=client, max_attempts=2).drive(run)
        assert run.status == "Failed"
        assert run.output["name"] == "MemoUnreadableError"
        assert run.output["message"].startswith('step "charge": its output cannot be decrypted: none of the 1 keys')
        assert not run.answers[-1].no_retry
        assert SECRET not in json.dumps(run.output)
        assert KEY not in json.dumps(run.output)


async def test_undecryptable_event_is_named() -> None:
    client = client_with(EncryptionMiddleware.factory(KEY))
    run = await engine_for(echo_twice, client=client, max_attempts=1).run(data={"card": Cipher("b").encrypt(SECRET)})
    assert run.output["name"] == "DecryptionError"
    assert run.output["message"].startswith("the data of event 'test/event' (id ")
    assert "cannot be decrypted: in the field 'card': none of the 1 keys decrypts it" in run.output["message"]


UNREADABLE = {
    "no strategy": ({"__ENCRYPTED__": True, "data": "x"}, "with AES"),
    "another strategy": ({"__ENCRYPTED__": True, "__STRATEGY__": "own", "data": "x"}, "with the strategy 'own'"),
    "not base64": ({"__ENCRYPTED__": True, "__STRATEGY__": "inngest/libsodium", "data": "?"}, "not base64"),
    "too short": ({"__ENCRYPTED__": True, "__STRATEGY__": "inngest/libsodium", "data": "AAAA"}, "none of the 1 keys"),
}


@pytest.mark.parametrize(("value", "message"), UNREADABLE.values(), ids=UNREADABLE.keys())
def test_foreign_envelope_is_refused(value: Any, message: str) -> None:
    with pytest.raises(DecryptionError, match=message):
        Cipher(KEY).decrypt(value)


async def test_an_output_that_looks_encrypted_comes_back_as_it_was() -> None:
    """Otherwise a user could make an app decrypt other users' data."""
    planted = Cipher(KEY).encrypt("for others")

    async def f(ctx: Context) -> Any:
        return [await ctx.step.run("a", lambda: planted), await ctx.step.run("b", str)]

    run = await engine_for(f, client=client_with(EncryptionMiddleware.factory(KEY))).run()
    assert Cipher(KEY).decrypt(run.output) == [planted, ""]


BAD_KEYS: dict[str, Any] = {
    "empty": "",
    "white space": "key\n",
    "bytes of another length": b"abcd",
    "bytes that are no digits": b"z" * 64,
    "no key": None,
}


@pytest.mark.parametrize("key", BAD_KEYS.values(), ids=BAD_KEYS.keys())
def test_bad_keys_are_refused_without_being_shown(key: Any) -> None:
    for options in ({"secret_key": key}, {"secret_key": KEY, "fallback_decryption_keys": [key]}):
        with pytest.raises(FunctionConfigInvalidError, match=f"encryption: {list(options)[-1]}") as caught:
            EncryptionMiddleware.factory(**options)
        assert not key or str(key) not in str(caught.value)


def test_bad_options_are_refused() -> None:
    for options in ({"event_encryption_field": ""}, {"event_encryption_field": []}, {"fallback_decryption_keys": KEY}):
        with pytest.raises(FunctionConfigInvalidError, match=f"{next(iter(options))} must be"):
            EncryptionMiddleware.factory(KEY, **options)  # type: ignore[arg-type]
    with pytest.raises(FunctionConfigInvalidError, match="give fallback_decryption_keys to the Cipher"):
        EncryptionMiddleware.factory(Cipher(KEY), fallback_decryption_keys=["x"])


def test_no_key_shows_in_a_repr() -> None:
    factory = EncryptionMiddleware.factory(KEY)
    shown = repr(factory) + repr(Cipher(KEY)) + repr(vars(factory)) + str(vars(Cipher(KEY)))
    assert KEY not in shown


async def test_outputs_with_a_type_are_decrypted_before_they_are_decoded() -> None:
    class Card(pydantic.BaseModel):
        number: str

    async def f(ctx: Context) -> Any:
        card = await ctx.step.run("card", lambda: Card(number=SECRET), output_type=Card)
        await ctx.step.run("next", str)
        return [type(card).__name__, card.number]

    client = client_with(EncryptionMiddleware.factory(KEY), serializer=durably.PydanticSerializer())
    run = await engine_for(f, client=client).run()
    assert Cipher(KEY).decrypt(run.output) == ["Card", SECRET]
