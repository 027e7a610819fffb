"""Fixtures and hooks of all tests."""

import gc
import logging
import os
import re
import signal
import sys
from collections.abc import Iterator

import hypothesis
import pytest

from .postgres import PostgresServer
from .random_examples import FACTOR

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A job in a shell's background ignores it, and the programs that tests interrupt would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Tests start hundreds of processes. Without compiled modules on disk, each process would compile the package again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Plugins of other packages that no test needs: a pytest that a test starts would import them too, for half a second.
os.environ["PYTEST_ADDOPTS"] = "-p no:schemathesis -p no:faker"

# pytest-xdist sets the width of its processes' terminals, which the programs that tests start would inherit.
os.environ.pop("COLUMNS", None)

# How long an example takes depends on the machine and on what else runs there.
hypothesis.settings.register_profile("durably", deadline=None, derandomize=FACTOR == 1)
hypothesis.settings.load_profile("durably")

_VOLATILE = re.compile(r"[0-9a-f]{32,}|\d{10,}")
"""Signatures and times, which differ from one process that collects the tests to another.

A signature comes first, as a whole: some begin with ten digits.
"""


def pytest_make_parametrize_id(val: object) -> str | None:
    """Tests have the same ids in every process, which pytest-xdist requires."""
    return _VOLATILE.sub("~", val) if isinstance(val, str) and _VOLATILE.search(val) else None


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Thousands of modules and tests stay until the end, so no garbage collection need look at them again."""
    gc.freeze()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="session")
def s3_bucket() -> Iterator[str]:
    """A bucket of moto's server, to which the environment leads."""
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # Otherwise each request is a record of the running test.
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ACCESS_KEY_ID": "id",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        }.items():
            patch.setitem(os.environ, name, value)
        boto3.client("s3").create_bucket(Bucket="bucket")
        yield "bucket"
    server.stop()


@pytest.fixture(autouse=True)
def _log_levels_are_restored() -> Iterator[None]:
    """Commands of the CLI set up the log of their process, which here is the process of the tests."""
    loggers = [logging.getLogger(name) for name in (None, "durably")]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
