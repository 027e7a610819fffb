"""``durably.remote_state``: large outputs are stored in the app's bucket or directory, and loaded again."""

import datetime as dt
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from inngest.experimental import remote_state_middleware as official
from moto.server import ThreadedMotoServer

from durably import Client, Context, ContextSync, Event, TriggerEvent
from durably.encryption import Cipher, EncryptionMiddleware
from durably.errors import FunctionConfigInvalidError
from durably.execution import StepMemos
from durably.protocol.opcodes import hash_step_id
from durably.remote_state import DirectoryDriver, RemoteStateMiddleware, S3Driver, StateError
from durably.testing import TestEngine

from .execution.engine import Run, engine_for

BUCKET = "outputs"
LARGE = "large " * 20_000
KEY = "a long key of the app"


def client_with(*middleware: Any, **options: Any) -> Client:
    return Client(app_id="app", is_production=False, middleware=list(middleware), **options)


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    """A client of a real server of the API of S3."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    client = make_s3_client(f"http://{host}:{port}")
    client.create_bucket(Bucket=BUCKET)
    yield client
    server.stop()


def make_s3_client(url: str) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id="access-key",
        aws_secret_access_key="secret-key",
        config=boto3.session.Config(retries={"max_attempts": 1}, connect_timeout=5),
    )


@pytest.fixture(params=["s3", "directory"])
def driver(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.param == "directory":
        return DirectoryDriver(tmp_path / "state")
    return S3Driver(bucket=BUCKET, client=request.getfixturevalue("s3"))


async def steps(ctx: Context) -> Any:
    first = await ctx.step.run("first", lambda: {"large": LARGE})
    small = await ctx.step.run("small", lambda: "small")
    both = await ctx.group.parallel(
        [lambda: ctx.step.run("b", lambda: [LARGE]), lambda: ctx.step.run("c", lambda: LARGE)]
    )
    return [first == {"large": LARGE}, small, both == ([LARGE], LARGE)]


def steps_sync(ctx: ContextSync) -> Any:
    first = ctx.step.run("first", lambda: {"large": LARGE})
    small = ctx.step.run("small", lambda: "small")
    both = ctx.group.parallel([lambda: ctx.step.run("b", lambda: [LARGE]), lambda: ctx.step.run("c", lambda: LARGE)])
    return [first == {"large": LARGE}, small, both == ([LARGE], LARGE)]


@pytest.mark.parametrize("blocking", [True, False])
@pytest.mark.parametrize("handler", [steps, steps_sync])
async def test_the_engine_gets_references_and_the_function_its_outputs(
    driver: Any, handler: Any, blocking: bool
) -> None:
    client = client_with(RemoteStateMiddleware.factory(driver))
    run = await engine_for(handler, client=client, blocking=blocking).run()
    assert run.output == [True, "small", True]
    stored = {name: run.memos[hash_step_id(name)]["data"] for name in ("first", "small", "b", "c")}
    assert stored.pop("small") == "small"
    assert all(reference["__REMOTE_STATE__"] is True for reference in stored.values())
    assert LARGE not in json.dumps(run.bodies)
    assert all(len(answer.body) < 10_000 for answer in run.answers)


@pytest.mark.parametrize("checkpointing", [True, False])
async def test_outputs_larger_than_an_engine_takes(tmp_path: Path, checkpointing: bool) -> None:
    def make(*middleware: Any) -> tuple[Client, Any]:
        client = client_with(*middleware)
        size = 5 * 1024 * 1024

        @client.create_function(fn_id="f", trigger=TriggerEvent(event="f"), retries=0)
        async def f(ctx: Context) -> Any:
            found = await ctx.step.run("a", lambda: "x" * size)
            return [len(found), len(await ctx.step.run("b", lambda: found))]

        return client, f

    client, f = make(RemoteStateMiddleware.factory(DirectoryDriver(tmp_path / "state")))
    async with TestEngine(client, [f], checkpointing=checkpointing) as engine:
        run = await (await engine.send(Event(name="f"))).wait()
        run.assert_completed(output=[5 * 1024 * 1024] * 2)
    client, f = make()
    async with TestEngine(client, [f], checkpointing=checkpointing) as engine:
        (await (await engine.send(Event(name="f"))).wait()).assert_failed()


# -- the official middleware


def memos_of(reference: Any) -> StepMemos:
    return StepMemos({"a": json.dumps({"data": reference}).encode()})  # type: ignore[dict-item]


def test_remote_state_is_compatible_with_the_official_package(s3: Any) -> None:
    value = {"a": [1, "ü", None]}
    ours, theirs = S3Driver(bucket=BUCKET, client=s3), official.S3Driver(bucket=BUCKET, client=s3)

    reference = theirs.save_step("01RUN", value)
    assert ours.owns(reference)
    assert json.loads(ours.load(reference)) == value

    found = ours.save("01RUN", json.dumps(value).encode())
    memos = memos_of({"__REMOTE_STATE__": True, "__STRATEGY__": ours.strategy, **found})
    theirs.load_steps(memos)  # type: ignore[arg-type]
    assert [memo.data for memo in memos.values()] == [value]
    assert reference.keys() == {"__REMOTE_STATE__", "__STRATEGY__", *found}
    assert str(found["key"]).rpartition("/")[0] == str(reference["key"]).rpartition("/")[0]


@pytest.mark.parametrize("handler", [steps, steps_sync])
async def test_run_moves_between_the_official_middleware_and_durably(s3: Any, handler: Any) -> None:
    """``durably`` clients use the official middleware too, so that a run can move from one client to the other."""
    theirs = official.RemoteStateMiddleware.factory(official.S3Driver(bucket=BUCKET, client=s3))
    ours = RemoteStateMiddleware.factory(S3Driver(bucket=BUCKET, client=s3), threshold_bytes=0)
    run = await engine_for(handler, client=client_with(theirs)).run()
    for middleware in (ours, theirs):
        memos = dict(run.memos)
        del memos[hash_step_id("c")]
        later = Run(run.event, memos=memos, stack=[step for step in run.stack if step in memos])
        await engine_for(handler, client=client_with(middleware)).drive(later)
        assert later.output == [True, "small", True]
        assert later.memos[hash_step_id("c")]["data"]["__STRATEGY__"] == "inngest/s3"
        run = later


# -- with encryption


async def test_stored_data_is_encrypted_if_remote_state_comes_first(tmp_path: Path) -> None:
    remote = RemoteStateMiddleware.factory(DirectoryDriver(tmp_path / "state"))
    client = client_with(remote, EncryptionMiddleware.factory(KEY))
    for handler in (steps, steps_sync):
        run = await engine_for(handler, client=client).run()
        assert Cipher(KEY).decrypt(run.output) == [True, "small", True]
    stored = read_all(tmp_path)
    assert len(stored) == 6
    for content in stored:
        assert b"large" not in content
        assert json.loads(content)["__ENCRYPTED__"] is True


def read_all(directory: Path) -> list[bytes]:
    return [path.read_bytes() for path in directory.rglob("*") if path.is_file()]


def test_the_other_order_is_refused_unless_it_is_meant(tmp_path: Path) -> None:
    driver, encryption = DirectoryDriver(tmp_path / "state"), EncryptionMiddleware.factory(KEY)
    remote = RemoteStateMiddleware.factory(driver)
    message = "RemoteStateMiddleware must come before EncryptionMiddleware"
    with pytest.raises(FunctionConfigInvalidError, match=f"Client.middleware: {message}"):
        client_with(encryption, remote)
    client = client_with(encryption)
    with pytest.raises(FunctionConfigInvalidError, match=f'function "f": middleware: {message}'):
        client.create_function(fn_id="f", trigger=[], middleware=[remote])(steps)
    with pytest.raises(FunctionConfigInvalidError, match=f"Client.add_middleware: {message}"):
        client.add_middleware(remote)
    client_with(encryption, RemoteStateMiddleware.factory(driver, allow_plaintext=True))


# -- not on the event loop


async def test_stores_are_used_in_threads_several_at_a_time(tmp_path: Path) -> None:
    threads: list[threading.Thread] = []
    together = threading.Barrier(3, timeout=20)

    class Meeting(DirectoryDriver):
        def save(self, run_id: str, data: bytes) -> dict[str, Any]:
            threads.append(threading.current_thread())
            return super().save(run_id, data)

        def load(self, reference: Any) -> bytes:
            threads.append(threading.current_thread())
            together.wait()
            return super().load(reference)

    driver = Meeting(tmp_path)
    memos = {
        hash_step_id(name): {
            "data": {"__REMOTE_STATE__": True, "__STRATEGY__": driver.strategy, **driver.save("r", b"1")}
        }
        for name in "abc"
    }
    threads.clear()

    async def f(ctx: Context) -> Any:
        return [await ctx.step.run(name, str) for name in "abc"]

    client = client_with(RemoteStateMiddleware.factory(driver, threshold_bytes=0))
    run = Run({"name": "e", "data": {}, "id": "1", "ts": 1}, memos=memos, stack=list(memos))
    await engine_for(f, client=client).drive(run)
    assert run.output == [1, 1, 1]
    await engine_for(steps_only_large, client=client_with(RemoteStateMiddleware.factory(driver))).drive(
        Run({"name": "e", "data": {}, "id": "1", "ts": 1}, run_id="other"), steps=1
    )
    assert len(threads) == 4
    assert threading.main_thread() not in threads


async def steps_only_large(ctx: Context) -> Any:
    return await ctx.step.run("a", lambda: LARGE)


# -- what is missing, damaged or not meant to be read


async def charge(ctx: Context) -> Any:
    try:
        await ctx.step.run("charge", str)
    except Exception:
        return "swallowed"


def charge_sync(ctx: ContextSync) -> Any:
    try:
        ctx.step.run("charge", str)
    except Exception:
        return "swallowed"


async def failure_of(reference: dict[str, Any], *drivers: Any, handler: Any = charge) -> str:
    """The end of a run whose step's memo is the reference."""
    client = client_with(RemoteStateMiddleware.factory(drivers[0], read_drivers=drivers[1:]))
    memos = {hash_step_id("charge"): {"data": {"__REMOTE_STATE__": True, **reference}}}
    run = Run({"name": "e", "data": {}, "id": "1", "ts": 1}, memos=memos, stack=list(memos))
    await engine_for(handler, client=client, max_attempts=1).drive(run)
    assert (run.status, run.output["name"]) == ("Failed", "MemoUnreadableError")
    prefix = 'step "charge": its output cannot be loaded: '
    assert run.output["message"].startswith(prefix)
    return str(run.output["message"].removeprefix(prefix))


