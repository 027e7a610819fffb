"""Servers on three machines, each with a directory of its own, share a commit log in PostgreSQL. Any may be lost."""

import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from ...postgres import PostgresServer
from ...waiting import eventually
from ..apps import LEASE
from ..cluster import Cluster, serving, uvicorn
from ..functions import STEPS
from ..stock import make_project, running, with_embedded

ROUNDS = int(os.environ.get("DURABLY_CHAOS_ROUNDS", "4"))
Command = Callable[[int], list[str]]


class Machines:
    """Servers by the names of their machines."""

    def __init__(self, url: str, directory: Path, **commands: Command) -> None:
        self._url, self._directory, self._commands = url, directory, commands
        self._open: dict[str, ExitStack] = {}
        self.clusters: dict[str, Cluster] = {}

    def start(self, name: str) -> None:
        directory = self._directory / name
        directory.mkdir(exist_ok=True)
        self._open[name] = ExitStack()
        server = serving(self._commands[name], directory, TEST_LOG=self._url)
        self.clusters[name] = self._open[name].enter_context(server)

    def lose(self, name: str, *, with_disk: bool) -> None:
        """A machine loses its power. ``with_disk``: and its disk."""
        with suppress(ProcessLookupError):
            os.killpg(self.clusters.pop(name).process.pid, signal.SIGKILL)
        self._open.pop(name).close()
        if with_disk:
            for path in (self._directory / name).glob("durably.db*"):
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()

    def leader(self) -> str:
        """The machine that leads."""

        def look() -> str | None:
            return next((name for name, cluster in self.clusters.items() if cluster.leader()), None)

        return eventually(look, "a machine leads")

    def close(self) -> None:
        for stack in self._open.values():
            stack.close()

    def entries(self, what: str) -> list[dict[str, Any]]:
        """From all machines' diaries, which survive them."""
        found = [Cluster(path, "", None).diary.entries(what) for path in self._directory.iterdir()]  # type: ignore[arg-type]
        return [entry for entries in found for entry in entries]

    def wait_completed(self, count: int) -> Cluster:
        """The leader, when it has ``count`` runs, and all have completed."""
        cluster = self.clusters[self.leader()]
        cluster.wait_completed(count)
        return cluster


@pytest.fixture
def machines(postgres: PostgresServer, tmp_path: Path) -> Iterator[Machines]:
    uvicorn_ = uvicorn("fast_api_app", 1)
    machines = Machines(
        f"{postgres.url}?log={tmp_path.name}", tmp_path, a=uvicorn("fast_api_app", 2), b=uvicorn_, c=uvicorn_
    )
    for name in "abc":
        machines.start(name)
    for cluster in machines.clusters.values():
        eventually(cluster.answers, "the servers answer")
    yield machines
    machines.close()


def test_runs_of_a_leader_that_is_killed_continue_on_another_machine(machines: Machines, tmp_path: Path) -> None:
    leader = machines.leader()
    other = machines.clusters["b" if leader == "a" else "a"]
    until = tmp_path / "until"
    events = [
        {"name": f"between{kind}", "id": f"{kind}{n}", "data": {"until": str(until)}}
        for n in range(4)
        for kind in ("", "-async")
    ]
    other.send(*events)
    eventually(lambda: len(machines.entries("between")) == len(events), "each run has committed its first step")
    machines.lose(leader, with_disk=True)
    lost = time.monotonic()
    # It is acknowledged by the next leader.
    other.send({"name": "count", "id": "meanwhile"})
    assert time.monotonic() - lost < LEASE.total_seconds() + 5
    until.touch()
    assert machines.leader() != leader
    machines.wait_completed(len(events) + 1)
    for what in ("first", "second"):
        assert Counter(entry["run"] for entry in machines.entries(what)) == Counter(
            {entry["run"]: 1 for entry in machines.entries("first")}
        )


