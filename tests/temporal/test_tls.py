"""TLS with certificates on both sides, from the environment's settings as in production."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from temporalio.service import TLSConfig

from durably.temporal import Temporal, TemporalUnreachableError

from .dev_server import DevServer
from .tls import Authority, TLSFront


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def front(server: DevServer, authority: Authority, tmp_path: Path) -> Iterator[TLSFront]:
    front = TLSFront(server.port, authority, tmp_path)
    yield front
    front.close()


async def test_certificates_are_read_from_the_environment(
    front: TLSFront, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = authority.issue("app")
    (tmp_path / "mine").write_bytes(mine.cert)
    (tmp_path / "mine.key").write_bytes(mine.key)
    monkeypatch.setenv("TEMPORAL_ADDRESS", front.address)
    monkeypatch.setenv("TEMPORAL_TLS_CLIENT_CERT_PATH", str(tmp_path / "mine"))
    monkeypatch.setenv("TEMPORAL_TLS_CLIENT_KEY_PATH", str(tmp_path / "mine.key"))
    monkeypatch.setenv("TEMPORAL_TLS_SERVER_CA_CERT_PATH", str(tmp_path / "ca"))
    assert (await Temporal().check_health()).ok


async def test_another_authority_is_not_trusted_and_no_certificate_not_taken(
    front: TLSFront, authority: Authority
) -> None:
    mine = authority.issue("app")
    stranger = TLSConfig(server_root_ca_cert=Authority().pem, client_cert=mine.cert, client_private_key=mine.key)
    anonymous = TLSConfig(server_root_ca_cert=authority.pem)
    for tls in (stranger, anonymous, True):
        with pytest.raises(TemporalUnreachableError, match=front.address) as failure:
            await Temporal(front.address, tls=tls).client()
        assert "PRIVATE" not in str(failure.value)
