"""Nodes of several machines, each with a directory of its own, on one commit log. They share this process."""

import asyncio
import contextlib
import datetime as dt
import os
import socket
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import aiohttp.web
import fastapi
import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

import durably.fast_api
from durably import Context, Embedded, Event
from durably.browser_streams import StreamRequest, Streams
from durably.embedded.network import Network
from durably.embedded.process import EngineMovedError
from durably.engine.log.log import CommitLog
from durably.engine.model.settings import EngineSettings
from durably.protocol.engine_errors import LogRefusedError

from ..ports import free_port
from ..postgres import PostgresServer
from ..waiting import async_eventually
from .app import App, output_of

LEASE = dt.timedelta(seconds=1)
SETTINGS = EngineSettings(close_grace=dt.timedelta(0))
MakeApp = Callable[..., App]


@pytest.fixture
def url(postgres: PostgresServer, tmp_path: Path) -> str:
    return f"{postgres.url}?log={tmp_path.name}"


@pytest.fixture
async def make_app(url: str, tmp_path: Path) -> AsyncIterator[MakeApp]:
    """Make the app of a machine. It has a function that returns the name of the process that ran it."""
    apps = []

    def make(machine: str, process: str = "", **options: Any) -> App:
        options = {"log": url, "lease": LEASE, "settings": SETTINGS} | options
        app = App(tmp_path / machine / "durably.db", is_production=False, **options)
        name = machine + process

        @app.function("hello")
        async def hello(ctx: Context) -> list[str]:
            return [await ctx.step.run("first", lambda: name), await ctx.step.run("second", lambda: name)]

        app.serve()
        apps.append(app)
        return app

    yield make
    for app in apps:
        await app.engine.stop()


def is_leader(app: App) -> bool:
    return app.engine._process.is_leader


async def leader_address(url: str) -> tuple[str, str]:
    """The leader's address in the log, and the key."""
    log = CommitLog(url)
    try:
        leader = await asyncio.to_thread(log.find_leader)
        assert leader is not None
        return leader.address, log.key
    finally:
        log.close()


async def test_machines_follow_the_leader_and_share_its_calls(make_app: MakeApp) -> None:
    # With a short lease, a machine that is busy elsewhere lets the standby lead, and calls are made again.
    machines = [("a", ""), ("a", "2"), ("b", ""), ("b", "2")]
    apps = [make_app(*machine, lease=dt.timedelta(seconds=60)) for machine in machines]
    for app in apps:
        await app.engine.start()
    assert [is_leader(app) for app in apps] == [True, False, False, False]
    ids = [await app.client.send([Event(name="hello") for _ in range(20)]) for app in apps]
    outputs = [output_of(await app.ended(event)) for app, events in zip(apps, ids, strict=True) for event in events]
    assert {name for output in outputs for name in output} == {"a", "a2", "b", "b2"}
    assert all(first == second for first, second in outputs)  # The calls kept their steps by checkpoints.


async def test_the_dashboard_of_a_follower_on_another_machine_shows_the_runs(make_app: MakeApp) -> None:
    leader, follower = make_app("a"), make_app("b")
    await leader.engine.start()
    await follower.engine.start()
    run = await leader.run(Event(name="hello"))
    app = fastapi.FastAPI()
    durably.fast_api.dashboard(app, follower.client, allow_anonymous=True)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://app") as http:
        for path in ("/durably/", "/durably/runs", f"/durably/runs/{run.id}"):
            page = await http.get(path)
            assert page.status_code == 200
            assert "app-hello" in page.text


async def test_each_process_shows_its_own_part_in_the_log(make_app: MakeApp) -> None:
    async def log_metrics(app: App) -> dict[str, float]:
        metrics = await asyncio.to_thread(lambda: app.engine._read_metrics(in_leader_only=False))
        return {each.name: each.samples[0].value for each in metrics or () if each.name.startswith("log_")}

    leader, standby, other = make_app("a"), make_app("b"), make_app("b", "2")
    for app in (leader, standby):
        await app.engine.start()
    await async_eventually(lambda: standby.engine._process.node.holds_database, "it has the lock")  # type: ignore[union-attr]
    await other.engine.start()
    assert (await log_metrics(leader))["log_leader"] == 1
    values = await log_metrics(standby)
    assert values["log_up"] == 1
    assert values["log_leader"] == 0
    assert {"log_sequence", "log_lag_entries"} <= values.keys()
    values = await log_metrics(other)
    assert values["log_leader"] == 0
    assert not {"log_sequence", "log_lag_entries"} & values.keys()


