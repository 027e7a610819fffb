"""A development engine answers only local hosts and origins, so DNS rebinding fails."""

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durably.engine.api.http.requests import AllowedHosts, check_allowed_host
from durably.engine.api.http.server import EngineServer
from durably.engine.model.settings import Durability, EngineSettings
from durably.engine.sqlite.server import serve_database

from .conftest import EVENT_KEY, Harness
from .test_auth import GUARDED

ROUTES = [*GUARDED, ("GET", "/"), ("GET", "/health"), ("GET", "/dev"), ("POST", "/e/any"), ("OPTIONS", "/e/any")]


async def ask(origin: str, *lines: str) -> tuple[int, str]:
    """Status and the rest of the answer to a request that no client library would make."""
    host, _, port = origin.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    writer.write("\r\n".join([*lines, "Connection: close", "Content-Length: 0", "", ""]).encode("latin-1"))
    answer = (await reader.read()).decode()
    writer.close()
    await writer.wait_closed()
    return int(answer.split()[1]), answer


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_other_hosts_are_refused_on_every_route(dev: Harness, method: str, path: str) -> None:
    status, answer = await dev.json(method, path, headers={"host": "evil.example"})
    assert status == 403
    assert "evil.example" in answer["error"]
    assert "--allowed-host" in answer["error"]


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_embedded_request_of_another_site_is_refused(dev: Harness, method: str, path: str) -> None:
    """A browser sends no ``Origin`` for an image or a script, but where it comes from."""
    await dev.json("GET", "/dev")  # the host is known now
    headers = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}
    status, answer = await dev.json(method, path, headers=headers)
    assert (status, "another site" in answer["error"]) == (403, True)


@pytest.mark.parametrize(
    ("site", "mode"),
    [("cross-site", "navigate"), ("same-origin", "cors"), ("same-site", "no-cors"), ("none", "navigate")],
)
async def test_links_and_pages_of_this_machine_are_answered(dev: Harness, site: str, mode: str) -> None:
    headers = {"sec-fetch-site": site, "sec-fetch-mode": mode}
    assert (await dev.json("GET", "/dev", headers=headers))[0] == 200


@pytest.mark.parametrize(
    "lines",
    [
        ("GET /dev HTTP/1.1", "Host: localhost.evil.example"),
        ("GET /dev HTTP/1.1", "Host: 127.0.0.1.evil.example"),
        ("GET /dev HTTP/1.1", "Host: localhost@evil.example"),
        ("GET /dev HTTP/1.1", "Host: evil.example:127"),
        ("GET /dev HTTP/1.1", "Host: 192.168.0.1"),
        ("GET /dev HTTP/1.1", "Host: [fe80::1]"),
        ("GET /dev HTTP/1.1", "Host: "),
        ("GET /dev HTTP/1.1", "Host: \x1b[31m"),
        ("GET /dev HTTP/1.1",),
        ("GET /dev HTTP/1.0",),
        ("GET http://evil.example/dev HTTP/1.1", "Host: localhost"),
        ("GET http://localhost/dev HTTP/1.1", "Host: evil.example"),
        ("GET /dev HTTP/1.1", "Host: localhost", "Host: evil.example"),
    ],
)
async def test_other_hosts_are_not_local(dev: Harness, lines: tuple[str, ...]) -> None:
    status, answer = await ask(dev.server.origin, *lines)
    assert status in (400, 403)
    assert "\x1b" not in answer


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://[", "http://localhost.evil.example"])
async def test_pages_of_other_origins_may_not_send_events_either(dev: Harness, origin: str) -> None:
    for method in ("POST", "OPTIONS"):
        status, _ = await dev.json(method, "/e/any", json={"name": "a"}, headers={"origin": origin})
        assert status == 403
    assert await dev.engine.list_events() == []


async def test_the_log_says_why_once(dev: Harness, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(50):
        await dev.json("GET", "/dev", headers={"host": "engine"})
    lines = [record for record in caplog.records if "--allowed-host" in record.getMessage()]
    assert [(line.levelno, "'engine'" in line.getMessage()) for line in lines] == [(logging.WARNING, True)]


@pytest.fixture
async def opened_to_others(tmp_path: Path) -> AsyncIterator[EngineServer]:
    settings = EngineSettings(durability=Durability.NORMAL)
    async with await serve_database(
        tmp_path / "engine.db", settings, port=0, allowed_hosts=["host.docker.internal"]
    ) as server:
        yield server


async def test_allowed_hosts_are_answered_and_so_are_their_pages(opened_to_others: EngineServer) -> None:
    origin = opened_to_others.origin
    for host in ("host.docker.internal:8288", "localhost"):
        assert (await ask(origin, "GET /dev HTTP/1.1", f"Host: {host}"))[0] == 200
    page = "Origin: http://host.docker.internal:3000"
    assert (await ask(origin, "GET /dev HTTP/1.1", "Host: localhost", page))[0] == 200
    assert (await ask(origin, "GET /dev HTTP/1.1", "Host: evil.example"))[0] == 403


async def test_in_production_the_keys_decide_and_not_the_host(cloud: Harness) -> None:
    """A proxy may pass on any name."""
    status, _ = await cloud.json("POST", f"/e/{EVENT_KEY}", json={"name": "a"}, headers={"host": "engine.example"})
    assert status == 200


def test_engine_on_all_addresses_answers_each_of_them() -> None:
    """DNS can redirect a name, but not an address."""
    everywhere, here = AllowedHosts("0.0.0.0"), AllowedHosts("127.0.0.1")
    for host in ("192.168.0.7:8288", "[2001:db8::1]"):
        assert (everywhere.allows_host(host), here.allows_host(host)) == (True, False)
    assert not everywhere.allows_host("engine")
    for origin, host, is_allowed in [
        ("http://192.168.0.7:8288", "192.168.0.7:8288", True),  # its dashboard
        ("http://[2001:DB8::1]:8288", "[2001:db8:0::1]:8288", True),
        ("http://localhost:3000", "192.168.0.7:8288", True),
        ("http://203.0.113.5", "192.168.0.7:8288", False),
        ("http://203.0.113.5", "localhost:8288", False),
        ("http://[2001:db8::2]", "[2001:db8::1]:8288", False),
    ]:
        assert everywhere.allows_origin(origin, host) is is_allowed, (origin, host)
    assert AllowedHosts("192.168.0.7").allows_host("192.168.0.7")
    assert AllowedHosts("box.lan").allows_host("BOX.lan:80")
    assert AllowedHosts(names=["*"]).allows_host("anything")


@pytest.mark.parametrize("name", ["http://a", "a:80", "a/b", "", "a b"])
def test_invalid_allowed_host_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not a host"):
        check_allowed_host(name)


@given(st.text(max_size=30))
def test_no_header_breaks_the_check(text: str) -> None:
    hosts = AllowedHosts()
    for allows in (hosts.allows_host, lambda origin: hosts.allows_origin(origin, "localhost")):
        assert not allows(text) or any(local in text.lower() for local in ("localhost", "127.", "::1", "0:1"))
