"""When the view of a process may be stale: after a gap in its contact with the others."""

import pytest

from durably.in_process.link import Heartbeat


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_view_is_fresh_while_the_heartbeat_continues(clock: Clock) -> None:
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


def test_what_arrives_just_after_a_gap_may_be_stale_too(clock: Clock) -> None:
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
