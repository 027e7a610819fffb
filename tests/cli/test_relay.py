"""``durably relay``, and relays of processes whose engine is elsewhere."""

import json
import subprocess
import sys
import urllib.request
from pathlib import Path

from ..waiting import eventually
from .conftest import Command, Run, Start, environment, write

APP = """
    import os
    import sys

    import durably
    import durably.sqlalchemy
    import sqlalchemy as sa
    from sqlalchemy.orm import sessionmaker

    database = sa.create_engine("sqlite:///shop.sqlite3")
    client = durably.Client(app_id="shop")
    durably.sqlalchemy.relay(client, database)
    in_process = durably.Client(app_id="shop", engine=durably.Embedded("durably.db"))
    bare = durably.Client(app_id="shop")

    if __name__ == "__main__":
        durably.sqlalchemy.metadata.create_all(database)
        if sys.argv[1] == "killed":
            durably.sqlalchemy.Relay.wake = lambda self: os._exit(9)  # right after the commit
        with sessionmaker(database).begin() as session:
            durably.sqlalchemy.send(session, durably.Event(name="outbox/row", data={"by": sys.argv[1]}))
"""


def test_relay_sends_what_killed_processes_have_committed(dev: Command, start: Start, directory: Path) -> None:
    write(directory / "main.py", APP)
    variables = {"DURABLY_DEV": dev.origin}

    def write_event(by: str) -> int:
        return subprocess.run(
            [sys.executable, "main.py", by], cwd=directory, env=environment() | variables, check=False
        ).returncode

    def received() -> list[str]:
        with urllib.request.urlopen(f"{dev.origin}/v1/events?name=outbox/row") as answer:
            return [each["data"]["by"] for each in json.load(answer)["data"]]

    assert write_event("ended") == 0
    assert received() == ["ended"]  # A process sends what it has committed.
    assert write_event("killed") == 9
    assert received() == ["ended"]
    relay = start("relay", "main:client", **variables)
    eventually(lambda: received() == ["killed", "ended"], "the relay has sent it")

    def reported() -> bool:
        with urllib.request.urlopen(f"{dev.origin}/metrics") as answer:
            return 'durably_outbox_events{outbox="shop.sqlite3",state="waiting"} 0' in answer.read().decode()

    eventually(reported, "the relay has reported")
    assert relay.stop() == 0
    assert "has stopped" in relay.output


def test_relay_without_work_is_refused(run: Run, directory: Path) -> None:
    write(directory / "main.py", APP)
    for target, reason in (
        ("main:in_process", "in the app's own processes"),
        ("main:bare", "durably.sqlalchemy.relay"),
    ):
        result = run("relay", target, DURABLY_DEV="1")
        assert result.status == 1
        assert reason in result.stderr