@pytest.mark.parametrize("handler", [charge, charge_sync])
async def test_a_missing_output_is_a_clear_error(s3: Any, tmp_path: Path, handler: Any) -> None:
    bucket, directory = S3Driver(bucket=BUCKET, client=s3), DirectoryDriver(tmp_path)
    key = f"inngest/remote_state/01RUN/{'x' * 32}"
    message = await failure_of({"__STRATEGY__": "inngest/s3", "bucket": BUCKET, "key": key}, bucket, handler=handler)
    assert message.startswith(f"S3Driver(bucket='outputs') has no object '{key}'. Was it deleted, by a lifecycle rule")
    reference = {"__STRATEGY__": "durably/directory", "key": f"01RUN/{'x' * 32}"}
    message = await failure_of(reference, directory, handler=handler)
    assert message == f"{directory!r} has no file '01RUN/{'x' * 32}'. Was it purged before the run ended?"


OUTSIDE: dict[str, dict[str, Any]] = {
    "another bucket": {"__STRATEGY__": "inngest/s3", "bucket": "other", "key": "inngest/remote_state/r/x"},
    "another prefix": {"__STRATEGY__": "inngest/s3", "bucket": BUCKET, "key": "invoices/1"},
    "no key": {"__STRATEGY__": "inngest/s3", "bucket": BUCKET},
    "up": {"__STRATEGY__": "durably/directory", "key": f"../{'x' * 32}"},
    "absolute": {"__STRATEGY__": "durably/directory", "key": "/etc/passwd"},
    "deep": {"__STRATEGY__": "durably/directory", "key": f"a/b/{'x' * 32}"},
    "a number": {"__STRATEGY__": "durably/directory", "key": 1},
}


