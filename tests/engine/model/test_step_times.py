"""Times of steps, as apps report them, on the engine's clock."""

from typing import Any

import pytest

from durably.engine.model.records import clock_shift, step_times
from durably.protocol.opcodes import Op, Timing, read_timing

SECOND = 1_000_000


def op(start: int, duration: int) -> Op:
    """A step's op, with times in microseconds."""
    return Op(id="a", op="StepRun", timing={"a": start * 1000, "b": duration * 1000})


def test_times_of_an_app_with_the_same_clock_are_kept() -> None:
    assert clock_shift([op(110, 5), op(120, 30)], 100, 200) == 0
    assert step_times(110, 5, 100, 200) == (110, 5)


@pytest.mark.parametrize("wrong", [-3600 * SECOND, 3600 * SECOND])
def test_steps_of_an_app_with_another_clock_keep_their_distances(wrong: int) -> None:
    ops = [op(wrong + 10, 20), op(wrong + 40, 20)]
    shift = clock_shift(ops, 1000, 1100)
    times = [step_times(wrong + start + shift, 20, 1000, 1100) for start in (10, 40)]
    assert times[1][0] - times[0][0] == 30
    assert all(start >= 1000 and start + duration <= 1100 for start, duration in times)


def test_a_step_is_not_longer_than_its_call() -> None:
    assert step_times(50, 1000, 100, 200) == (100, 100)
    assert step_times(300, 1000, 100, 200) == (200, 0)


@pytest.mark.parametrize("timing", [None, {}, [], "soon", {"a": "x", "b": 1}, {"a": 1}, {"a": float("inf"), "b": 1}])
def test_implausible_times_are_dropped(timing: Any) -> None:
    assert read_timing(timing) is None
    assert clock_shift([Op(op="StepRun", timing=timing)], 0, 1) == 0


def test_times_as_the_javascript_sdk_sends_them() -> None:
    assert read_timing({"a": 1.7e18, "b": 2e6}) == Timing(1_700_000_000_000_000_000, 2_000_000)
    assert read_timing({"a": 5, "b": -3}) == Timing(5, 0)
