"""The cost of a commit log in PostgreSQL: runs of three steps in process, with and without it, and beside DBOS.

The server is on this machine and flushes its commits. Proxies that hold each direction back stand for a network.
"""

import contextlib
import queue
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import psycopg
from tests.postgres import PostgresServer

from durably.engine.log.entries import decode_entry
from durably.engine.log.log import CommitLog
from durably.engine.model.settings import Durability

from .children import Child
from .contenders.load import STEPS
from .latency import p99
from .tables import describe_machine, judge, table
from .throughput import IN_PROCESS, Contender, measure

PACKAGES = ("dbos", "psycopg")
_DELAYS_MS = 2, 30
_NO_LOG, _LOCAL = "no log", "a log on this machine"
_EVENTS = 20
"""Events whose latency is measured in a slot."""


@contextlib.contextmanager
def slow_proxy(target: int, delay: float) -> Iterator[int]:
    """A TCP proxy to a port of this machine that delays each direction by half of ``delay``, in seconds.

    Yields its port.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            while True:
                try:
                    near, _ = listener.accept()
                except OSError:
                    return
                far = socket.create_connection(("127.0.0.1", target))
                for source, sink in ((near, far), (far, near)):
                    sink.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    sent: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()
                    threading.Thread(target=_receive, args=(source, sent), daemon=True).start()
                    threading.Thread(target=_forward, args=(sent, sink, delay / 2), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def _receive(source: socket.socket, sent: queue.SimpleQueue[tuple[float, bytes]]) -> None:
    data = b" "
    while data:
        try:
            data = source.recv(65536)
        except OSError:
            data = b""
        sent.put((time.monotonic(), data))


def _forward(sent: queue.SimpleQueue[tuple[float, bytes]], sink: socket.socket, delay: float) -> None:
    with contextlib.suppress(OSError):
        while True:
            received_at, data = sent.get()
            time.sleep(max(0.0, received_at + delay - time.monotonic()))
            if not data:
                sink.shutdown(socket.SHUT_RDWR)
                return
            sink.sendall(data)


def _with_log(port: int) -> tuple[str, int, tuple[str, ...]]:
    return IN_PROCESS.module, IN_PROCESS.runs, ("log", str(port))


def _measure_latencies(
    directory: Path, ports: dict[str, int], rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds from an event to the function's first line, and seconds of a bare commit in the store, at each port."""
    names: dict[str, tuple[str, ...]] = {_NO_LOG: ()} | {name: _with_log(port)[2] for name, port in ports.items()}
    found: dict[str, list[float]] = {name: [] for name in names}
    commits: dict[str, list[float]] = {name: [] for name in ports}
    with ExitStack() as stack:
        children = {
            name: stack.enter_context(
                Child(f"benchmarks.contenders.{IN_PROCESS.module}", directory / f"latency-{number}", *arguments)
            )
            for number, (name, arguments) in enumerate(names.items())
        }
        connections = {
            name: stack.enter_context(
                psycopg.connect(f"postgresql://postgres@127.0.0.1:{port}/postgres", autocommit=True)
            )
            for name, port in ports.items()
        }
        for child in children.values():
            child.ask(events=_EVENTS)  # warming up
        connections[next(iter(ports))].execute("CREATE TABLE bare (payload bytea)")
        for number in range(rounds):
            for name in names if number % 2 else reversed(names):
                found[name] += children[name].ask(events=_EVENTS)
                if name in ports:
                    commits[name] += [_commit_bare(connections[name]) for _ in range(_EVENTS)]
    return found, commits


def _commit_bare(connection: psycopg.Connection[tuple[object, ...]]) -> float:
    began = time.perf_counter()
    connection.execute("INSERT INTO bare VALUES (%s)", (bytes(500),), binary=True)
    return time.perf_counter() - began