async def test_another_machine_leads_as_soon_as_the_leader_stops(make_app: MakeApp) -> None:
    apps = [make_app(name, lease=dt.timedelta(seconds=60)) for name in "abc"]
    for app in apps:
        await app.engine.start()
    while len(apps) > 1:
        await async_eventually(lambda: any(map(is_leader, apps)), "one of them leads")
        stopping = next(app for app in apps if is_leader(app))
        apps.remove(stopping)
        sent = await apps[0].client.send([Event(name="hello") for _ in range(10)])
        await stopping.engine.stop()
        stopped = time.monotonic()
        receipt = await apps[0].client.send(Event(name="hello"))
        assert time.monotonic() - stopped < 5  # Much less than the lease.
        for event in (*sent, *receipt):
            assert len(output_of(await apps[0].ended(event))) == 2


async def test_machines_share_a_log_in_object_storage(make_app: MakeApp, s3_bucket: str, tmp_path: Path) -> None:
    url = f"s3://{s3_bucket}/{tmp_path.name}"
    first, second = make_app("a", log=url), make_app("b", log=url)
    await first.engine.start()
    await second.engine.start()
    assert output_of(await second.run(Event(name="hello")))
    await first.engine.stop()
    assert output_of(await second.run(Event(name="hello"))) == ["b", "b"]


async def test_another_process_of_the_machine_becomes_its_standby(make_app: MakeApp) -> None:
    apps = [make_app("a"), make_app("b"), make_app("b", "2")]
    for app in apps:
        await app.engine.start()
    await apps[1].engine.stop()
    await apps[0].engine.stop()
    await async_eventually(lambda: is_leader(apps[2]), "the second process of the other machine leads")
    assert output_of(await apps[2].run(Event(name="hello"))) == ["b2", "b2"]


