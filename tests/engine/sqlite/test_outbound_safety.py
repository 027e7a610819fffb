"""Requests for steps reach no private address, and show no credential."""

import ipaddress
import logging
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from durably.engine.model import requests
from durably.engine.model.requests import OutboundClient, OutboundError, is_public

PRETENDED = "127.0.0.2"
"""An address of this machine that tests take for a public one."""


@pytest.fixture
async def outbound() -> AsyncIterator[OutboundClient]:
    outbound = OutboundClient(timeout=20)
    yield outbound
    await outbound.close()


@pytest.fixture
async def private(serving: Any) -> AsyncIterator[Any]:
    async with serving() as server:
        yield server


@pytest.fixture
async def public(serving: Any, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Any]:
    monkeypatch.setattr(requests, "is_public", lambda address: address == PRETENDED or is_public(address))
    async with serving(PRETENDED) as server:
        yield server


def resolve_to(monkeypatch: pytest.MonkeyPatch, *found: str) -> None:
    """Let every host name resolve to these addresses."""
    original = socket.getaddrinfo

    def getaddrinfo(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        if str(host).endswith(".example"):
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]
        return original(host, port, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "LOCALHOST.",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "0177.0.0.1",
        "0",
        "0.0.0.0",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[64:ff9b::7f00:1]",
        "１２７.0.0.1",
        "169.254.169.254",
        "10.0.0.1",
    ],
)
async def test_private_addresses_are_refused_however_they_are_spelt(
    private: Any, outbound: OutboundClient, host: str
) -> None:
    port = private.url.rpartition(":")[2]
    for send in (outbound.fetch, outbound.infer):
        with pytest.raises(OutboundError) as caught:
            await send({"url": f"http://{host}:{port}/", "body": None})
        assert "no connection" not in str(caught.value)  # nor was one tried
    assert private.requests == []


async def test_refusal_is_final_and_has_a_remedy(private: Any, outbound: OutboundClient) -> None:
    with pytest.raises(OutboundError, match="--allow-private-addresses") as caught:
        await outbound.fetch({"url": private.url})
    assert not caught.value.retriable


