"""The rate algorithm, over random arrivals."""

from hypothesis import given
from hypothesis import strategies as st

from durably.engine.core.flow.buckets import Level, Pace, pace_of

_START = 1_700_000_000_000
_limits = st.integers(1, 2_000)
_periods = st.sampled_from([1_000, 7_000, 60_000, 3_600_000, 86_400_000])
_bursts = st.integers(1, 50)


def admitted(pace: Pace, arrivals: list[int]) -> list[int]:
    """The arrivals that a rate limit accepts. The state is stored in between."""
    level, kept = None, []
    for now in arrivals:
        if pace.ready_at(level, now) <= now:
            level = Level.decode(pace.take(level, now).encode())
            kept.append(now)
    return kept


@given(_limits, _periods, _bursts, st.lists(st.integers(0, 5_000), min_size=1, max_size=200))
def test_no_stretch_of_time_has_more_than_its_share_and_the_burst(
    limit: int, period: int, burst: int, gaps: list[int]
) -> None:
    now, arrivals = _START, []
    for gap in gaps:
        now += gap
        arrivals.append(now)
    kept = admitted(pace_of(limit, period, burst), arrivals)
    for first, begin in enumerate(kept):
        for last in range(first, len(kept)):
            assert last - first + 1 <= (kept[last] - begin + 1) * limit / period + burst


@given(st.integers(1, 100), _periods, _bursts)
def test_in_the_long_run_units_come_at_the_rate(limit: int, period: int, burst: int) -> None:
    pace, level, now = pace_of(limit, period, burst), None, _START
    count = 3 * limit + burst
    for _ in range(count):
        now = pace.ready_at(level, now)
        level = pace.take(level, now)
    exact = (count - burst) * period / limit
    assert exact - 1 <= now - _START <= exact + count * 1e-6 + 1


@given(_limits, _periods, _bursts, st.lists(st.integers(0, 2_000), max_size=60), st.integers(0, 10_000))
def test_ready_at_is_the_first_time_at_which_a_unit_may_be_used(
    limit: int, period: int, burst: int, gaps: list[int], ahead: int
) -> None:
    pace, level, now = pace_of(limit, period, burst), None, _START
    for gap in gaps:
        now = max(now + gap, pace.ready_at(level, now + gap))
        level = pace.take(level, now)
    ready = pace.ready_at(level, now)
    assert pace.ready_at(level, ready) == ready
    assert ready == now or pace.ready_at(level, ready - 1) == ready
    assert pace.ready_at(level, now + ahead) == max(ready, now + ahead)
    if level is not None:
        later = max(now, level.expires)
        assert [pace.ready_at(state, later) for state in (level, None)] == [later, later]
        assert pace.take(level, later) == pace.take(None, later)


@given(_limits, _periods, _bursts, st.integers(0, 10**10))
def test_a_clock_that_was_set_back_keeps_nothing_closed_for_longer_than_a_full_bucket(
    limit: int, period: int, burst: int, step: int
) -> None:
    pace, level = pace_of(limit, period, burst), None
    for _ in range(burst):
        level = pace.take(level, _START)
    assert pace.ready_at(level, _START - step) <= _START - step + pace.interval / 1e6 + 1


@given(_limits, _periods, _bursts, st.integers(0, 10**10))
def test_after_the_clock_was_set_back_a_waiting_unit_is_used_in_time_and_the_rate_is_kept(
    limit: int, period: int, burst: int, step: int
) -> None:
    pace, level = pace_of(limit, period, burst), None
    for _ in range(burst):
        level = pace.take(level, _START)
    assert level is not None
    now = begin = _START - step
    level = pace.clip(level, now)  # A unit has to wait: the clipped level is stored.
    for nth in range(1, 2 * burst):
        now = pace.ready_at(level, now)
        assert now <= begin + nth * (pace.interval / 1e6 + 1)
        assert pace.ready_at(level, now) == now
        level = pace.take(level, now)
