"""Durably's engine on each of its stores, started as a user does."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .. import wire
from .engine_under_test import Engine
from .programs import clean_environment, running

SQLITE = "sqlite"
TEMPORAL = "temporal"
ENGINES = (SQLITE, TEMPORAL)
RestartableEngine = tuple[Engine, subprocess.Popen[bytes]]

_DURABLY = (sys.executable, "-c", "from durably.cli import main; main()")
_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Store:
    """A store of an engine's state: the commands that start an engine on it. The port follows them."""

    dev_command: Sequence[str]
    cloud_command: Sequence[str]
    cwd: Path


@contextmanager
def open_store(engine: str, directory: Path) -> Iterator[Store]:
    """A store of its own for the engine of this name: a file, or a Temporal server."""
    if engine == SQLITE:
        dev = (*_DURABLY, "dev", "--allow-private-addresses", "--db", str(directory / "dev.db"), "--port")
        cloud = (*_DURABLY, "start", "--db", str(directory / "cloud.db"), "--port")
        yield Store(dev, cloud, directory)
        return
    from ..temporal.dev_server import DevServer

    with DevServer() as server:
        dev = (sys.executable, "-m", "tests.conformance.temporal_engine", "--temporal", server.address, "--port")
        yield Store(dev, (*_DURABLY, "start", "--temporal", server.address, "--port"), _ROOT)


@contextmanager
def running_dev_engine(store: Store, port: int) -> Iterator[RestartableEngine]:
    with running([*store.dev_command, str(port)], port, clean_environment(), cwd=store.cwd) as process:
        yield Engine(f"http://127.0.0.1:{port}"), process


@contextmanager
def running_cloud_engine(store: Store, port: int) -> Iterator[Engine]:
    """The engine with the keys of ``wire``."""
    environment = clean_environment(
        INNGEST_SIGNING_KEY=wire.SIGNING_KEY,
        INNGEST_SIGNING_KEY_FALLBACK=wire.FALLBACK_KEY,
        INNGEST_EVENT_KEY=wire.EVENT_KEY,
    )
    with running([*store.cloud_command, str(port)], port, environment, cwd=store.cwd):
        yield Engine(f"http://127.0.0.1:{port}", wire.EVENT_KEY, wire.SIGNING_KEY)