@pytest.mark.slow
def test_a_machine_that_is_frozen_is_replaced_when_its_lease_is_over(machines: Machines) -> None:
    """Its connections stay open, and it accepts new ones."""
    leader = machines.leader()
    process = machines.clusters[leader].leader()
    assert process is not None
    others = [cluster for name, cluster in machines.clusters.items() if name != leader]
    others[0].send({"name": "count", "id": "before"})
    os.kill(process, signal.SIGSTOP)
    frozen = time.monotonic()
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda cluster: cluster.send({"name": "count", "id": cluster.directory.name}), others))
    assert time.monotonic() - frozen < LEASE.total_seconds() + 5
    os.kill(process, signal.SIGCONT)
    machines.wait_completed(3)


@pytest.mark.slow
def test_machines_that_are_lost_at_random_lose_no_event(machines: Machines) -> None:
    random_ = random.Random(9)
    ids = 0
    for round_ in range(ROUNDS):
        for _ in range(3):
            names = ("count", "count-sync") * 5
            events = [{"name": name, "id": f"{name}-{ids + number}"} for number, name in enumerate(names)]
            ids += len(events)
            machines.clusters[random_.choice("abc")].send(*events)
        leader = machines.leader()
        name = leader if random_.random() < 0.6 else random_.choice("abc")
        match round_ % 4:
            case 0:
                machines.lose(name, with_disk=True)
                machines.start(name)
            case 1:
                machines.lose(name, with_disk=False)
                machines.start(name)
            case 2:
                process = machines.clusters[leader].leader()
                if process is not None:
                    os.kill(process, signal.SIGKILL)
                    if machines.clusters[leader].process.pid == process:  # It has no supervisor.
                        machines.lose(leader, with_disk=False)
                        machines.start(leader)
            case _:
                process = machines.clusters[leader].leader()
                if process is not None:
                    os.kill(process, signal.SIGSTOP)
                    eventually(lambda: machines.leader() != leader, "another machine leads")  # noqa: B023
                    os.kill(process, signal.SIGCONT)
        for cluster in machines.clusters.values():
            eventually(cluster.answers, "the servers answer")
    cluster = machines.wait_completed(ids)
    memos = cluster.query("SELECT runs.id, count(*) FROM memos JOIN runs ON runs.key = run_key GROUP BY runs.id")
    assert Counter(count for _, count in memos) == {STEPS: ids}
    committed = {
        (run, name): ended_at
        for run, name, ended_at in cluster.query(
            "SELECT runs.id, memos.name, memos.ended_at FROM memos JOIN runs ON runs.key = run_key"
        )
    }
    again = [
        entry
        for entry in machines.entries("step")
        if entry["at"] * 1000 > committed[entry["run"], f"step-{entry['step']}"] + 500
    ]
    assert again == []


STOCK = [
    ("FastAPI", "uvicorn main:app --port {port} --workers 2"),
    ("Flask", "gunicorn main:app -b 127.0.0.1:{port} -w 2"),
    ("Flask", "gunicorn main:app -b 127.0.0.1:{port} -w 2 --preload"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("framework", "command"), STOCK)
def test_sleeping_run_of_a_stock_app_continues_on_another_machine(
    framework: str, command: str, postgres: PostgresServer, tmp_path: Path
) -> None:
    plain = 'Embedded("durably.db"'
    durable = with_embedded()
    assert plain in durable
    log = f"{postgres.url}?log={tmp_path.name}"
    for name in "ab":
        (tmp_path / name).mkdir()
        make_project(framework, tmp_path / name, durable=durable.replace(plain, f'{plain}, log="{log}"'))
    with running(command, tmp_path / "a") as first:
        first.send()
        first.wait_asleep()
        with running(command, tmp_path / "b") as second:
            second.wait_asleep()  # It follows the log.
            second.send()  # To the leader on the other machine.
            os.killpg(first.process.pid, signal.SIGKILL)
            eventually(
                lambda: second.query("SELECT status FROM runs") == ["Completed", "Completed"],
                f"the runs go on\n{second.log()}",
            )
