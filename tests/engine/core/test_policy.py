"""When attempts are made again."""

import datetime as dt

import pytest

from durably.engine.core.calls import ReportedOps, read_answer
from durably.engine.core.run_state import dev_backoff, standard_backoff, unreached_backoff

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


def test_delays_are_those_of_the_protocol() -> None:
    delays = [standard_backoff(attempt, 0).total_seconds() for attempt in range(12)]
    assert delays == [15, 30, 60, 120, 300, 600, 1200, 2400, 3600, 7200, 7200, 7200]
    assert standard_backoff(0, 1) == dt.timedelta(seconds=45)


def test_delays_grow_and_are_bounded() -> None:
    for backoff, most in ((dev_backoff, 33), (unreached_backoff, 12.5)):
        delays = [backoff(attempt, 0) for attempt in range(30)]
        assert delays == sorted(delays)
        assert all(dt.timedelta(0) < backoff(attempt, 1) <= dt.timedelta(seconds=most) for attempt in range(100))


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("30", 30),
        ("0", 1),
        ("90000", 86400),
        ("2026-01-01T00:01:00Z", 60),
        ("Thu, 01 Jan 2026 00:02:00 GMT", 120),
        ("2020-01-01T00:00:00Z", 1),
        ("whenever", None),
    ],
)
def test_retry_after_is_read_and_clipped(header: str, seconds: int | None) -> None:
    answer = read_answer(206, {"x-inngest-sdk": "py:v1", "retry-after": header}, b"[]", round(NOW.timestamp() * 1000))
    assert isinstance(answer, ReportedOps)
    expected = None if seconds is None else round((NOW.timestamp() + seconds) * 1000)
    assert answer.retry_at == expected
