"""The background event loop for synchronous code."""

import asyncio
import contextvars
import signal
import subprocess
import sys
import threading
import warnings
from typing import Any

import pytest

from durably.io.background_loop import CallBlocking, get_background_loop, run_with_callbacks


async def value_of(value: Any) -> Any:
    await asyncio.sleep(0)
    return value


def test_it_runs_coroutines_in_one_background_thread() -> None:
    async def where() -> int:
        return threading.get_ident()

    loop = get_background_loop()
    assert loop is get_background_loop()
    assert loop.run(where()) == loop.run(where()) != threading.get_ident()


def test_context_variables_are_copied_to_the_loop() -> None:
    name = contextvars.ContextVar("name", default="unset")

    async def read() -> str:
        found = name.get()
        name.set("changed inside")
        return found

    name.set("Ada")
    assert get_background_loop().run(read()) == "Ada"
    assert get_background_loop().submit(read()).result() == "Ada"
    assert name.get() == "Ada"


def hold(started: threading.Event, cancelled: threading.Event) -> Any:
    async def held() -> None:
        started.set()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    return held()


def test_cancelling_the_future_cancels_the_task() -> None:
    started, cancelled = threading.Event(), threading.Event()
    future = get_background_loop().submit(hold(started, cancelled))
    assert started.wait(60)
    assert future.cancel()
    assert cancelled.wait(60)


def test_an_interrupted_wait_cancels_the_task() -> None:
    started, cancelled, interrupted = threading.Event(), threading.Event(), threading.Event()

    def interrupt(*_: Any) -> None:
        if not interrupted.is_set():
            interrupted.set()
            raise InterruptedError

    def send_signals() -> None:
        started.wait(60)
        while not interrupted.wait(0.01):  # one that comes just before the wait begins does not end it
            signal.pthread_kill(main, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, interrupt)
    main = threading.main_thread().ident
    assert main is not None
    thread = threading.Thread(target=send_signals)
    thread.start()
    try:
        with pytest.raises(InterruptedError):
            get_background_loop().run(hold(started, cancelled))
    finally:
        thread.join()
        signal.signal(signal.SIGUSR1, before)
    assert cancelled.wait(60)


@pytest.mark.parametrize("leaving", [SystemExit(3), KeyboardInterrupt()])
def test_sys_exit_in_a_coroutine_keeps_the_loop_running(leaving: BaseException) -> None:
    async def leave() -> None:
        raise leaving

    with pytest.raises(type(leaving)):
        get_background_loop().run(leave())
    assert get_background_loop().run(value_of("still here")) == "still here"


def test_its_own_thread_cannot_wait_for_it() -> None:
    async def wait_inside() -> None:
        get_background_loop().run(value_of(1))

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a coroutine that was never awaited would be one
        with pytest.raises(RuntimeError, match="await it there"):
            get_background_loop().run(wait_inside())


def test_a_forked_process_starts_its_own() -> None:
    program = """
import os
from durably.io.background_loop import CallBlocking, get_background_loop, run_with_callbacks
async def process(): return os.getpid()
assert get_background_loop().run(process()) == os.getpid()
parent = get_background_loop()
if child := os.fork():
    _, status = os.waitpid(child, 0)
    assert get_background_loop() is parent and parent.run(process()) == os.getpid()
    os._exit(os.waitstatus_to_exitcode(status))
assert get_background_loop() is not parent and get_background_loop().run(process()) == os.getpid()
os._exit(7)
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 7


def test_callbacks_run_in_the_callers_thread_and_context() -> None:
    name = contextvars.ContextVar[str]("name")
    name.set("ada")

    async def ask(call: CallBlocking) -> list[Any]:
        return [threading.get_ident(), await call(threading.get_ident), await call(name.get), name.get()]

    own, called, *names = run_with_callbacks(ask)
    assert called == threading.get_ident() != own
    assert names == ["ada", "ada"]


def test_errors_of_callbacks_and_of_the_coroutine_are_raised() -> None:
    async def ask(call: CallBlocking) -> str:
        with pytest.raises(ZeroDivisionError):
            await call(lambda: 1 // 0)
        return await call(lambda: {}["key"])

    with pytest.raises(KeyError, match="key"):
        run_with_callbacks(ask)


def test_an_interrupted_caller_cancels_the_coroutine() -> None:
    cancelled = threading.Event()

    def interrupt() -> None:
        raise SystemExit(1)

    async def ask(call: CallBlocking) -> None:
        try:
            await call(interrupt)
        finally:
            cancelled.set()

    with pytest.raises(SystemExit):
        run_with_callbacks(ask)
    assert cancelled.wait(30)
