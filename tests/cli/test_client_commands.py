"""The commands that talk to a running engine: ``send``, ``runs`` and ``invoke``."""

import json
import re
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from .conftest import TIMEOUT_SECONDS, Command, Run, Start

NOTHING = "no function is triggered by it, and no run waits for it now"


def test_a_run_from_its_event_to_its_rerun(ask: Run, dev: Command) -> None:
    sent = ask("send", "order/placed", "--data", '{"total": 3}', "--id", "order-1")
    assert sent.status == 0, sent.stderr
    run_id = sent.stderr.split()[2]
    assert sent.stderr == f"started run {run_id} of shop-place\n"
    dev.until(rf"{run_id[-6:]} .* run completed")

    listed = ask("runs", "list")
    heading = listed.stdout.splitlines()[0]
    assert re.fullmatch(r"RUN +FUNCTION +STATUS +STARTED \(UTC([+-]\d\d:\d\d)?\) +DURATION", heading)
    assert listed.stdout.splitlines()[1].split()[:3] == [run_id, "shop-place", "Completed"]
    [run, *_] = json.loads(ask("runs", "list", "--json", "--status", "completed", "--function", "shop-place").stdout)
    assert (run["run_id"], run["output"]) == (run_id, {"charged": 3})
    unknown = ask("runs", "list", "--function", "shop-unknown")
    assert (unknown.status, "no app has a function with the id 'shop-unknown'" in unknown.stderr) == (1, True)
    assert ask("runs", "list", "--status", "skipped", "--function", "shop-ship").stderr == "no runs\n"

    shown = ask("runs", "show", run_id)
    assert 'Output    {"charged": 3}' in shown.stdout
    [line] = [line for line in shown.stdout.splitlines() if " charge " in line]
    assert "✓" in line
    assert '{"charged": 3}' in line
    whole = json.loads(ask("runs", "show", run_id, "--json").stdout)
    assert (whole["run"]["status"], whole["steps"][0]["id"]) == ("Completed", "charge")

    again = ask("runs", "rerun", run_id)
    assert again.status == 0
    dev.until(rf"{again.stdout.strip()[-6:]} .* run completed")


def test_a_waiting_run_is_cancelled(ask: Run, dev: Command) -> None:
    run_id = ask("invoke", "shop-place", "--data", '{"total": 3, "wait": true}', "--no-wait").stdout.strip()
    dev.until(rf"{run_id[-6:]} .* paid .* waits until")
    shown = ask("runs", "show", run_id).stdout
    assert "waiting for order/paid" in shown
    assert re.search(r"^Started +\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", shown, re.MULTILINE)
    for line in (shown, ask("runs", "list").stdout.splitlines()[1]):
        assert "Running (waiting)" in line
    cancelled = ask("runs", "cancel", run_id)
    assert cancelled.stdout == f"run {run_id} is Cancelled\n"
    dev.until(rf"{run_id[-6:]} .* run cancelled .* the run was cancelled by request")
    assert "Reason    the run was cancelled by request" in ask("runs", "show", run_id).stdout


def test_a_run_without_delays_is_not_woken(ask: Run, dev: Command) -> None:
    run_id = ask("invoke", "shop-place", "--data", '{"total": 3, "wait": true}', "--no-wait").stdout.strip()
    dev.until(rf"{run_id[-6:]} .* paid .* waits until")
    refused = ask("runs", "wake", run_id, "--step", "paid")
    assert refused.status == 1
    assert f"run {run_id} neither sleeps nor waits for another attempt at step 'paid'" in refused.stderr
    ask("runs", "cancel", run_id)


def test_invoke_prints_the_output(ask: Run, directory: Path) -> None:
    (directory / "order.json").write_text('{"total": 4}')
    for arguments, stdin in [(["@order.json"], ""), (["-"], '{"total": 4}'), (['{"total": 4}'], "")]:
        result = ask("invoke", "shop-place", "--data", *arguments, stdin=stdin)
        assert (result.status, result.stdout) == (0, '{"charged": 4}\n'), result.stderr


def test_invoke_fails_where_the_run_does(ask: Run) -> None:
    result = ask("invoke", "shop-place", "--data", '{"total": 4, "fail": true}')
    assert (result.status, result.stdout) == (1, "")
    assert "the run failed: ValueError: out of stock" in result.stderr
    assert "Traceback" not in result.stderr


def test_usage_errors_are_one_line(ask: Run) -> None:
    mistakes = [
        (["functions", "pause", "shop-none"], "shop-none"),
        (["runs", "rerun", "nosuchrun", "--from-step", "a", "--input", "{}"], "must be a JSON array"),
        (["send", "a", "--data", "{oops"], "--data is not valid JSON: .*line 1 column 2"),
        (["send", "a", "--data", "[1]"], "--data must be a JSON object"),
        (["send", "a", "--data", "@nowhere.json"], "cannot read nowhere.json"),
        (["send", ""], "name"),
        (["runs", "show", "nosuchrun"], "no run has the id 'nosuchrun'"),
        (["runs", "cancel", "nosuchrun"], "nosuchrun"),
        (["runs", "rerun", "nosuchrun"], "nosuchrun"),
        (["invoke", "shop-unknown"], "shop-unknown"),
    ]
    for arguments, pattern in mistakes:
        result = ask(*arguments)
        assert result.status == 1, arguments
        assert result.stdout == ""
        with pytest.raises(AssertionError, match=pattern):
            raise AssertionError(result.stderr)
        assert len(result.stderr.strip().splitlines()) == 1


