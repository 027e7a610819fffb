"""When a process must doubt what it knew: after a gap in its contact with the others."""

import pytest

from durably.in_process.heartbeat import Pulse


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_there_is_no_doubt_while_it_beats(clock: Clock) -> None:
    pulse = Pulse(1.0, clock)
    for _ in range(10):
        clock.now += 0.9
        assert not pulse.is_doubtful(since=100.0)
        pulse.beat()


def test_a_beat_that_is_overdue_is_reason_for_doubt(clock: Clock) -> None:
    pulse = Pulse(1.0, clock)
    clock.now += 1.1
    assert pulse.is_doubtful(since=100.0)
    assert pulse.is_doubtful(since=clock.now)


@pytest.mark.parametrize("is_lost", [False, True])
def test_after_a_gap_what_was_known_before_it_stays_doubtful(clock: Clock, is_lost: bool) -> None:
    pulse = Pulse(1.0, clock)
    if is_lost:
        pulse.lose_contact()
    else:
        clock.now += 5.0
        pulse.beat()
    ended = clock.now
    for _ in range(4):
        clock.now += 0.5
        pulse.beat()
    assert pulse.is_doubtful(since=ended - 0.1)
    assert not pulse.is_doubtful(since=ended + 0.1)


def test_what_arrives_just_after_a_gap_is_doubtful_too(clock: Clock) -> None:
    pulse = Pulse(1.0, clock)
    clock.now += 5.0
    pulse.beat()
    assert pulse.is_doubtful(pulse.certain_at_arrival())
    clock.now += 0.9
    pulse.beat()
    assert pulse.is_doubtful(pulse.certain_at_arrival())
    clock.now += 0.2
    pulse.beat()
    assert not pulse.is_doubtful(pulse.certain_at_arrival())
