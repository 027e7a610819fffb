"""Restate for the benchmarks: its server from npm in a process of its own, its Python SDK under Hypercorn in ours.

``python -m benchmarks.restate`` installs the server below ``benchmarks/node``. Rows leave Restate out if it or its SDK
is missing.
"""

import asyncio
import contextlib
import importlib.util
import os
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

_PACKAGE = "@restatedev/restate-server@1.7.12"
_DIRECTORY = Path(__file__).parent / "node"
_SERVER = _DIRECTORY / "node_modules" / ".bin" / "restate-server"
_START_SECONDS = 60.0


def install() -> None:
    """Raises ``subprocess.CalledProcessError``, and ``FileNotFoundError`` if npm is missing."""
    if not _SERVER.exists():
        _DIRECTORY.mkdir(exist_ok=True)
        command = ["npm", "install", "--no-audit", "--no-fund", "--no-save", "--ignore-scripts", "--loglevel=error"]
        subprocess.run([*command, "--prefix", str(_DIRECTORY), _PACKAGE], check=True)


def is_installed() -> bool:
    return _SERVER.exists() and importlib.util.find_spec("restate") is not None


@asynccontextmanager
async def restate_server(directory: Path, service: Any) -> AsyncIterator[str]:
    """A server with its default settings, and a service of this process. Yields the URL under which it is invoked."""
    ingress, admin, fabric = (_free_port() for _ in range(3))
    settings = {
        "RESTATE_LISTEN_MODE": "tcp",
        "RESTATE_BIND_IP": "127.0.0.1",
        "RESTATE_BIND_PORT": str(fabric),
        "RESTATE_INGRESS__BIND_PORT": str(ingress),
        "RESTATE_ADMIN__BIND_PORT": str(admin),
        "RESTATE_LOG_FILTER": "error",
        "RESTATE_DISABLE_TELEMETRY": "true",
    }
    command = [str(_SERVER), "--no-logo", "--base-dir", str(directory / "restate")]
    server = await asyncio.to_thread(
        lambda: subprocess.Popen(command, env={**os.environ, **settings}, stdout=subprocess.DEVNULL)
    )
    try:
        async with _serve(service) as origin:
            await _register(f"http://127.0.0.1:{admin}/deployments", origin)
            yield f"http://127.0.0.1:{ingress}/{service.name}"
    finally:
        server.terminate()
        await asyncio.to_thread(server.wait)


@asynccontextmanager
async def _serve(service: Any) -> AsyncIterator[str]:
    """Yields the service's origin. Hypercorn is the server that Restate's documentation names."""
    import hypercorn.asyncio
    import hypercorn.config
    import restate

    config, stopped, port = hypercorn.config.Config(), asyncio.Event(), _free_port()
    config.bind = [f"127.0.0.1:{port}"]
    app: Any = restate.app([service])
    serving = asyncio.create_task(hypercorn.asyncio.serve(app, config, shutdown_trigger=stopped.wait))
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        stopped.set()
        await serving


async def _register(deployments: str, origin: str) -> None:
    async with aiohttp.ClientSession() as session, asyncio.timeout(_START_SECONDS):
        while True:
            with contextlib.suppress(aiohttp.ClientConnectionError):
                async with session.post(deployments, json={"uri": origin}) as response:
                    if response.status < 300:
                        return
            await asyncio.sleep(0.2)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


if __name__ == "__main__":
    install()
