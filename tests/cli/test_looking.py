"""Inspection of an engine: short ids, events, attempts, and following both."""

import json
import re

from .conftest import Command, Run, Start


def completed_run(ask: Run, dev: Command, name: str, data: str = "{}") -> tuple[str, str]:
    """The ids of an event and of the run that it started, which has completed."""
    sent = ask("send", name, "--data", data)
    [run_id] = re.findall(r"started run (\w+)", sent.stderr)
    dev.until(rf"{run_id[-6:]} .* run completed")
    return sent.stdout.strip(), run_id


def test_a_run_is_found_by_the_short_id_and_shows_event_and_failed_attempts(ask: Run, dev: Command) -> None:
    event_id, run_id = completed_run(ask, dev, "order/billed", '{"total": 7}')
    for name in (run_id[-6:], run_id[-6:].lower(), run_id):
        shown = ask("runs", "show", name)
        assert shown.status == 0, shown.stderr
        assert run_id in shown.stdout
        assert re.search(rf'{event_id}\s+order/billed\s+{{"total": 7}}', shown.stdout)
        assert re.search(r"charge\s+1\s+RetryAfterError: the bank is closed at attempt \d", shown.stdout)
    as_json = json.loads(ask("runs", "show", run_id[-6:], "--json").stdout)
    assert [event["data"] for event in as_json["events"]] == [{"total": 7}]
    [attempt] = [attempt for step in as_json["steps"] for attempt in step["failed_attempts"]]
    assert (attempt["attempt"], attempt["error"]["name"]) == (0, "RetryAfterError")
    assert "Traceback" in attempt["error"]["stack"]
    assert ask("runs", "rerun", run_id[-6:]).status == 0
    assert ask("runs", "cancel", run_id[-6:]).stdout == f"run {run_id} is Completed\n"


def test_an_end_of_an_id_that_names_no_run_or_several_is_refused(ask: Run, dev: Command) -> None:
    for _ in range(2):
        completed_run(ask, dev, "order/shipped")
    listed = json.loads(ask("runs", "list", "--json").stdout)
    common = [run["run_id"] for run in listed]
    ending = next((end for end in (one[-1] for one in common) if sum(i.endswith(end) for i in common) > 1), None)
    none = ask("runs", "show", "UUUUUU")  # these ids have no U
    assert (none.status, none.stdout) == (1, "")
    assert "no run has the id 'UUUUUU'" in none.stderr
    while ending is None:
        common.append(completed_run(ask, dev, "order/shipped")[1])
        ending = next((end for end in (one[-1] for one in common) if sum(i.endswith(end) for i in common) > 1), None)
    several = ask("runs", "show", ending)
    assert several.status == 1
    assert f"several runs have ids that end with {ending!r}" in several.stderr


def test_runs_are_listed_by_function_and_time(ask: Run, dev: Command) -> None:
    _, run_id = completed_run(ask, dev, "order/shipped")
    listed = json.loads(ask("runs", "list", "--function", "shop-ship", "--since", "1h", "--json").stdout)
    assert run_id in [run["run_id"] for run in listed]
    assert {run["function_id"] for run in listed} == {"shop-ship"}
    later = ask("runs", "list", "--since", "2999-01-01T00:00:00Z", "--json")
    assert json.loads(later.stdout) == []


def test_events_are_listed_and_shown_with_their_runs(ask: Run, dev: Command) -> None:
    event_id, run_id = completed_run(ask, dev, "order/shipped", '{"parcel": 1}')
    listed = ask("events", "list", "--name", "order/shipped", "--since", "1h")
    assert re.search(rf'{event_id}\s+order/shipped\s+[\d: -]+\s+{{"parcel": 1}}', listed.stdout)
    shown = ask("events", "show", event_id)
    assert '{"parcel": 1}' in shown.stdout
    assert re.search(rf"{run_id}\s+shop-ship\s+Completed", shown.stdout)
    assert (
        ask("events", "show", event_id[-8:]).stdout
        == ask("events", "show", event_id[-8:].lower()).stdout
        == shown.stdout
    )
    unknown = ask("events", "show", "nosuchevent")
    assert (unknown.status, "no event has the id 'nosuchevent'" in unknown.stderr) == (1, True)


def test_runs_are_followed(ask: Run, dev: Command, start: Start) -> None:
    runs = start("runs", "list", "--follow", "--function", "shop-ship", DURABLY_DEV=dev.origin, PYTHONUNBUFFERED="1")
    runs.until("following runs")
    completed_run(ask, dev, "order/shipped", '{"followed": true}')
    runs.until("shop-ship .* run completed")
    assert "order/billed" not in runs.output