async def test_names_that_resolve_to_private_addresses(
    private: Any, outbound: OutboundClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve_to(monkeypatch, "127.0.0.1", "10.0.0.1")
    with pytest.raises(OutboundError, match="not on the public internet") as caught:
        await outbound.fetch({"url": private.url.replace("127.0.0.1", "shop.example")})
    assert not caught.value.retriable
    assert private.requests == []


async def test_names_with_a_public_address_among_others_reach_that_one(
    public: Any, outbound: OutboundClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve_to(monkeypatch, "127.0.0.1", PRETENDED)
    await outbound.fetch({"url": public.url.replace(PRETENDED, "shop.example")})
    assert len(public.requests) == 1


async def test_a_name_that_resolves_otherwise_the_second_time(
    public: Any, private: Any, outbound: OutboundClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve_to(monkeypatch, PRETENDED)
    await outbound.fetch({"url": public.url.replace(PRETENDED, "shop.example")})
    resolve_to(monkeypatch, "127.0.0.1")
    with pytest.raises(OutboundError, match="not on the public internet"):
        await outbound.fetch({"url": private.url.replace("127.0.0.1", "again.example")})
    assert private.requests == []


async def test_redirects_to_private_addresses(public: Any, private: Any, outbound: OutboundClient) -> None:
    public.respond(status=307, headers={"Location": private.url})
    with pytest.raises(OutboundError, match="not on the public internet"):
        await outbound.fetch({"url": public.url})
    assert len(public.requests) == 1
    assert private.requests == []


async def test_proxies_of_the_environment_are_not_used(
    public: Any, outbound: OutboundClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", public.url)
    with pytest.raises(OutboundError, match="not on the public internet"):
        await outbound.fetch({"url": "http://10.0.0.1/"})
    assert public.requests == []


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "172.15.0.1", "100.63.255.255", "2606:4700::1111"])
def test_public_addresses_are_allowed(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    """0.0.0.0 0.1.2.3 10.1.2.3 100.64.0.1 100.100.100.200 127.8.8.8 168.63.129.16 169.254.169.254 172.16.0.1
    172.31.255.255 192.0.0.192 192.0.2.1 192.88.99.1 192.168.0.1 198.18.0.1 198.51.100.1 203.0.113.1 224.0.0.1 239.1.1.1
    240.0.0.1 255.255.255.255 :: ::1 ::127.0.0.1 ::ffff:8.8.8.8 ::ffff:10.0.0.1 64:ff9b::808:808 64:ff9b:1::1 100::1
    2001::1 2001:db8::1 2002:7f00:1:: 3fff::1 fc00::1 fd00:ec2::254 fe80::1 fe80::1%lo fec0::1 ff02::1 5f00::1 nonsense
    """.split(),  # noqa: SIM905
)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


@given(st.ip_addresses())
def test_nothing_private_is_public(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    if is_public(str(ip)):
        kinds = ("is_private", "is_loopback", "is_link_local", "is_multicast", "is_unspecified", "is_reserved")
        wrapped = ("ipv4_mapped", "sixtofour", "teredo")
        assert not any(getattr(ip, name, None) for name in kinds + wrapped)


# Credentials

KEY = "sk-Very5ecretKeyOfAnApp"


@pytest.fixture
async def unsafe() -> AsyncIterator[OutboundClient]:
    outbound = OutboundClient(allow_private_addresses=True, timeout=0.2, max_bytes=1000)
    yield outbound
    await outbound.close()


async def _repeat(request: web.Request) -> web.StreamResponse:
    said = f"bad key: {request.headers.get('authorization')} {request.headers.get('x-api-key')} {request.path_qs}"
    return web.Response(status=401, text=said)


async def _close(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.close()
    return web.Response()


async def _too_large(request: web.Request) -> web.StreamResponse:
    return web.Response(text="0" * 2000)


async def _elsewhere(request: web.Request) -> web.StreamResponse:
    return web.Response(status=302, headers={"Location": f"ftp://x/?key={KEY}"})


@pytest.mark.parametrize("answer", [_repeat, _close, _too_large, _elsewhere])
@pytest.mark.parametrize("format", ["openai-chat", "anthropic", "gemini", "bedrock"])
async def test_no_credential_in_an_error_or_a_log(
    private: Any, unsafe: OutboundClient, caplog: pytest.LogCaptureFixture, answer: Any, format: str
) -> None:
    caplog.set_level(logging.DEBUG)
    private.answer = answer
    opts = {"url": f"{private.url}/?token={KEY}", "auth_key": KEY, "format": format, "body": {}}
    with pytest.raises(OutboundError) as caught:
        await unsafe.infer(opts)
    error = caught.value
    assert KEY not in f"{error!r} {error} {error.message} {caplog.text} {unsafe!r} {vars(error)}"
    assert error.__cause__ is None
    assert error.__suppress_context__ or error.__context__ is None


@pytest.mark.parametrize(
    "opts",
    [
        {"url": f"http://me:{KEY}@127.0.0.1:1/"},
        {"url": f"http://127.0.0.1:1/?access_token={KEY}"},
        {"url": f"http://127.0.0.1:1/hooks/{KEY}"},
        {"url": f"http://127.0.0.1:1:{KEY}/"},
        {"url": f"ftp://me:{KEY}@127.0.0.1/"},
        {"url": "http://127.0.0.1:1/", "headers": {"Authorization": f"Bearer {KEY}"}},
        {"url": "http://127.0.0.1:1/", "headers": {"Cookie": f"{KEY}\n"}},
        {"url": "http://127.0.0.1:1/", "headers": {"X-Api-Key": [KEY]}},
        {"url": "http://127.0.0.1:1/", "auth_key": f"{KEY}\n"},
    ],
)
async def test_no_credential_in_the_error_of_a_request_that_was_not_made(unsafe: OutboundClient, opts: Any) -> None:
    for send in (unsafe.fetch, unsafe.infer):
        with pytest.raises(OutboundError) as caught:
            await send({"body": None, **opts})
        assert KEY not in f"{caught.value!r} {caught.value}"
