"""HTTP to an engine: requests, and the errors of failures."""

import asyncio
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from durably.errors import TransportError
from durably.execution import drive
from durably.io.http_client import AsyncIO, BlockingIO, Request, send

from ..fake_engine import FakeEngine


@contextmanager
def serving(handle: Callable[[socket.socket], Any]) -> Iterator[str]:
    """A server that does to each connection whatever ``handle`` does; yields its host and port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=run, args=(connection,), daemon=True).start()

        def run(connection: socket.socket) -> None:
            with connection, suppress(OSError):
                handle(connection)

        threading.Thread(target=accept, daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


def get(url: str, timeout: float = 5, **headers: str) -> Request:
    return Request("GET", url, headers, timeout=timeout)


def failure_of(request: Request) -> str:
    with pytest.raises(TransportError) as raised:
        send(request)
    assert "secret" not in str(raised.value)
    return str(raised.value)


def test_request_and_answer_are_transferred_unchanged(engine: FakeEngine) -> None:
    engine.answers["/a/b"] = 418, {"short": "stout"}
    response = send(Request("POST", f"{engine.origin}/a/b?c=d", {"x-header": "value"}, b"body"))
    assert (response.status, response.body) == (418, b'{"short": "stout"}')
    [received] = engine.received
    assert (received.method, received.path, received.query, received.body) == ("POST", "/a/b", {"c": ["d"]}, b"body")
    assert received.headers["x-header"] == "value"


def test_redirects_are_not_followed() -> None:
    def redirect(connection: socket.socket) -> None:
        connection.recv(1000)
        connection.sendall(b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:9/\r\ncontent-length: 0\r\n\r\n")

    with serving(redirect) as host:
        assert send(get(f"http://{host}/")).status == 302


# -- failures


def test_engine_that_is_not_running_is_unreachable() -> None:
    assert failure_of(get("http://user:secret@127.0.0.1:9/e/secret")) == (
        "cannot reach http://127.0.0.1:9: connection refused"
    )


def test_unknown_host_is_named() -> None:
    message = failure_of(get("http://nowhere.invalid/e/secret"))
    assert message == "cannot reach http://nowhere.invalid: the host's name cannot be resolved"


def test_no_answer_in_time() -> None:
    done = threading.Event()
    with serving(lambda connection: done.wait(10)) as host:
        message = failure_of(get(f"http://{host}/e/secret", timeout=0.1))
        done.set()
    assert message == f"cannot reach http://{host}: it did not answer in time"


def test_the_timeout_bounds_the_whole_answer_and_not_each_wait_for_a_part_of_it() -> None:
    done = threading.Event()

    def dribble(connection: socket.socket) -> None:
        connection.recv(1000)
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
        while not done.wait(0.05):
            connection.sendall(b"x")

    with serving(dribble) as host:
        started = time.monotonic()
        message = failure_of(get(f"http://{host}/e/secret", timeout=0.3))
        done.set()
    assert message == f"cannot reach http://{host}: it did not answer in time"
    assert time.monotonic() - started < 60


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nonly this", b"nonsense\r\n\r\n"])
def test_an_answer_that_breaks_off(sent: bytes) -> None:
    def break_off(connection: socket.socket) -> None:
        connection.recv(1000)
        connection.sendall(sent)

    with serving(break_off) as host:
        assert failure_of(get(f"http://{host}/e/secret")) == f"cannot reach http://{host}: the connection broke off"


def test_a_request_shows_nothing_secret() -> None:
    request = Request("POST", "http://host/e/secret", {"authorization": "secret"}, b"secret")
    assert "secret" not in repr(request)


# -- proxies


@contextmanager
def serving_proxy(seen: list[str]) -> Iterator[str]:
    def answer(connection: socket.socket) -> None:
        seen.append(connection.recv(10_000).decode())
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\nconnection: close\r\n\r\nproxied")

    with serving(answer) as host:
        yield host


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
@pytest.mark.parametrize("scheme", ["http://", ""])
def test_a_proxy_of_the_environment(monkeypatch: pytest.MonkeyPatch, variable: str, scheme: str) -> None:
    seen: list[str] = []
    with serving_proxy(seen) as host:
        monkeypatch.setenv(variable, f"{scheme}{host}")
        assert send(get("http://engine.invalid/path")).body == b"proxied"
    assert seen[0].startswith("GET http://engine.invalid/path HTTP/1.1\r\n")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_local_requests_use_no_proxy(monkeypatch: pytest.MonkeyPatch, engine: FakeEngine, host: str) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    assert send(get(engine.origin.replace("127.0.0.1", host) + "/dev")).status == 200


def test_unreachable_proxy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://me:secret@127.0.0.1:9")
    message = failure_of(get("http://engine.invalid/e/secret"))
    assert message == "cannot reach http://engine.invalid: its proxy: connection refused"


# -- connections


def test_connections_are_kept_and_shared_by_threads_and_loops() -> None:
    opened: list[socket.socket] = []

    def answer(connection: socket.socket) -> None:
        opened.append(connection)
        while connection.recv(10_000):
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")

    with serving(answer) as host:
        request = get(f"http://{host}/")
        for _ in range(3):
            assert drive(BlockingIO().request(request)).body == b"ok"
            assert asyncio.run(AsyncIO().request(request)).body == b"ok"
        assert len(opened) == 1


def test_a_forked_process_opens_its_own(engine: FakeEngine) -> None:
    program = f"""
import asyncio, os
from durably.io.http_client import AsyncIO, Request, send
request = Request("GET", "{engine.origin}/dev", {{}})
async def ask(): return await AsyncIO().request(request)
assert send(request).status == 200 and asyncio.run(ask()).status == 200
if child := os.fork():
    assert send(request).status == 200
    os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
assert send(request).status == 200 and asyncio.run(ask()).status == 200
os._exit(7)
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 7


async def test_an_async_caller_waits_without_blocking_its_loop() -> None:
    done = threading.Event()

    def late(connection: socket.socket) -> None:
        connection.recv(1000)
        done.wait(10)
        connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")

    with serving(late) as host:
        request = asyncio.ensure_future(AsyncIO().request(get(f"http://{host}/")))
        await asyncio.sleep(0)  # the loop is free to do this while the request waits
        assert not request.done()
        done.set()
        assert (await request).status == 204


def test_error_of_an_invalid_proxy_names_its_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://[")
    with pytest.raises(TransportError, match="HTTP_PROXY"):
        send(Request("GET", "http://engine.example.com/", {}))


def test_error_of_an_invalid_header_blames_no_proxy_and_shows_no_value() -> None:
    with pytest.raises(TransportError, match="header") as refused:
        send(Request("GET", "http://engine.example.com/", {"authorization": "Bearer secret\n"}))
    assert "PROXY" not in str(refused.value)
    assert "secret" not in str(refused.value)
