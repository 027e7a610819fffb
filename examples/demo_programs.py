"""What demos of several programs share: to start programs, to read their output, and to send requests."""

import asyncio
import contextlib
import os
import re
import socket
from pathlib import Path

import aiohttp

ROOT = Path(__file__).parents[1]


class DemoFailedError(Exception):
    """Something did not go as a demo should; the message says what."""


class Program:
    """A program of a demo, with its output as it comes."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self.process = process
        self.lines: list[str] = []
        self._has_grown = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, name: str, *command: str, **variables: str) -> "Program":
        print(f"$ {' '.join(command)}")
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=ROOT,
            env={**os.environ, **variables},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        return cls(name, process)

    async def until(self, pattern: str) -> str:
        """The first line that matches. Raises ``DemoFailedError``."""
        seen = 0
        while True:
            for line in self.lines[seen:]:
                seen += 1
                if re.search(pattern, line):
                    return line
            if self._reading.done():
                raise DemoFailedError(f"{self.name} has ended:\n{''.join(self.lines)}")
            self._has_grown.clear()
            await self._has_grown.wait()

    async def stop(self) -> None:
        if self.process.returncode is None:
            self.process.terminate()
        await self.process.wait()
        await self._reading

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.lines.append(line.decode())
            self._has_grown.set()
        self._has_grown.set()


async def first_with(programs: list[Program], pattern: str) -> Program:
    """The program that first prints a matching line. Raises ``DemoFailedError``."""
    waiting = [asyncio.create_task(each.until(pattern)) for each in programs]
    done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    for task in waiting:
        task.cancel()
    first = done.pop()
    await first
    return programs[waiting.index(first)]


async def request(http: aiohttp.ClientSession, method: str, path: str, body: object = None) -> str:
    """Print a request and its answer. Raises ``DemoFailedError``."""
    async with http.request(method, path, json=body) as response:
        text = await response.text()
        print(f"{method} {path}\n    {response.status} {text}")
        if not response.ok:
            raise DemoFailedError(f"{method} {path} was refused with {response.status}")
        return text


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def until_listening(address: str) -> None:
    host, port = address.split(":")
    while True:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection(host, int(port))
            writer.close()
            return
        await asyncio.sleep(0.05)
