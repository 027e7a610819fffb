"""The example with the engine inside of the app, on uvicorn with two workers."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import urllib3

from ..ports import listening_socket
from ..waiting import eventually

ROOT = Path(__file__).parents[2]


@contextmanager
def serving(directory: Path) -> Iterator[str]:
    with listening_socket() as (listener, origin):
        command = [sys.executable, "-m", "uvicorn", "examples.embedded.app:app", "--workers", "2"]
        server = subprocess.Popen(
            [*command, "--fd", str(listener.fileno()), "--log-level", "warning"],
            cwd=ROOT,
            env={**os.environ, "DATABASE": str(directory / "newsletter.db")},
            pass_fds=[listener.fileno()],
        )
        try:
            yield origin
        finally:
            server.terminate()
            server.wait(20)


def request(method: str, url: str) -> Any:
    response = urllib3.request(method, url, timeout=20, retries=False)
    assert response.status < 300, response.data
    return response.json()


def test_embedded_newsletter_runs_under_two_workers(tmp_path: Path) -> None:
    with serving(tmp_path) as origin:
        request("POST", f"{origin}/subscribers/ada@example.com")

        def confirm() -> Any:
            """Repeated, because the run may not wait for the confirmation yet."""
            request("POST", f"{origin}/subscribers/ada@example.com/confirmed")
            return request("GET", f"{origin}/runs")

        runs = eventually(confirm, "the run has completed", is_right=lambda runs: runs[0]["status"] == "Completed")
        assert [run["output"] for run in runs] == ["subscribed"]
