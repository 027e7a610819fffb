"""``make demo-failover``: one order on three machines that share a commit log; the leader is lost in the middle.

Starts a PostgreSQL server and three processes of ``examples/failover``, each with a directory of its own: three
machines. It places an order, kills the leader and deletes its directory while a step runs, and prints how another
machine takes the run to its end. It fails if the order does not arrive, or if a step ran again that was committed.
"""

import asyncio
import contextlib
import json
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

import aiohttp
from tests.postgres import PostgresServer

from .demo_programs import DemoFailedError, Program, first_with, free_port, request, until_listening

APP = "examples.failover.app:app"
LEADS = "is now the leader"
UNDER_WAY = "pack"
"""The step that runs when the leader is lost."""
SECONDS = 80.0


async def main() -> None:
    async with contextlib.AsyncExitStack() as stack:
        postgres = PostgresServer()
        stack.push_async_callback(asyncio.to_thread, postgres.__exit__)
        await asyncio.to_thread(postgres.start)
        print(f"PostgreSQL keeps the commit log: {postgres.url}\n")
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        machines: list[Program] = []
        places: dict[str, tuple[Path, str]] = {}
        for number in (1, 2, 3):
            name, port = f"machine-{number}", str(free_port())
            places[name] = directory / name, f"127.0.0.1:{port}"
            places[name][0].mkdir()
            machine = await Program.start(
                name,
                *(sys.executable, "-m", "uvicorn", "--port", port, "--log-level", "warning", APP),
                DATABASE=str(directory / name / "shop.db"),
                DURABLY_LOG=postgres.url,
            )
            stack.push_async_callback(machine.stop)
            machines.append(machine)
        for _, address in places.values():
            await until_listening(address)
        leader = await first_with(machines, LEADS)
        others = [each for each in machines if each is not leader]
        print(f"\n{leader.name} leads, {others[0].name} and {others[1].name} follow\n")

        async with aiohttp.ClientSession(f"http://{places[others[0].name][1]}") as http:
            print(f"at {others[0].name}:")
            event = json.loads(await request(http, "POST", "/orders/A-1"))["event"]
            busy = await first_with(machines, f"order A-1: {UNDER_WAY}")
            show_steps([leader, *others])
            print(f"\n$ kill -9 {leader.process.pid}  # {leader.name}, while {busy.name} runs {UNDER_WAY!r}")
            leader.process.kill()
            killed_at = time.monotonic()
            await leader.process.wait()
            print(f"$ rm -r {places[leader.name][0]}  # and its disk\n")
            shutil.rmtree(places[leader.name][0])
            next_leader = await first_with(others, LEADS)
            print(f"{next_leader.name} leads {time.monotonic() - killed_at:.1f} s after the kill\n")
            print(f"at {others[0].name}:")
            run = json.loads(await request(http, "GET", f"/events/{event}"))
        print()
        counts = show_steps([leader, *others])
        if run["status"] != "Completed":
            raise DemoFailedError("the order should have arrived")
        if again := [step for step, count in counts.items() if count > (2 if step == UNDER_WAY else 1)]:
            raise DemoFailedError(f"these steps were committed and ran again: {', '.join(again)}")
        print("\nNo committed step ran again.")


def show_steps(machines: list[Program]) -> dict[str, int]:
    """Print on which machines each step ran. Returns how often each has run."""
    ran: dict[str, list[str]] = {}
    for machine in machines:
        for line in machine.lines:
            if found := re.search(r"order A-1: (\w+)", line):
                ran.setdefault(found[1], []).append(machine.name)
    for step, names in ran.items():
        print(f"    {step:10} {', then '.join(names)}")
    return {step: len(names) for step, names in ran.items()}


if __name__ == "__main__":
    try:
        asyncio.run(asyncio.wait_for(main(), SECONDS))
    except (DemoFailedError, TimeoutError) as failure:
        sys.exit(str(failure) or f"the order has not arrived after {SECONDS:g} s")
    except KeyboardInterrupt:
        sys.exit(0)
