"""Commands that are given the URL of a Temporal server: ``durably … --url temporal://HOST:PORT``."""

import asyncio
import datetime as dt
import json
from functools import partial
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

import durably
from durably.cli.dev import DevOptions
from durably.cli.dev import DevServer as CommandDevServer
from durably.cli.group import durably as durably_command
from durably.cli.text import Console

from ...temporal.dev_server import DevServer
from ...waiting import async_eventually
from .running_apps import ended_runs, make_client, send, serving


class Notes(Console):
    """Records the lines of ``durably dev``."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, line: str) -> None:
        self.lines.append(line)


AWAY = "temporal://127.0.0.1:1"


def run(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(durably_command, arguments, env={"COLUMNS": "160", **environment})


async def run_on(server: DevServer, *arguments: str) -> str:
    """The stdout of a command. Its engine is in the variable that apps use."""
    variables = {"DURABLY_ENGINE_URL": f"temporal://{server.address}/default"}
    done = await asyncio.to_thread(run, *arguments, **variables)
    assert done.exit_code == 0, done.output
    return click.unstyle(done.stdout)


async def test_commands_ask_the_server(server: DevServer) -> None:
    app = make_client()

    @app.create_function(fn_id="go", trigger=durably.TriggerEvent(event=app.app_id))
    async def go(ctx: durably.Context) -> str:
        if ctx.event.data.get("naps"):
            await ctx.step.sleep("nap", dt.timedelta(hours=1))
        return await ctx.step.run("greet", lambda: "hello")

    async with serving(server.address, app, [go]) as engine:
        event_id = (await run_on(server, "send", app.app_id, "--data", '{"naps": true}')).strip()
        (napping,) = await async_eventually(lambda: engine.event_runs(event_id), "the event has its run")
        function_id = f"{app.app_id}-go"
        assert json.loads(await run_on(server, "invoke", function_id)) == "hello"
        assert function_id in await run_on(server, "functions", "list")
        listed = json.loads(await run_on(server, "runs", "list", "--function", function_id, "--json"))
        assert napping.id in {each["run_id"] for each in listed}
        assert "nap" in await run_on(server, "runs", "show", napping.id[-8:].lower())
        again = (await run_on(server, "runs", "rerun", napping.id)).strip()
        assert "Cancelled" in await run_on(server, "runs", "cancel", again)
        assert "ready" in await run_on(server, "health")


async def test_an_event_that_starts_no_run_is_sent(server: DevServer) -> None:
    app = make_client()
    event = f"{app.app_id}/stop"
    cancel = [durably.Cancel(event=event)]

    @app.create_function(fn_id="go", trigger=durably.TriggerEvent(event=app.app_id), cancel=cancel)
    async def go(ctx: durably.Context) -> None:
        await ctx.step.sleep("nap", dt.timedelta(hours=1))

    async with serving(server.address, app, [go]) as engine:
        (run_,) = await async_eventually(
            partial(engine.event_runs, await send(engine, app.app_id)), "the event has its run"
        )
        sent = json.loads(await run_on(server, "send", event, "--json"))
        assert (sent["unmatched"], sent["runs"]) == (None, [])
        assert "an engine on Temporal lists runs about a second after their start" in sent["notes"][0]
        assert (await engine.wait_for_run(run_.id)).status == "Cancelled"


@pytest.mark.parametrize(
    ("arguments", "status", "reason"),
    [
        (("runs", "list", "--url", AWAY), 1, "the Temporal server at 127.0.0.1:1 cannot be reached"),
        (("runs", "list", "--follow", "--url", AWAY), 1, "a Temporal server reports no changes"),
        (("health", "--url", AWAY), 1, "the Temporal server at 127.0.0.1:1 cannot be reached"),
        (("runs", "list", "--url", "temporal://host:7233/a/b"), 2, "not the URL of a Temporal server"),
        (("runs", "list", "--url", AWAY, "--signing-key", "signkey-test-0123456789abcdef"), 1, "TEMPORAL_API_KEY"),
        (("send", "a/b", "--url", AWAY, "--event-key", "key"), 1, "--event-key has no effect on a Temporal server"),
        (("sync", "http://127.0.0.1:1/api", "--url", AWAY), 1, "durably start --temporal"),
    ],
)
def test_errors_name_the_server_and_the_remedy(arguments: tuple[str, ...], status: int, reason: str) -> None:
    done = run(*arguments)
    assert done.exit_code == status, done.output
    assert reason in " ".join(done.stderr.split())


async def test_refusals_are_the_engines(server: DevServer) -> None:
    url = f"temporal://{server.address}"
    for arguments, reason in (
        (("runs", "show", "01ARZ3NDEKTSV4RRFFQ69G5FAV"), "no run has the id"),
        (("functions", "pause", "unknown"), "no app has synced a function with the id 'unknown'"),
        (("runs", "wake", "01ARZ3NDEKTSV4RRFFQ69G5FAV"), "does not offer skip delays"),
    ):
        done = await asyncio.to_thread(run, *arguments, "--url", url)
        assert done.exit_code == 1, done.output
        assert reason in " ".join(done.stderr.split())


async def test_the_servers_answer_is_shown_for_an_unknown_namespace(server: DevServer) -> None:
    done = await asyncio.to_thread(run, "runs", "list", "--url", f"temporal://{server.address}/nowhere")
    assert done.exit_code == 1, done.output
    assert 'has no namespace "nowhere"' in done.stderr


async def test_the_development_engine_keeps_its_state_on_the_server(server: DevServer) -> None:
    app = make_client()

    @app.create_function(fn_id="go", trigger=durably.TriggerEvent(event=app.app_id))
    async def go(ctx: durably.Context) -> None: ...

    console = Notes()
    options = DevOptions(temporal_address=server.address, port=0)
    async with serving(server.address, app, [go]) as engine, CommandDevServer(options, console) as dev:
        assert f"state on the Temporal server at {server.address}, namespace default" in console.lines[0]
        (run_id,) = [each.id for each in await ended_runs(engine, await send(engine, app.app_id))]
        assert await dev.engine.get_run(run_id) is not None


@pytest.mark.parametrize(
    ("arguments", "namespace", "status", "reason"),
    [
        (("--db", "x.db"), "default", 2, "give one of --db and --temporal"),
        ((), "nowhere", 1, 'no namespace "nowhere"'),
    ],
)
def test_development_engine_reports_the_error_that_prevents_its_start(
    server: DevServer, arguments: tuple[str, ...], namespace: str, status: int, reason: str
) -> None:
    done = run("dev", "--temporal", server.address, "--port", "0", *arguments, TEMPORAL_NAMESPACE=namespace)
    assert done.exit_code == status, done.output
    assert reason in " ".join(done.stderr.split())


def test_native_workers_name_the_way_to_run_step_functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "only_steps.py").write_text("import durably\nclient = durably.Client(app_id='a', engine='http://x')\n")
    monkeypatch.syspath_prepend(tmp_path)
    done = run("temporal", "worker", "only_steps")
    assert done.exit_code == 1, done.output
    said = " ".join(done.stderr.split())
    assert "only_steps has no 'temporal'; name the object in it" in said
    assert "`durably dev --temporal HOST:PORT MODULE:APP`" in said


def test_the_development_engine_does_not_wait_for_a_server() -> None:
    done = run("dev", "--temporal", "127.0.0.1:1", "--port", "0")
    assert done.exit_code == 1, done.output
    assert "`temporal server start-dev` starts one" in " ".join(done.stderr.split())
