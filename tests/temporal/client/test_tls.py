"""Client certificates, API keys, and TLS without a client certificate, against a server that checks them."""

import traceback
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from temporalio.service import TLSConfig

from durably.temporal import (
    Temporal,
    TemporalCredentialsError,
    TemporalSettingsError,
    TemporalUnreachableError,
)

from ..dev_server import DevServer
from ..tls import Authority, Certificate, TLSFront
from ..worker_thread import working
from ..workflows import ACTIVITIES, WORKFLOWS

KEY = "tmprl_secret_key_1234567890"
CLIENT_CERT, CLIENT_KEY = "TEMPORAL_TLS_CLIENT_CERT_PATH", "TEMPORAL_TLS_CLIENT_KEY_PATH"
CA_CERT, SERVER_NAME = "TEMPORAL_TLS_SERVER_CA_CERT_PATH", "TEMPORAL_TLS_SERVER_NAME"
Open = Callable[..., TLSFront]


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def other_authority() -> Authority:
    return Authority()


@pytest.fixture
def mine(authority: Authority) -> Certificate:
    return authority.issue("app")


@pytest.fixture
def open_front(server: DevServer, authority: Authority, tmp_path: Path) -> Iterator[Open]:
    with ExitStack() as stack:

        def open_(**options: Any) -> TLSFront:
            return stack.enter_context(closing(TLSFront(server.port, authority, tmp_path, **options)))

        yield open_


async def refusal(address: str, tls: TLSConfig | bool | None, api_key: str | None = None) -> TemporalUnreachableError:
    """The error of a connection, which contains no secret, not even in its causes."""
    with pytest.raises(TemporalUnreachableError, match=address) as failure:
        await Temporal(address, tls=tls, api_key=api_key).client()
    shown = "".join(traceback.format_exception(failure.value))
    assert "BEGIN" not in shown
    assert KEY not in shown
    return failure.value


async def test_client_certificates_are_read_from_the_environment(
    open_front: Open, mine: Certificate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").write_bytes(mine.cert)
    (tmp_path / "mine.key").write_bytes(mine.key)
    monkeypatch.setenv("TEMPORAL_ADDRESS", open_front().address)
    monkeypatch.setenv(CLIENT_CERT, str(tmp_path / "mine"))
    monkeypatch.setenv(CLIENT_KEY, str(tmp_path / "mine.key"))
    monkeypatch.setenv(CA_CERT, str(tmp_path / "ca"))
    assert (await Temporal().check_health()).ok


async def test_a_server_that_demands_a_client_certificate(
    open_front: Open, authority: Authority, other_authority: Authority, mine: Certificate
) -> None:
    address, other = open_front().address, authority.issue("other")
    foreign, expired = other_authority.issue("app"), authority.issue("app", expired=True)
    for cert, key, words in (
        (None, None, "the server demands a client certificate: set "),
        (foreign.cert, foreign.key, "the server refuses the client certificate"),
        (expired.cert, expired.key, "the server refuses the client certificate"),
        (mine.cert, mine.cert, CLIENT_KEY),
        (mine.key, mine.key, CLIENT_CERT),
        (mine.cert, other.key, "the private key does not match the client certificate"),
    ):
        tls = TLSConfig(server_root_ca_cert=authority.pem, client_cert=cert, client_private_key=key)
        assert words in (await refusal(address, tls)).message
    assert "expects TLS: set TEMPORAL_TLS" in (await refusal(address, False)).message


async def test_server_of_an_untrusted_authority_is_refused(
    open_front: Open, server: DevServer, authority: Authority, other_authority: Authority
) -> None:
    ours = TLSConfig(server_root_ca_cert=authority.pem)
    trusted = open_front(demands_certificate=False).address
    expired, elsewhere = (
        open_front(demands_certificate=False, server=certificate).address
        for certificate in (
            authority.issue("localhost", expired=True),
            authority.issue("server", host="temporal.example.com"),
        )
    )
    untrusted = f"no trusted authority signed the server's certificate: check {CA_CERT}"
    cases: list[tuple[str, TLSConfig | bool, str]] = [
        (trusted, True, untrusted),
        (trusted, TLSConfig(server_root_ca_cert=other_authority.pem), untrusted),
        (expired, ours, "the server's certificate has expired"),
        (elsewhere, ours, SERVER_NAME),
        (server.address, True, "the server does not speak TLS at this port: check TEMPORAL_ADDRESS, and TEMPORAL_TLS"),
    ]
    for address, tls, words in cases:
        failure = await refusal(address, tls)
        assert isinstance(failure, TemporalCredentialsError)
        assert words in failure.message
    named = TLSConfig(server_root_ca_cert=authority.pem, domain="temporal.example.com")
    assert (await Temporal(elsewhere, tls=named).check_health()).ok


async def test_a_server_without_client_certificates(open_front: Open, authority: Authority) -> None:
    address = open_front(demands_certificate=False).address
    assert (await Temporal(address, tls=TLSConfig(server_root_ca_cert=authority.pem)).check_health()).ok


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({CLIENT_CERT: "mine"}, "TEMPORAL_TLS_CLIENT_KEY"),
        ({CLIENT_KEY: "mine.key"}, "TEMPORAL_TLS_CLIENT_CERT"),
        ({CLIENT_CERT: "nothing", CLIENT_KEY: "mine.key"}, "cannot be read: .*nothing"),
    ],
)
async def test_files_that_are_missing_or_mistaken(
    mine: Certificate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, str], named: str
) -> None:
    (tmp_path / "mine").write_bytes(mine.cert)
    (tmp_path / "mine.key").write_bytes(mine.key)
    for name, file in given.items():
        monkeypatch.setenv(name, str(tmp_path / file))
    with pytest.raises(TemporalSettingsError, match=named) as failure:
        await Temporal("localhost:1").client()
    assert "BEGIN" not in str(failure.value)