@pytest.mark.parametrize("reference", OUTSIDE.values(), ids=OUTSIDE.keys())
async def test_references_to_other_places_are_not_followed(s3: Any, tmp_path: Path, reference: dict[str, Any]) -> None:
    message = await failure_of(reference, S3Driver(bucket=BUCKET, client=s3), DirectoryDriver(tmp_path))
    assert message.startswith("the reference is to none of the places that ")


async def test_data_of_a_former_store_is_read(s3: Any, tmp_path: Path) -> None:
    """A move from a directory to a bucket, while runs are under way."""
    directory, bucket = DirectoryDriver(tmp_path), S3Driver(bucket=BUCKET, client=s3)
    run = await engine_for(steps, client=client_with(RemoteStateMiddleware.factory(directory))).run()
    memos = {step: memo for step, memo in run.memos.items() if step != hash_step_id("c")}
    later = Run(run.event, memos=memos, stack=[step for step in run.stack if step in memos])
    moved = client_with(RemoteStateMiddleware.factory(bucket, read_drivers=[directory]))
    await engine_for(steps, client=moved).drive(later)
    assert later.output == [True, "small", True]
    assert later.memos[hash_step_id("c")]["data"]["__STRATEGY__"] == "inngest/s3"


async def test_an_output_that_looks_like_a_reference_is_not_followed(s3: Any) -> None:
    """Otherwise a user's data could make an app load an arbitrary object."""
    s3.put_object(Bucket=BUCKET, Key="inngest/remote_state/r/known", Body=b'"of another run"')
    key = "inngest/remote_state/r/known"
    planted = {"__REMOTE_STATE__": True, "__STRATEGY__": "inngest/s3", "bucket": BUCKET, "key": key}

    async def f(ctx: Context) -> Any:
        return [await ctx.step.run("a", lambda: planted), await ctx.step.run("b", str)]

    client = client_with(RemoteStateMiddleware.factory(S3Driver(bucket=BUCKET, client=s3)))
    assert (await engine_for(f, client=client).run()).output == [planted, ""]


