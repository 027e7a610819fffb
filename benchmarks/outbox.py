"""The cost of an event in a transaction that inserts an order: nothing, a bare INSERT, ``send``, in PostgreSQL."""

from contextlib import ExitStack
from pathlib import Path
from statistics import median

import psycopg
from tests.postgres import PostgresServer

from .children import Child
from .tables import describe_machine, judge, table

KINDS = {"sqlalchemy": "SQLAlchemy", "django": "Django"}
WAYS = {
    "none": "no event",
    "bare": "a bare INSERT",
    "send": "`send`",
    "notify": "a bare INSERT and a NOTIFY, which Durably does not send",
}


def measure(directory: Path, *, rounds: int, count: int, threads: int) -> dict[tuple[str, str], list[float]]:
    """Milliseconds of a transaction, by kind and way, one sample a round."""
    samples: dict[tuple[str, str], list[float]] = {(kind, way): [] for kind in KINDS for way in WAYS}
    with ExitStack() as stack:
        server = stack.enter_context(PostgresServer(is_durable=True))
        children = {}
        for kind in KINDS:
            with psycopg.connect(server.url, autocommit=True) as connection:
                connection.execute(f"CREATE DATABASE {kind}")
            url = f"{server.url.removesuffix('/postgres')}/{kind}".replace("postgresql://", "postgresql+psycopg://")
            child = Child("benchmarks.contenders.outbox", directory / f"{kind}-{threads}", kind, url)
            children[kind] = stack.enter_context(child)
        names = list(samples)
        for number in range(-1, rounds):  # the first is for warming up
            turn = number % len(names)
            for kind, way in (*names[turn:], *names[:turn]):
                seconds = children[kind].ask(way=way, count=count, threads=threads)
                if number >= 0:
                    samples[kind, way].append(seconds / count / threads * 1000)
    return samples


def report(directory: Path, *, is_quick: bool) -> str:
    """The section of the results."""
    rounds, count = (1, 5) if is_quick else (41, 80)  # Short rounds, because the flushes of a disk vary.
    one = measure(directory, rounds=rounds, count=count, threads=1)
    many = measure(directory, rounds=rounds, count=max(count // 4, 1), threads=8)
    rows = [
        [f"{name}, {text}", f"{median(one[kind, way]):.3f}", f"{median(many[kind, way]):.3f}"]
        for kind, name in KINDS.items()
        for way, text in WAYS.items()
    ]
    ratios = {
        name: median(own / floor for own, floor in zip(one[kind, "send"], one[kind, "bare"], strict=True))
        for kind, name in KINDS.items()
    }
    return "\n".join(
        [
            "## An event in a transaction\n",
            f"{describe_machine(('sqlalchemy', 'django', 'psycopg'))} PostgreSQL on the same machine, which flushes "
            f"each commit. Each transaction inserts an order. Milliseconds each; medians of {rounds} rounds.\n",
            table(["", "one connection", "8 connections"], rows),
            *(judge(f"`send` with {name} against a bare INSERT", each, at_most=1.25) for name, each in ratios.items()),
            "",
        ]
    )
