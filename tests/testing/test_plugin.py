"""The fixtures, in a pytest of their own, and the report of a failed test."""

import re
import unittest

import pytest

import durably
from durably.testing import TestEngine

from .shop import approve, client

pytest_plugins = ["pytester"]

APP = """
import datetime as dt
import durably

client = durably.Client(app_id="app")

@client.create_function(fn_id="nap", trigger=durably.TriggerEvent(event="tired"))
async def nap(ctx):
    await ctx.step.sleep("nap", dt.timedelta(days=30))
    return "rested"

tired = durably.Event(name="tired")
"""


@pytest.fixture
def app(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makepyfile(naps=APP)
    pytester.syspathinsert()
    return pytester


def test_the_fixture_for_async_tests(app: pytest.Pytester) -> None:
    app.makepyfile("""
        import pytest
        from naps import client, nap, tired

        @pytest.mark.asyncio
        async def test_nap(durably_engine):
            async with durably_engine(client, [nap]) as engine:
                run = await engine.send(tired)
                await run.wait()
                run.assert_completed(output="rested")
    """)
    app.runpytest_subprocess().assert_outcomes(passed=1)


@pytest.mark.slow
def test_failures_report_the_runs_of_their_engines(app: pytest.Pytester) -> None:
    app.makepyfile("""
        from naps import client, nap, tired
        from durably.testing import TestEngine

        def test_fixture(durably_sync_engine):
            engine = durably_sync_engine(client, [nap], calls_at_once=2)
            run = engine.send(tired)
            engine.advance(days=29)
            assert run.output == "rested"

        def test_afterwards():
            assert client.in_process is None

        def test_error_within_an_engine():
            with TestEngine(client, [nap]).sync() as engine:
                run = engine.send(tired).wait()
                assert run.output == "tired"

        def test_assertion_of_a_run():
            with TestEngine(client, [nap]).sync() as engine:
                engine.mock_step("nap")
                engine.mock_step("knap")
                engine.fail_step("nap", attempts=[7])
                engine.send(tired).wait().assert_completed(output="tired")
    """)
    result = app.runpytest_subprocess("--tb=short", "-rN")  # in CI, its summary would repeat it
    result.assert_outcomes(passed=1, failed=3)
    result.stdout.fnmatch_lines(
        [
            "*durably: runs of the test engine*",
            "run * of app-nap: Running for 29d",
            "*nap *sleeps until +30d",
            "*The test engine's runs, at *",
            "*run * of app-nap: Completed after 30d",
            "E *No step has used mock_step('knap'), fail_step('nap').",
        ]
    )
    assert len(re.findall("^(?:E +)?run 01", str(result.stdout), re.MULTILINE)) == 3


async def test_in_an_async_test_too() -> None:
    async def fail() -> None:
        async with TestEngine(client, [approve]) as engine:
            await engine.send([durably.Event(name="approval/asked")] * 11)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        await fail()
    (note,) = caught.value.__notes__
    assert note.startswith("The test engine's latest runs")
    assert note.count(" of shop-approve") == 10


def test_unittest_gets_the_report_too() -> None:
    class Failing(unittest.TestCase):
        def runTest(self) -> None:
            with TestEngine(client, [approve]).sync() as engine:
                engine.send(durably.Event(name="approval/asked"))
                self.fail("for a reason")

    result = Failing().run()
    assert result is not None
    ((_, text),) = result.failures
    assert "of shop-approve: Running for 0s" in text