def test_events_that_trigger_nothing_are_pointed_out(ask: Run) -> None:
    result = ask("send", "unmatched/event")
    assert (result.status, len(result.stdout.strip())) == (0, 26)
    assert result.stderr == "it starts nothing: no function is triggered by it, and no run waits for it now\n"
    result = ask("send", "order/plcaed")
    nearest = f"{NOTHING}; the nearest event that one is triggered by is 'order/placed'"
    assert result.stderr == f"it starts nothing: {nearest}\n"


def test_a_wait_that_an_event_ends_is_named(ask: Run, dev: Command) -> None:
    begun = len(dev.output)
    run_id = ask("send", "order/placed", "--data", '{"total": 3, "wait": true}').stderr.split()[2]
    dev.until(rf"{run_id[-6:]} .* waits until", after=begun)
    sent = ask("send", "order/paid")
    assert f"it ended the wait 'paid' of the run {run_id}\n" in sent.stderr
    shown = ask("events", "show", sent.stdout.strip()).stdout
    assert f"It started no run.\nIt ended the wait 'paid' of the run {run_id}." in shown


def test_a_function_that_does_not_exist_is_named_with_the_nearest(ask: Run) -> None:
    for arguments in (
        ("runs", "list", "--function"),
        ("runs", "list", "--follow", "--function"),
        ("functions", "pause"),
    ):
        result = ask(*arguments, "place")
        assert (result.status, result.stdout) == (1, ""), arguments
        assert "with the id 'place'; did you mean 'shop-place'?" in result.stderr
    assert "did you mean 'shop-place'?" in ask("functions", "pause", "shop-plcae").stderr


