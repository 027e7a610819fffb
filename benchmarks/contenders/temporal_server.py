"""Temporal's development server, with its defaults, which keep everything in memory alone; ready with its address.

Arguments: its namespaces beside ``default``. It answers each question with the seconds of CPU that it has used.
"""

import asyncio
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from benchmarks.children import Answerer, cpu_seconds_of, serve
from durably.temporal import Temporal


@asynccontextmanager
async def dev_server() -> AsyncIterator[str]:
    async with _running([]) as (address, _):
        yield address


@asynccontextmanager
async def _running(namespaces: list[str]) -> AsyncIterator[tuple[str, int]]:
    """The address and the process's id."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    program = Path(sys.executable).parent / "temporal"
    command: list[str | Path] = [
        program,
        "server",
        "start-dev",
        "--headless",
        "--port",
        str(port),
        "--log-level",
        "error",
    ]
    for namespace in namespaces:
        command += ["--namespace", namespace]
    server = await asyncio.to_thread(lambda: subprocess.Popen(command))
    try:
        address = f"127.0.0.1:{port}"
        while not (await Temporal(address).check_health()).ok:
            if server.poll() is not None:
                raise RuntimeError(f"Temporal's development server ended with {server.returncode}")
            await asyncio.sleep(0.1)
        yield address, server.pid
    finally:
        server.terminate()
        await asyncio.to_thread(server.wait)


@asynccontextmanager
async def open_server(directory: Path, arguments: list[str]) -> AsyncIterator[tuple[str, Answerer]]:
    async with _running(arguments) as (address, pid):

        async def answer(question: dict[str, Any]) -> float:
            return cpu_seconds_of(pid)

        yield address, answer


if __name__ == "__main__":
    serve(open_server)
