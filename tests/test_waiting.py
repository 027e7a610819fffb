"""The helpers that tests wait with."""

import asyncio

import pytest

from .waiting import async_eventually, eventually


def test_error_names_the_condition_and_the_last_value() -> None:
    with pytest.raises(AssertionError, match=r"not within 0\.05 s: three runs have ended; last: '2'"):
        eventually(lambda: 2, "three runs have ended", is_right=lambda count: count == 3, timeout=0.05)


def test_ignored_errors_are_repeated_and_others_raised() -> None:
    answers = [OSError("refused"), 200]

    def look() -> int:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert eventually(look, "the server answers", ignore=(OSError,)) == 200
    with pytest.raises(IndexError):
        eventually(look, "the server answers", ignore=(OSError,))


async def test_call_that_hangs_is_cancelled() -> None:
    with pytest.raises(AssertionError, match="the server answers"):
        await async_eventually(lambda: asyncio.sleep(60, True), "the server answers", timeout=0.05)


async def test_timeout_of_the_call_itself_is_raised() -> None:
    async def look() -> bool:
        raise TimeoutError("of the call")

    with pytest.raises(TimeoutError, match="of the call"):
        await async_eventually(look, "the server answers")