def test_missing_engine_is_an_error(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    result = run("runs", "list", "--url", f"127.0.0.1:{port}")
    assert result.status == 1
    assert f"no engine answers at http://127.0.0.1:{port}" in result.stderr
    assert "durably dev" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_environment_names_the_engine_as_for_apps(run: Run) -> None:
    result = run("runs", "list", DURABLY_ENGINE_URL="engine.example.com")
    assert (result.status, "Traceback" in result.stderr) == (1, False)
    assert "DURABLY_ENGINE_URL has no scheme; write https://engine.example.com or http" in result.stderr


def test_help_and_version_need_no_engine(run: Run, start: Start) -> None:
    for arguments in (["--help"], ["dev", "--help"], ["runs", "--help"], ["start", "-h"]):
        assert run(*arguments).status == 0
    program = start("--version")
    assert program.wait() == 0
    assert program.output.startswith("durably, version 0.1.0")


def test_imports_are_frozen_from_gc() -> None:
    code = """
        import atexit, gc
        import durably.cli
        atexit.register(lambda: print(gc.isenabled(), gc.get_freeze_count() > 10_000))
        durably.cli.main()
    """
    command = [sys.executable, "-c", textwrap.dedent(code), "--version"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=True)
    assert done.stdout.splitlines()[-1] == "True True"


@pytest.mark.parametrize(
    ("arguments", "status", "fault"),
    [
        (("send", "\udcff"), 1, "not valid Unicode"),
        (("send", "a", "--data", '{"a": "\udcff"}'), 1, "not valid Unicode"),
        (("send", "a", "--data", r'{"a": "\ud800"}'), 1, "half of a surrogate pair"),
        (("send", "a", "--data", '{"a": 1e999}'), 1, "--data is not valid JSON: Out of range"),
        (("send", "a", "--data", "[" * 100_000), 1, "--data is nested too deeply"),
        (("runs", "show", "\udcff"), 1, "not valid Unicode"),
        (("runs", "list", "--url", "ftp://127.0.0.1"), 2, "Invalid value for '--url': it is not a valid URL"),
        (("runs", "list", "--url", "http://127.0.0.1:nine"), 2, "Invalid value for '--url': it is not a valid URL"),
        (("runs", "list", "--url", "http://ann:hunter2@127.0.0.1:1"), 2, "'--url': it must not hold a user name or"),
        (("dev", "-u", "nonsense"), 2, "'-u' / '--app-url': it has no scheme; write https://nonsense or http"),
        (("runs", "list", "--url", "engine:80"), 2, "'--url': it has no scheme; write https://engine:80 or http"),
    ],
)
def test_unusable_input_is_named(ask: Run, arguments: tuple[str, ...], status: int, fault: str) -> None:
    result = ask(*arguments)
    assert (result.status, "Traceback" in result.stderr) == (status, False), result.stderr
    assert fault in result.stderr


def test_a_function_is_paused_and_resumed(ask: Run, dev: Command) -> None:
    assert ask("functions", "pause", "shop-place").stdout == "shop-place is paused\n"
    listed = ask("functions", "list").stdout.splitlines()
    assert [line.split() for line in listed] == [
        ["FUNCTION", "APP", "TRIGGERS", "STATE"],
        ["shop-place", "shop", "order/placed", "paused"],
        ["shop-bill", "shop", "order/billed", "active"],
        ["shop-ship", "shop", "order/shipped", "active"],
    ]
    refused = ask("invoke", "shop-place", "--data", '{"total": 1}')
    assert refused.status == 1
    assert "the function 'shop-place' is paused" in refused.stderr
    assert ask("send", "order/placed", "--data", '{"total": 1}').stderr.startswith("skipped run ")
    assert ask("functions", "resume", "shop-place").stdout == "shop-place is active\n"
    functions = json.loads(ask("functions", "list", "--json").stdout)
    assert [function["id"] for function in functions] == ["shop-place", "shop-bill", "shop-ship"]
    replayed = ask("runs", "replay", "--function", "shop-place", "--status", "skipped", "--since", "1h")
    assert replayed.stdout == "1 run was started again\n", replayed.stderr
    unknown = ask("functions", "pause", "shop-none")
    assert (unknown.status, "'shop-none'" in unknown.stderr) == (1, True)


def test_a_run_goes_again_from_a_step(ask: Run, dev: Command) -> None:
    run_id = ask("invoke", "shop-place", "--data", '{"total": 3}', "--no-wait").stdout.strip()
    dev.until(rf"{run_id[-6:]} .* run completed")
    again = ask("runs", "rerun", run_id, "--from-step", "charge")
    assert again.status == 0, again.stderr
    dev.until(rf"{again.stdout.strip()[-6:]} .* run completed")
    unknown = ask("runs", "rerun", run_id, "--from-step", "none")
    assert unknown.status == 1
    assert "no finished step 'none': it has 'charge'" in unknown.stderr
    alone = ask("runs", "rerun", run_id, "--input", "[1]")
    assert alone.status == 2
    assert "--from-step" in alone.stderr
    wrong = ask("runs", "rerun", run_id, "--from-step", "charge", "--input", "{}")
    assert "must be a JSON array" in wrong.stderr


def test_runs_are_cancelled_in_bulk(ask: Run, dev: Command) -> None:
    waiting = ask("invoke", "shop-place", "--data", '{"total": 88, "wait": true}', "--no-wait").stdout.strip()
    dev.until(rf"{waiting[-6:]} .* paid .* waits until")
    selected = ("runs", "cancel", "--function", "shop-place", "--if", "event.data.total == 88")
    assert ask(*selected, "--since", "1h").stdout == "1 run was cancelled\n"
    dev.until(rf"{waiting[-6:]} .* run cancelled .* a bulk cancellation applies to it")

    standing = ask(*selected, "--until", "2999-01-01T00:00:00Z")
    assert standing.stdout == "0 runs were cancelled\n", standing.stderr
    assert "dashboard" in standing.stderr
    refused = ask("invoke", "shop-place", "--data", '{"total": 88}')
    assert (refused.status, "a bulk cancellation applies to it" in refused.stderr) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ((), "name a RUN, or the --function"),
        (("RUN", "--function", "shop-place"), "name a RUN, or the --function"),
        (("RUN", "--since", "1h"), "--since, --until and --if are for the runs of a --function"),
        (("--function", "shop-place", "--if", "event.total > 1"), "write event.data.total"),
        (("--function", "shop-none"), "'shop-none'"),
    ],
)
def test_cancellations_that_are_unclear_are_refused(ask: Run, arguments: tuple[str, ...], fault: str) -> None:
    result = ask("runs", "cancel", *arguments)
    assert result.status in (1, 2)
    assert fault in result.stderr


def test_a_signal_wakes_a_run(ask: Run, dev: Command) -> None:
    run_id = ask("invoke", "shop-place", "--data", '{"total": 5, "signal": "go"}', "--no-wait").stdout.strip()
    dev.until(rf"{run_id[-6:]} .* approved .* waits until")
    sent = ask("signal", "go", "--data", '"yes"')
    assert (sent.status, sent.stdout) == (0, f"{run_id}\n"), sent.stderr
    dev.until(rf"{run_id[-6:]} .* run completed")
    again = ask("signal", "go")
    assert (again.status, "no run waits for the signal 'go'" in again.stderr) == (1, True)


def test_failed_runs_are_replayed(ask: Run, dev: Command) -> None:
    for _ in range(2):
        assert ask("invoke", "shop-place", "--data", '{"total": 77, "fail": true}').status == 1
    replayed = ask("runs", "replay", "--function", "shop-place", "--if", "event.data.total == 77", "--since", "1h")
    assert replayed.stdout == "2 runs were started again\n", replayed.stderr
    assert ask("runs", "replay", "--function", "shop-place", "--until", "2000-01-01T00:00:00Z").stdout.startswith("0 ")
    bad = ask("runs", "replay", "--function", "shop-place", "--since", "yesterday")
    assert (bad.status, "neither a time" in bad.stderr) == (2, True)
