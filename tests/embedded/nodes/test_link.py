"""A link: requests in both directions, errors, cancellation, lost and silent peers, and stale views after a gap."""

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from durably.embedded.nodes.link import AnswerError, Heartbeat, Link, LinkLostError, Timing
from durably.protocol.engine_errors import RunNotFoundError

QUICK = Timing(lease=0.3, heartbeat=0.05)


async def refuse(name: str, payload: bytes) -> bytes:
    raise RunNotFoundError(f"no {name}")


Answer = Callable[[str, bytes], Awaitable[bytes]]


@asynccontextmanager
async def linked(path: Path, here: Answer = refuse, there: Answer = refuse) -> AsyncIterator[tuple[Link, Link]]:
    loop = asyncio.get_running_loop()
    others: asyncio.Queue[Link] = asyncio.Queue()

    def accept() -> Link:
        link = Link(there, QUICK)
        others.put_nowait(link)
        return link

    server = await loop.create_unix_server(accept, str(path / "s"))
    _, link = await loop.create_unix_connection(lambda: Link(here, QUICK), str(path / "s"))
    other = await others.get()
    try:
        yield link, other
    finally:
        link.close()
        other.close()
        server.close()


async def echo(name: str, payload: bytes) -> bytes:
    return payload


async def test_both_sides_send_many_requests_at_once(tmp_path: Path) -> None:
    async def later(name: str, payload: bytes) -> bytes:
        await asyncio.sleep(0.02 / (1 + payload[0]))
        return payload + name.encode()

    async with linked(tmp_path, later, later) as (link, other):
        requested = [side.request("?", bytes([number])) for side in (link, other) for number in range(50)]
        assert await asyncio.gather(*requested) == [bytes([number]) + b"?" for _ in range(2) for number in range(50)]


async def test_large_frames_arrive_whole(tmp_path: Path) -> None:
    async with linked(tmp_path, there=echo) as (link, _):
        large = os.urandom(8_000_000)
        small, answer = await asyncio.gather(link.request("small", b"x"), link.request("large", large))
        assert (small, answer) == (b"x", large)


async def test_errors_carry_their_name(tmp_path: Path) -> None:
    async with linked(tmp_path) as (link, _):
        with pytest.raises(AnswerError, match="no run") as raised:
            await link.request("run", b"")
        assert raised.value.error_name == "RunNotFoundError"


async def test_cancelled_request_cancels_the_work(tmp_path: Path) -> None:
    began, cancelled = asyncio.Event(), asyncio.Event()

    async def work(name: str, payload: bytes) -> bytes:
        began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return b""

    async with linked(tmp_path, there=work) as (link, _):
        requested = asyncio.create_task(link.request("work", b""))
        await began.wait()
        requested.cancel()
        await asyncio.wait_for(cancelled.wait(), 60)


async def test_end_of_one_side_ends_the_requests_and_work_of_the_other(tmp_path: Path) -> None:
    began, cancelled = asyncio.Event(), asyncio.Event()

    async def work(name: str, payload: bytes) -> bytes:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return b""

    async with linked(tmp_path, there=work) as (link, other):
        requested = asyncio.create_task(link.request("work", b""))
        await began.wait()
        link.close()
        with pytest.raises(LinkLostError):
            await requested
        await asyncio.wait_for(cancelled.wait(), 60)
        await asyncio.wait_for(other.lost.wait(), 60)
        with pytest.raises(LinkLostError):
            await other.request("more", b"")
        assert not other.was_silent


async def test_a_side_that_falls_silent_is_given_up_on(tmp_path: Path) -> None:
    """Like a stopped process, whose kernel still accepts data."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        _, link = await loop.create_unix_connection(lambda: Link(refuse, QUICK), str(tmp_path / "s"))
        with pytest.raises(LinkLostError):
            await asyncio.wait_for(link.request("anything", b""), 60)
        assert link.was_silent


async def test_invalid_frame_ends_the_link(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        listener.setblocking(False)
        _, link = await loop.create_unix_connection(
            lambda: Link(refuse, Timing(lease=2.5, heartbeat=0.25)), str(tmp_path / "s")
        )
        connection, _ = await loop.sock_accept(listener)
        with connection:
            await loop.sock_sendall(connection, struct.pack(">I", 2**32 - 1))
            await asyncio.wait_for(link.lost.wait(), 60)
        assert not link.was_silent


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_view_is_current_while_the_heartbeat_continues(clock: Clock) -> None:
    heartbeat = Heartbeat(1.0, clock)
    for _ in range(10):
        clock.now += 0.9
        assert not heartbeat.may_be_stale(since=100.0)
        heartbeat.beat()


def test_a_view_may_be_stale_when_a_beat_is_overdue(clock: Clock) -> None:
    heartbeat = Heartbeat(1.0, clock)
    clock.now += 1.1
    assert heartbeat.may_be_stale(since=100.0)
    assert heartbeat.may_be_stale(since=clock.now)


@pytest.mark.parametrize("is_lost", [False, True])
def test_a_view_from_before_a_gap_stays_stale(clock: Clock, is_lost: bool) -> None:
    heartbeat = Heartbeat(1.0, clock)
    if is_lost:
        heartbeat.lose_contact()
    else:
        clock.now += 5.0
        heartbeat.beat()
    ended = clock.now
    for _ in range(4):
        clock.now += 0.5
        heartbeat.beat()
    assert heartbeat.may_be_stale(since=ended - 0.1)
    assert not heartbeat.may_be_stale(since=ended + 0.1)


def test_data_just_after_a_gap_may_be_stale(clock: Clock) -> None:
    heartbeat = Heartbeat(1.0, clock)
    clock.now += 5.0
    heartbeat.beat()
    assert heartbeat.may_be_stale(heartbeat.certain_at_arrival())
    clock.now += 0.9
    heartbeat.beat()
    assert heartbeat.may_be_stale(heartbeat.certain_at_arrival())
    clock.now += 0.2
    heartbeat.beat()
    assert not heartbeat.may_be_stale(heartbeat.certain_at_arrival())