def _restore(directory: Path, url: str) -> tuple[float, float, float, float]:
    """Restore a database from its log alone, on an empty disk.

    Returns the log's bytes per step, entries per thousand steps, and restored statements and steps per second.
    """
    log = CommitLog(url)
    began = time.perf_counter()
    with contextlib.closing(log.open_database(directory / "restored.db", Durability.FULL)) as connection:
        seconds = time.perf_counter() - began
        steps = STEPS * connection.execute("SELECT count(*) FROM runs").fetchone()[0]
    entries = log.store.read(0, log.sequence)
    statements = sum(len(decode_entry(*entry).statements) for entry in entries)
    size = sum(len(payload) for _, payload in entries)
    log.close()
    return size / steps, 1000 * len(entries) / steps, statements / seconds, steps / seconds


def report(directory: Path, *, is_quick: bool) -> str:
    """The section of the results."""
    rounds, share, size = (1, 0.02, 2_000_000) if is_quick else (15, 0.5, 200_000_000)
    with ExitStack() as stack:
        server = stack.enter_context(PostgresServer(is_durable=True))
        ports = {_LOCAL: server.port}
        for delay in _DELAYS_MS:
            ports[f"a log {delay} ms away"] = stack.enter_context(slow_proxy(server.port, delay / 1000))
        local, *slow = [Contender(name, *_with_log(port)) for name, port in ports.items()]
        dbos = Contender("DBOS on the same PostgreSQL", "dbos_steps", 100, (str(server.port),))
        speeds = {
            at_once: measure(
                directory / str(at_once),
                rounds=rounds,
                share=share * max(1, at_once / 400),
                at_once=at_once // 10 if is_quick else at_once,
                contenders=[IN_PROCESS, local, *slow, *([dbos] if at_once == 100 else [])],
            )
            for at_once in (100, 1000)
        }
        latencies, commits = _measure_latencies(directory, ports, 1 if is_quick else 10)
        restored = _restore(directory, f"{server.url}?log={local.module}-log-{server.port}")
        with Child("benchmarks.contenders.log_snapshot", directory / "snapshot", str(server.port)) as child:
            snapshot = child.ask(bytes=size)
    speed_rows = [
        [
            contender.name,
            *(
                f"{found.of(contender):,.0f} ({found.ratio(contender, IN_PROCESS):.2f} ×)"
                if contender in found.samples
                else ""
                for found in speeds.values()
            ),
        ]
        for contender in speeds[100].samples
    ]
    latency_rows = [
        [name, _ms(median(found)), _ms(median(commits[name])) if name in commits else ""]
        for name, found in latencies.items()
    ]
    commit_rows = [
        [name, *map(_ms, (median(found), p99(found), max(found)))]
        for name, found in (("before", snapshot["before"]), ("while a snapshot is stored", snapshot["during"]))
    ]
    extra = median(latencies[_LOCAL]) - median(latencies[_NO_LOG])
    return "\n".join(
        [
            "## A commit log in PostgreSQL\n",
            f"{describe_machine(PACKAGES)} In process, runs of {STEPS} steps; medians of {rounds} rounds.\n",
            table(["steps/s (against no log)", "100 runs at once", "1,000 runs at once"], speed_rows),
            table(["from an event to the first line", "p50", "a bare commit in the store"], latency_rows),
            table([f"a commit, beside {size / 1e6:.0f} MB", "p50", "p99", "longest"], commit_rows),
            "The log has {:.0f} bytes a step, and {:.0f} entries per thousand steps. A database is restored from it at "
            "{:,.0f} statements or {:,.0f} steps per second.\n".format(*restored),
            judge("with the log, against without", speeds[100].ratio(local, IN_PROCESS), at_least=0.85),
            judge("with the log, against DBOS", speeds[100].ratio(local, dbos), at_least=12),
            judge("p50 that the log adds, against a bare commit", extra / median(commits[_LOCAL]), at_most=1),
            judge(
                "the longest commit while a snapshot is stored", max(snapshot["during"]) * 1e3, at_most=50, unit="ms"
            ),
            "",
        ]
    )


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms"