async def test_followers_leave_a_leader_that_does_not_reach_the_log_any_more(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    apps = [make_app("a"), make_app("b"), make_app("b", "2")]
    for app in apps:
        await app.engine.start()
    log = apps[0].engine._process._node._log  # type: ignore[union-attr]

    def away(*_: object) -> None:
        raise durably.engine.log.store.LogUnavailableError("cut off", is_unclear=True)

    with monkeypatch.context() as patch:
        for store in (log._store, log._side):
            for name in ("append", "claim", "renew", "leader", "read"):
                patch.setattr(store, name, away)
        await async_eventually(lambda: is_leader(apps[1]) or is_leader(apps[2]), "the other machine leads")
        for app in apps[1:]:
            async with asyncio.timeout(60):
                assert output_of(await app.run(Event(name="hello"))) in (["b", "b"], ["b2", "b2"])
    await async_eventually(lambda: not is_leader(apps[0]), "the former leader has learnt it")
    assert output_of(await apps[0].run(Event(name="hello")))


@pytest.mark.slow
async def test_the_leader_stays_when_the_store_was_away(make_app: MakeApp) -> None:
    """For longer than the lease, which nobody could renew."""
    with PostgresServer() as server:
        apps = [make_app(name, log=server.url) for name in "ab"]
        for app in apps:
            await app.engine.start()
        await asyncio.to_thread(server.stop, "immediate")
        sending = asyncio.create_task(apps[1].run(Event(name="hello")))
        await asyncio.sleep(1.5 * LEASE.total_seconds())
        assert not sending.done()
        await asyncio.to_thread(server.start)
        assert output_of(await sending)
        await asyncio.sleep(LEASE.total_seconds())
        assert [is_leader(app) for app in apps] == [True, False]
        for app in apps:
            await app.engine.stop()


async def test_a_leader_whose_disk_is_deleted_continues_with_the_log(make_app: MakeApp, tmp_path: Path) -> None:
    app = make_app("a")
    await app.engine.start()
    first = await app.run(Event(name="hello"))
    for path in (tmp_path / "a").glob("durably.db*"):
        if path.is_file() and not path.name.endswith(".lock"):
            path.unlink()
    second = await app.run(Event(name="hello"))
    assert [run.id for run in await app.engine.list_runs()] == [second.id, first.id]


async def test_nothing_is_answered_over_tcp_without_the_key(make_app: MakeApp, url: str) -> None:
    app = make_app("a")
    await app.engine.start()
    address, key = await leader_address(url)
    requests = [("GET", "/health"), ("GET", "/"), ("POST", "/e/key"), ("GET", "/v1/runs"), ("POST", "/v1/workers")]
    async with aiohttp.ClientSession() as http:
        for given in (None, "Bearer", f"Bearer {key[:-1]}", f"Basic {key}"):
            headers = {} if given is None else {"authorization": given}
            for method, path in [*requests, ("GET", "/nowhere")]:
                async with http.request(method, f"http://{address}{path}", headers=headers) as response:
                    assert response.status == 401, (given, path)
        headers = {"authorization": f"Bearer {key}", "host": "localhost"}
        async with http.get(f"http://{address}/ready", headers=headers) as response:
            assert response.status == 200


def certificates(directory: Path, *names: str) -> dict[str, tuple[Path, Path, Path]]:
    """A CA, and a certificate of it for each name: the arguments of ``tls``."""

    def write(name: str, issuer: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None) -> Any:
        key, now = ec.generate_private_key(ec.SECP256R1()), dt.datetime.now(dt.UTC)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = x509.CertificateBuilder(subject_name=subject, public_key=key.public_key())
        builder = builder.issuer_name(issuer[0].subject if issuer else subject).serial_number(
            x509.random_serial_number()
        )
        builder = builder.not_valid_before(now - dt.timedelta(days=1)).not_valid_after(now + dt.timedelta(days=1))
        builder = builder.add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        certificate = builder.sign(issuer[1] if issuer else key, hashes.SHA256())
        pem = serialization.Encoding.PEM
        (directory / f"{name}.crt").write_bytes(certificate.public_bytes(pem))
        plain = serialization.NoEncryption()
        (directory / f"{name}.key").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
        return certificate, key

    ca = f"ca-of-{names[0]}"
    issuer = write(ca, None)
    for name in names:
        write(name, issuer)
    return {name: (directory / f"{name}.crt", directory / f"{name}.key", directory / f"{ca}.crt") for name in names}


async def test_machines_with_tls_trust_the_certificates_of_their_ca(
    make_app: MakeApp, url: str, tmp_path: Path
) -> None:
    files = certificates(tmp_path, "a", "b") | certificates(tmp_path, "stranger")
    apps = [make_app("a", tls=files["a"]), make_app("b", tls=files["b"])]
    for app in apps:
        await app.engine.start()
    await apps[1].run(Event(name="hello"))
    address, key = await leader_address(url)
    headers = {"authorization": f"Bearer {key}", "host": "localhost"}
    async with aiohttp.ClientSession() as http:
        for scheme in ("http", "https"):  # Without TLS, and without a certificate.
            with pytest.raises(aiohttp.ClientError):
                await http.get(f"{scheme}://{address}/ready", headers=headers, ssl=False)
    strange = make_app("c", tls=files["stranger"])
    starting = asyncio.create_task(strange.engine.start())
    await async_eventually(
        lambda: (
            "certificate" in str(strange.engine._process._node and strange.engine._process._node.last_error).lower()
        ),
        "a machine with a certificate of another CA trusts the leader as little as the leader trusts it",
    )
    starting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await starting


async def test_a_fixed_address_is_the_one_in_the_log(make_app: MakeApp, url: str) -> None:
    address = f"localhost:{free_port()}"
    app = make_app("a", address=address)
    await app.engine.start()
    assert (await leader_address(url))[0] == address
    follower = make_app("b")
    await follower.engine.start()
    assert await follower.run(Event(name="hello"))


async def test_a_process_that_cannot_reach_the_leader_does_not_start(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    listen = Network.listen

    def listen_elsewhere(network: Network, log: CommitLog) -> socket.socket:
        listener = listen(network, log)
        log.address = f"127.0.0.1:{free_port()}"
        return listener

    monkeypatch.setattr(Network, "listen", listen_elsewhere)
    await make_app("a").engine.start()
    with pytest.raises(EngineMovedError, match=r"the leader at 127\.0\.0\.1"):
        await make_app("b", lease=dt.timedelta(seconds=0.5)).engine.start()


async def test_a_node_tries_again_if_another_server_answers_at_the_leaders_address(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(_: aiohttp.web.BaseRequest) -> aiohttp.web.Response:
        return aiohttp.web.Response(status=404)

    listen, port = Network.listen, free_port()
    server = aiohttp.web.ServerRunner(aiohttp.web.Server(refuse))
    await server.setup()
    await aiohttp.web.TCPSite(server, "127.0.0.1", port).start()

    def listen_elsewhere(network: Network, log: CommitLog) -> socket.socket:
        listener = listen(network, log)
        log.address = f"127.0.0.1:{port}"
        return listener

    with monkeypatch.context() as patch:
        patch.setattr(Network, "listen", listen_elsewhere)
        first, second = make_app("a"), make_app("b", lease=dt.timedelta(seconds=60))
        await first.engine.start()
    starting = asyncio.create_task(second.engine.start())
    expected = f"what answers at 127.0.0.1:{port} is not an engine of this log"
    await async_eventually(
        lambda: expected in str(second.engine._process.node and second.engine._process.node.last_error),
        "the error names the address",
    )
    assert not starting.done()
    await first.engine.stop()
    await asyncio.wait_for(starting, 50)
    assert is_leader(second)
    await server.cleanup()


async def test_a_node_does_not_wait_for_a_silent_leader_that_was_replaced(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    listen = Network.listen
    with socket.create_server(("127.0.0.1", 0)) as silent, monkeypatch.context() as patch:

        def listen_elsewhere(network: Network, log: CommitLog) -> socket.socket:
            listener = listen(network, log)
            log.address = f"127.0.0.1:{silent.getsockname()[1]}"
            return listener

        patch.setattr(Network, "listen", listen_elsewhere)
        first, second = (make_app(name, lease=dt.timedelta(seconds=60)) for name in "ab")
        await first.engine.start()
        starting = asyncio.create_task(second.engine.start())
        connection, _ = await asyncio.to_thread(silent.accept)
        with connection:
            await first.engine.stop()
            await asyncio.wait_for(starting, 50)
        assert is_leader(second)


async def test_a_database_of_another_log_is_refused(make_app: MakeApp, postgres: PostgresServer) -> None:
    app = make_app("a")
    await app.engine.start()
    await app.engine.stop()
    with pytest.raises(LogRefusedError, match="correct the log's URL"):
        await make_app("a", log=f"{postgres.url}?log=empty").engine.start()


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"log": "redis://host"}, "log"),
        ({"log": "durably.db"}, "log"),
        ({"log": "s3://bucket"}, "log"),
        ({"address": "host:1"}, "log"),
        ({"tls": ("a", "b", "c")}, "log"),
        ({"log": "postgresql://", "address": "host"}, "address"),
        ({"log": "postgresql://", "address": "http://host:80"}, "address"),
        ({"log": "postgresql://", "address": "host:99999"}, "address"),
        ({"log": "postgresql://", "tls": ("none.crt", "none.key", "none.ca")}, "tls"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        Embedded("durably.db", **options)


async def test_a_forked_child_leaves_the_standby_to_its_parent(make_app: MakeApp, tmp_path: Path) -> None:
    """It keeps neither the lock nor the connections to the store, and has a node of its own."""
    leader, standby = make_app("a"), make_app("b")
    await leader.engine.start()
    await standby.engine.start()
    assert standby.engine._process._node is not None
    await async_eventually(lambda: standby.engine._process._node.holds_database, "it has the lock")  # type: ignore[union-attr]
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writing)
        os.read(reading, 1)  # until the test ends
        os._exit(0)
    os.close(reading)
    try:
        await standby.engine.stop()
        second = make_app("b", "2")
        await second.engine.start()
        await leader.engine.stop()
        await async_eventually(lambda: is_leader(second), "another process gets the lock")
    finally:
        os.close(writing)
        await asyncio.to_thread(os.waitpid, child, 0)


def test_the_log_may_be_set_in_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DURABLY_LOG", "mysql://host/shop")
    with pytest.raises(ValueError, match="postgresql"):
        Embedded(tmp_path / "durably.db")


async def test_a_token_of_one_machine_opens_the_stream_of_a_run_on_another(make_app: MakeApp) -> None:
    leading, following = make_app("a"), make_app("b")
    await leading.engine.start()
    await following.engine.start()
    client = following.client
    [event_id] = await client.send(Event(name="hello"))
    [run] = await async_eventually(
        lambda: following.engine.event_runs(event_id),
        "the run has ended",
        is_right=lambda runs: runs and runs[0].ended_at,
    )
    for made, opened in ((leading, following), (following, leading)):
        streams = Streams(
            opened.client, "/", authorize=None, allow_anonymous=True, max_listeners=None, caller="streams"
        )
        query = f"token={made.client.stream_token(run.id)}"
        response = await streams.handle(StreamRequest(method="GET", query=query, headers={}))
        assert response.stream is not None, response.body
        text = b"".join([chunk async for chunk in response.stream()])
        assert b'"status":"Completed"' in text
        assert text.endswith(b"id: end\n\n")