def test_followers_end_with_their_engine(start: Start) -> None:
    engine = start("dev", "--port", "0")
    followers = [start(*command, "--follow", DURABLY_DEV=engine.origin) for command in (("runs", "list"), ("logs",))]
    for follower in followers:
        follower.until("following")
    assert engine.stop() == 0
    for follower in followers:
        assert follower.wait() == 1
        # The stream of updates ends, or a request for lines is refused, whichever is first.
        assert re.search("Error: (the engine stopped|the engine is closed|no engine answers)", follower.output)
        assert "Traceback" not in follower.output


def test_lines_of_the_logger_are_printed_and_followed(ask: Run, dev: Command, start: Start) -> None:
    _, run_id = completed_run(ask, dev, "order/billed", '{"total": 41}')
    follower = start("logs", run_id[-6:], "--follow", DURABLY_DEV=dev.origin)
    assert follower.wait() == 0
    assert re.search(rf"{run_id[-6:]}  shop-bill  WARNING  billed 41", follower.output)
    [entry] = json.loads(ask("logs", run_id, "--json").stdout)
    assert (entry["run_id"], entry["function_id"], entry["line"]["message"]) == (run_id, "shop-bill", "billed 41")
    everything = start("logs", "--follow", "--function", "shop-bill", "--json", DURABLY_DEV=dev.origin)
    everything.until("billed 41")
    completed_run(ask, dev, "order/billed", '{"total": 42}')
    everything.until("billed 42")
    latest = ask("logs", "--function", "shop-bill", "--limit", "1").stdout
    assert re.search(r"WARNING  billed 42\n$", latest)
    assert ask("logs", "--function", "shop-ship").stderr.startswith("no lines")
    assert "not of one RUN" in ask("logs", run_id, "--function", "shop-bill").stderr
    unknown = ask("logs", "UUUUUU")
    assert (unknown.status, "no run has the id 'UUUUUU'" in unknown.stderr) == (1, True)


def test_changes_of_runs_are_printed_as_json(ask: Run, dev: Command) -> None:
    _, run_id = completed_run(ask, dev, "order/shipped")
    cancelled = json.loads(ask("runs", "cancel", run_id, "--json").stdout)
    assert (cancelled["run_id"], cancelled["status"]) == (run_id, "Completed")
    again = json.loads(ask("runs", "rerun", run_id, "--json").stdout)
    assert (again["function_id"], again["original_run_id"]) == ("shop-ship", run_id)
    old = ("--function", "shop-ship", "--until", "2000-01-01T00:00:00Z", "--json")
    for command in ("cancel", "replay"):
        assert json.loads(ask("runs", command, *old).stdout)["affected"] == 0


def test_followed_logs_have_starts_failures_and_ends_of_runs(ask: Run, dev: Command, start: Start) -> None:
    variables = {"DURABLY_DEV": dev.origin, "PYTHONUNBUFFERED": "1"}
    everything = start("logs", "--follow", **variables)
    everything.until("following lines")
    _, billed = completed_run(ask, dev, "order/billed", '{"total": 43}')
    failed = ask("invoke", "shop-place", "--data", '{"total": 51, "fail": true}').stderr.split()[1]
    everything.until(rf"{billed[-6:]}  shop-bill +▶  run started +{billed}")
    everything.until(rf"{billed[-6:]}  shop-bill +↻  charge .*attempt \d failed, .*RetryAfterError: the bank")
    everything.until(rf'{billed[-6:]}  shop-bill +■  run completed .*"charged"')
    everything.until(rf"{failed[-6:]}  shop-place +■  run failed .*ValueError: out of stock")
    assert "step completed" not in everything.output
    ended = start("logs", failed[-6:], "--follow", "--json", **variables)
    assert ended.wait() == 0
    updates = [json.loads(line) for line in ended.output.splitlines() if line.startswith("{")]
    assert [(update["kind"], update["error"]) for update in updates] == [
        ("run started", None),
        ("run failed", "ValueError: out of stock"),
    ]
    unknown = ask("logs", "--follow", "--function", "shop-plcae")
    assert (unknown.status, "did you mean 'shop-place'?" in unknown.stderr) == (1, True)


def test_the_log_of_a_live_run_is_followed_to_its_end(ask: Run, dev: Command, start: Start) -> None:
    run_id = ask("invoke", "shop-place", "--data", '{"total": 52, "wait": true}', "--no-wait").stdout.strip()
    other = ask("invoke", "shop-place", "--data", '{"total": 53}', "--no-wait").stdout.strip()
    follower = start("logs", run_id, "--follow", DURABLY_DEV=dev.origin, PYTHONUNBUFFERED="1")
    follower.until("following lines")
    follower.until("run started")
    assert ask("runs", "cancel", run_id).status == 0
    assert follower.wait() == 0
    assert re.search(
        rf"{run_id[-6:]}  shop-place +■  run cancelled .*the run was cancelled by request", follower.output
    )
    assert follower.output.count("run cancelled") == follower.output.count("run started") == 1
    assert other not in follower.output