async def test_unreachable_store_fails_the_attempt_and_shows_no_credentials(s3: Any) -> None:
    with pytest.raises(StateError, match=r"cannot store 'p/r/\w{32}': NoSuchBucket") as missing:
        S3Driver(bucket="missing", client=s3, prefix="p").save("r", b"1")
    unreachable = S3Driver(bucket=BUCKET, client=make_s3_client("http://user:secret-key@127.0.0.1:9"))
    with pytest.raises(StateError, match="cannot store") as lost:
        unreachable.save("r", b"1")
    for caught in (missing, lost):
        assert "secret-key" not in str(caught.value)
    client = client_with(RemoteStateMiddleware.factory(unreachable))
    run = Run({"name": "e", "data": {}, "id": "1", "ts": 1})
    await engine_for(steps_only_large, client=client, max_attempts=2).drive(run)
    assert (run.status, run.output["name"]) == ("Failed", "StateError")
    assert not run.answers[0].no_retry


# -- drivers


def test_files_are_the_users_own_and_whole(tmp_path: Path) -> None:
    driver = DirectoryDriver(tmp_path / "new" / "state")
    reference = driver.save("01RUN", b'"a"')
    path = tmp_path / "new" / "state" / reference["key"]
    assert path.read_bytes() == b'"a"'
    modes = [part.stat().st_mode & 0o777 for part in (path, path.parent, path.parent.parent)]
    assert modes == [0o600, 0o700, 0o700]
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_partly_written_file_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    driver = DirectoryDriver(tmp_path)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StateError, match=r"cannot store '01RUN/.*': No space left on device"):
        driver.save("01RUN", b"1")
    assert read_all(tmp_path) == []


def test_a_link_in_the_place_of_a_file_is_not_followed(tmp_path: Path) -> None:
    driver = DirectoryDriver(tmp_path / "state")
    reference = driver.save("01RUN", b"1")
    path = tmp_path / "state" / reference["key"]
    (tmp_path / "elsewhere").write_text('"secret"')
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StateError, match="cannot load"):
        driver.load(reference)


def test_a_directory_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(FunctionConfigInvalidError, match=r"other users may write to .*/open: chmod 700 .*/open$"):
        DirectoryDriver(tmp_path / "open")
    (tmp_path / "open").chmod(0o1777)  # as /tmp
    with pytest.raises(FunctionConfigInvalidError, match=r"below it, such as .*/open/durably-state") as raised:
        DirectoryDriver(tmp_path / "open")
    assert "chmod" not in str(raised.value)


def test_run_id_that_is_not_a_file_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"a run with the id '\.\.'"):
        DirectoryDriver(tmp_path).save("..", b"1")


def test_purge_deletes_old_files(tmp_path: Path) -> None:
    driver = DirectoryDriver(tmp_path)
    old, new = driver.save("old", b"1"), driver.save("new", b"2")
    for path in (tmp_path / old["key"], tmp_path / "old"):
        os.utime(path, (1, 1))
    assert driver.purge(dt.timedelta(days=400)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    assert driver.load(new) == b"2"


UNUSABLE: dict[str, Any] = {
    "a class": DirectoryDriver,
    "text": "s3://bucket",
    "the official driver": official.InMemoryDriver(),
}
