"""Steps that are called with wrong arguments fail their run at once, and the error names the step."""

import subprocess
import sys
from typing import Any

import pytest

from durably import Client, Context, ContextSync, Event, TriggerEvent
from durably.testing import TestEngine

pytest_plugins = ["pytester"]

GO = TriggerEvent(event="go")
client = Client(app_id="shop", is_production=False)


def work() -> None: ...


@client.create_function(fn_id="no-handler", trigger=GO)
async def no_handler(ctx: Context) -> None:
    await ctx.step.run(work)  # type: ignore[call-overload]


@client.create_function(fn_id="no-timeout", trigger=GO)
async def no_timeout(ctx: Context) -> None:
    await ctx.step.wait_for_event("paid ü", event="paid")  # type: ignore[call-arg]


@client.create_function(fn_id="dynamic", trigger=GO)
async def dynamic(ctx: Context) -> None:
    for number in range(1):
        await ctx.step.sleep(
            f"nap-{number}",
        )  # type: ignore[call-arg]


@client.create_function(fn_id="no-handler-sync", trigger=GO)
def no_handler_sync(ctx: ContextSync) -> None:
    ctx.step.run("charge")  # type: ignore[call-overload]


@client.create_function(fn_id="unknown-argument", trigger=GO)
def unknown_argument(ctx: ContextSync) -> None:
    ctx.step.send_event(step_id="send", evnets=[])  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (no_handler, "step work: ctx.step.run() missing 1 required positional argument: 'handler'"),
        (no_timeout, "step \"paid ü\": ctx.step.wait_for_event() missing 1 required keyword-only argument: 'timeout'"),
        (dynamic, "step f'nap-{number}': ctx.step.sleep() missing 1 required positional argument: 'duration'"),
        (no_handler_sync, "step \"charge\": ctx.step.run() missing 1 required positional argument: 'handler'"),
        (unknown_argument, "step \"send\": ctx.step.send_event() got an unexpected keyword argument 'evnets'"),
    ],
)
async def test_wrong_arguments_of_a_step_fail_at_once(function: Any, message: str) -> None:
    async with TestEngine(client, [function]) as engine:
        run = await engine.send(Event(name="go"))
        await run.wait()
        run.assert_failed(error="FunctionConfigInvalidError", message=message)
        assert run.error is not None
        assert "test_misuse.py" in (run.error.stack or "")
        assert "again" not in run.timeline(), run
        assert run.ended_at == run.started_at, run


async def test_type_error_of_other_code_is_retried() -> None:
    attempts = 0

    @client.create_function(fn_id="other", trigger=GO)
    async def other(ctx: Context) -> str:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            raise TypeError("work() missing 1 required positional argument: 'handler'")
        return "done"

    async with TestEngine(client, [other]) as engine:
        run = await engine.send(Event(name="go"))
        await run.wait()
        run.assert_completed(output="done")


def test_missing_app_id_names_the_client() -> None:
    with pytest.raises(TypeError, match=r"^Client\.__init__\(\) missing .* 'app_id'"):
        Client()  # type: ignore[call-arg]


FORGOTTEN = """
import asyncio
from durably import Client, Event, TriggerEvent
from durably.testing import TestEngine

client = Client(app_id="shop", is_production=False)

@client.create_function(fn_id="forgotten", trigger=TriggerEvent(event="go"))
async def forgotten(ctx):
    ctx.step.run("charge", print)
    ctx.group.parallel((lambda: ctx.step.run("a", print),))
{raises}

async def main():
    async with TestEngine(client, [forgotten]) as engine:
        run = await engine.send(Event(name="go"))
        await run.wait()
        print(run.error.message)

asyncio.run(main())
"""


@pytest.mark.parametrize("raises", ["", "    raise ValueError('also wrong')"])
def test_step_without_await_is_reported_without_warnings_of_python(raises: str) -> None:
    """Python's own warnings would name internal functions."""
    code = FORGOTTEN.format(raises=raises)
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    message = 'step "charge" was created but not awaited'
    if raises:
        assert ended.stdout == "also wrong\n"
        assert 'function "shop-forgotten", run 01' in ended.stderr
        assert message in ended.stderr
    else:
        assert ended.stdout.startswith(message)
    assert "AsyncCall" not in ended.stderr
    assert "RuntimeWarning" not in ended.stderr


def test_step_without_await_causes_no_warning_in_pytest(pytester: pytest.Pytester) -> None:
    code = FORGOTTEN.format(raises="").replace("asyncio.run(main())", "def test_main():\n    asyncio.run(main())")
    pytester.makepyfile(code)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=1, warnings=0)
