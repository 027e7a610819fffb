"""An engine in a process without file descriptors, and clients in another: ``few_descriptors.py DATABASE LOOP``."""

import asyncio
import contextlib
import logging
import os
import resource
import sys

from durably.engine.model.settings import EngineSettings
from durably.engine.sqlite.server import serve_database

SECONDS = 1.5
CLIENTS = """
import socket, sys, time, urllib.request
host = ("127.0.0.1", int(sys.argv[1]))
held = [socket.create_connection(host) for _ in range(100)]
input()
for each in held:
    each.close()
urllib.request.urlopen(f"http://127.0.0.1:{host[1]}/health", timeout=20)
print("answered", flush=True)
"""


async def main(database: str) -> None:
    async with await serve_database(database, EngineSettings(), port=0) as server:
        port = server.origin.rpartition(":")[2]
        clients = await asyncio.create_subprocess_exec(
            sys.executable, "-c", CLIENTS, port, stdin=asyncio.subprocess.PIPE
        )
        assert clients.stdin is not None
        limit = 40
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        held = []
        with contextlib.suppress(OSError):
            while True:
                held.append(os.open(os.devnull, os.O_RDONLY))
        for descriptor in held[-4:]:
            os.close(descriptor)
        await asyncio.sleep(SECONDS)
        clients.stdin.write(b"\n")
        clients.stdin.close()
        await clients.wait()
        for descriptor in held[:-4]:
            os.close(descriptor)


logging.basicConfig(level=logging.WARNING, format="%(message)s")
if sys.argv[2] == "uvloop":
    import uvloop

    uvloop.run(main(sys.argv[1]))
else:
    asyncio.run(main(sys.argv[1]))