async def test_an_api_key_is_sent_with_each_request_over_tls(
    open_front: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    front = open_front(demands_certificate=False, api_key=KEY)
    monkeypatch.setenv("TEMPORAL_ADDRESS", front.address)
    monkeypatch.setenv("TEMPORAL_API_KEY", KEY)
    monkeypatch.setenv(CA_CERT, str(tmp_path / "ca"))
    temporal, queue = Temporal(), f"key-{uuid.uuid4().hex[:8]}"
    client = await temporal.client()
    with working(temporal, queue, workflows=WORKFLOWS, activities=ACTIVITIES):
        handle = await client.start_workflow("SleepingWorkflow", id=queue, task_queue=queue)
        await handle.query("__stack_trace")  # A worker has answered it.
        await handle.terminate()
    assert len(front.authorizations) > 5
    assert set(front.authorizations) == {f"Bearer {KEY}"}


@pytest.mark.parametrize("given", [f"{KEY}-wrong", None])
async def test_an_api_key_that_the_server_refuses(open_front: Open, authority: Authority, given: str | None) -> None:
    """The server quotes the key in its refusal."""
    front = open_front(demands_certificate=False, api_key="right")
    tls = TLSConfig(server_root_ca_cert=authority.pem)
    failure = await refusal(front.address, tls, given)
    assert isinstance(failure, TemporalCredentialsError)
    assert "the server refuses the app's API key: check TEMPORAL_API_KEY" in failure.message
    assert set(front.authorizations) == {given and f"Bearer {given}"}
    health = await Temporal(front.address, tls=tls, api_key=given).check_health()
    assert "TEMPORAL_API_KEY" in str(health.problem)
    assert KEY not in str(health.problem)


async def test_a_namespace_that_the_key_is_not_for(open_front: Open, authority: Authority) -> None:
    front = open_front(demands_certificate=False, api_key="right", refusal=7)
    failure = await refusal(front.address, TLSConfig(server_root_ca_cert=authority.pem), KEY)
    assert "denies the app the namespace: check TEMPORAL_NAMESPACE, and TEMPORAL_API_KEY" in failure.message
