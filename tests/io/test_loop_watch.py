"""A handler that blocks the event loop is logged, with function and step."""

import asyncio
import logging
import threading
import time
from typing import Any

import pytest

from durably import Client, Context
from durably.io.worker_threads import LoopWatch

from ..execution.engine import engine_for

PATIENCE_SECONDS = 60


class Lines(logging.Handler):
    """Collects lines; the first sets ``has_line``."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []
        self.has_line = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
        self.has_line.set()


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Lines:
    monkeypatch.setattr("durably.functions.function.loop_watch", LoopWatch())
    return Lines()


def client_of(lines: Lines) -> Client:
    logger = logging.Logger("test")
    logger.addHandler(lines)
    return Client(app_id="app", is_production=False, logger=logger)


@pytest.mark.parametrize("place", ["step", "function"])
async def test_code_that_blocks_the_loop_is_named_while_it_does(place: str, lines: Lines) -> None:
    def block() -> bool:
        return lines.has_line.wait(PATIENCE_SECONDS)

    async def pay() -> bool:
        return block()

    async def function(ctx: Context) -> bool:
        if place == "function":
            return block()
        return await ctx.step.run("pay", pay)

    run = await engine_for(function, client=client_of(lines)).run()
    assert run.output is True
    (line,) = lines.lines
    what = 'step "pay"' if place == "step" else "code between the steps"
    assert line.startswith(f'{what} of function "app-function" has blocked the event loop for more than 1 s, at ')
    remedy = "Make the handler a sync function" if place == "step" else "Put it into a step with a sync handler"
    assert remedy in line


async def test_blocking_step_is_logged_once(lines: Lines) -> None:
    async def pay() -> None:
        assert lines.has_line.wait(PATIENCE_SECONDS)
        time.sleep(1.5)

    async def function(ctx: Context) -> None:
        await ctx.step.run("pay", pay)

    assert (await engine_for(function, client=client_of(lines)).run()).status == "Completed"
    assert len(lines.lines) == 1


async def test_step_that_does_not_block_is_not_logged(lines: Lines) -> None:
    def in_thread() -> None:
        time.sleep(1.5)

    async def waits() -> None:
        await asyncio.sleep(1.5)

    async def function(ctx: Context) -> Any:
        await ctx.step.run("thread", in_thread)
        await ctx.step.run("waits", waits)

    assert (await engine_for(function, client=client_of(lines)).run()).status == "Completed"
    assert not lines.lines
