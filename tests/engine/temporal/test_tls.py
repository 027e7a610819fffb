"""The engine on a Temporal server that demands TLS and an API key."""

import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from temporalio.service import TLSConfig

from durably import TemporalEngine

from ...cli.conftest import Start, command_server, directory, start
from ...cli.test_start import KEYS, logged
from ...ports import free_port
from ...temporal.dev_server import DevServer
from ...temporal.tls import Authority, TLSFront
from .test_in_process import App, add_sync

__all__ = ["command_server", "directory", "start"]

API_KEY = "tmprl_engine_key_0987654321"


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def front(server: DevServer, authority: Authority, tmp_path: Path) -> Iterator[TLSFront]:
    """A TLS front of the server. It writes its authority's certificate to ``ca``."""
    front = TLSFront(server.port, authority, tmp_path, demands_certificate=False, api_key=API_KEY)
    with closing(front):
        yield front


async def test_functions_run_over_tls_with_an_api_key(front: TLSFront, authority: Authority) -> None:
    tls = TLSConfig(server_root_ca_cert=authority.pem)
    app = App(TemporalEngine(front.address, tls=tls, api_key=API_KEY), "over-tls").serve(add_sync)
    async with app.engine.running():
        await app.send("add-sync", n=1)
        assert await app.reported() == [1, 2]
    assert set(front.authorizations) == {f"Bearer {API_KEY}"}


def test_durably_start_reads_tls_and_api_key_from_variables(start: Start, front: TLSFront, tmp_path: Path) -> None:
    connection = {"TEMPORAL_API_KEY": API_KEY, "TEMPORAL_TLS_SERVER_CA_CERT_PATH": str(tmp_path / "ca")}
    engine = start("start", "--temporal", front.address, "--port", str(free_port()), **KEYS, **connection)
    assert logged(engine, "engine started")["temporal"] == front.address
    assert engine.stop(signal.SIGTERM) == 0
    assert API_KEY not in engine.output
    assert set(front.authorizations) == {f"Bearer {API_KEY}"}
