"""Runs an agent in processes that are killed at each boundary of its steps, or at random.

    python -m tests.integrations.agent_storm LIBRARY DIRECTORY [RUNS]

``LIBRARY`` is ``pydantic_ai``, ``openai_agents`` or ``langgraph``. A process that has imported everything forks those
that run the agent. Each opens the run's database and continues the run. ``RUNS`` is the number of runs whose processes
are killed at random; without it, there is a run for each boundary. It prints the numbers of runs and of deaths,
and fails if a step ran again that had been stored.
"""

import asyncio
import importlib
import os
import random
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import durably
import durably.errors
from durably.comm import CommHandler
from durably.engine.model.runs import RunStatus
from durably.integrations.agent_steps import Approval

CHARGES = 2
"""Calls of the tool in each answer of the model but the last."""


class Log:
    """The file in which each process notes the beginning and the end of its handlers.

    A line is ``STAGE NAME begin``. Whatever has stage 1 is stored before anything of stage 2 begins. ``dies_at`` is the
    number of the line after which this process dies.
    """

    def __init__(self, path: Path, dies_at: int | None) -> None:
        self._file = path.open("a")
        self._dies_in = dies_at

    def note(self, stage: int, name: str, event: str) -> None:
        self._file.write(f"{stage} {name} {event}\n")
        self._file.flush()
        if self._dies_in is not None:
            self._dies_in -= 1
            if self._dies_in == 0:
                os.kill(os.getpid(), signal.SIGKILL)


MakeAnswer = Callable[[Log, int], Callable[[durably.Context], Awaitable[str]]]
"""``make_answer`` of ``LIBRARY_storm.py``: makes what runs an agent in a function.

Its model answers with ``CHARGES`` calls of a tool ``charge`` in each of its turns, then with "done". All calls but the
first of a turn wait for an ``Approval``.
"""


def load(library: str) -> MakeAnswer:
    module = importlib.import_module(f"tests.integrations.{library}_storm")
    make_answer: MakeAnswer = module.make_answer
    return make_answer


async def live(make_answer: MakeAnswer, directory: Path, turns: int, dies_at: int | None) -> None:
    """Continue the run in this process until it has ended."""
    answer = make_answer(Log(directory / "log", dies_at), turns)
    engine = durably.Embedded(directory / "durably.db")
    client = durably.Client(app_id="storm", engine=engine)

    @client.create_function(fn_id="chat", trigger=durably.TriggerEvent(event="chat"))
    async def chat(ctx: durably.Context) -> list[str]:
        return [await answer(ctx)]

    CommHandler(client=client, framework="storm", functions=[chat])
    async with engine.running():
        runs = await engine.list_runs()
        run_id = runs[0].id if runs else (await engine.invoke(chat.id)).run_id
        assert run_id is not None
        approving = asyncio.create_task(approve(engine, client))
        run = await engine.wait_for_run(run_id)
        approving.cancel()
        assert run.status is RunStatus.COMPLETED, run
        assert run.decode_output() == ["done"], run


async def approve(engine: durably.Embedded, client: durably.Client) -> None:
    """Approve each charge that waits for it."""
    while True:
        for question in await engine.list_questions():
            with suppress(durably.errors.Error):  # another process, or this one, has answered it
                await client.run(question.run_id).answer(question.name, Approval(True), id=question.name)
        await asyncio.sleep(0.01)


def fork(make_answer: MakeAnswer, directory: Path, turns: int, dies_at: int | None) -> int:
    child = os.fork()
    if child == 0:
        try:
            asyncio.run(live(make_answer, directory, turns, dies_at))
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return child


def finish(children: dict[int, Path]) -> set[Path]:
    """Wait for processes. Returns the directories of those that were killed."""
    killed = set()
    for child, directory in children.items():
        exitcode = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert exitcode in (0, -signal.SIGKILL), f"{directory}: exit status {exitcode}"
        if exitcode:
            killed.add(directory)
    return killed


def check(directory: Path, turns: int, deaths: int) -> None:
    """Fail if a step has run again after something later had begun, or more often than processes have died in it."""
    begun = [line.split() for line in (directory / "log").read_text().splitlines() if line.endswith("begin")]
    stages = [int(stage) for stage, _, _ in begun]
    assert stages == sorted(stages), f"{directory}: a stored step was repeated: {begun}"
    counts = Counter(name for _, name, _ in begun)
    assert len(counts) == turns * (1 + CHARGES) + 1, counts
    models = sum(count - 1 for name, count in counts.items() if name.startswith("model"))
    assert models <= deaths, f"{directory}: {models} calls of the model were repeated in {deaths} deaths: {counts}"


def die_at_boundaries(make_answer: MakeAnswer, root: Path) -> None:
    """A process for each boundary of a run dies there, and another one ends the run."""
    turns = 1
    boundaries = 2 * (turns * (1 + CHARGES) + 1)
    directories = [root / str(boundary) for boundary in range(1, boundaries + 1)]
    for directory in directories:
        directory.mkdir(parents=True)
    killed = finish({fork(make_answer, directory, turns, int(directory.name)): directory for directory in directories})
    assert killed == set(directories)
    assert not finish({fork(make_answer, directory, turns, None): directory for directory in directories})
    for directory in directories:
        check(directory, turns, deaths=1)
    print(f"{len(directories)} runs, {len(directories)} deaths")


def die_at_random(make_answer: MakeAnswer, root: Path, runs: int) -> None:
    """Processes die at a random boundary, or at a random time, until the run has ended."""
    turns, deaths = 4, 0
    for number in range(runs):
        chance = random.Random(number)
        directory = root / str(number)
        directory.mkdir(parents=True)
        own_deaths = 0
        while True:
            dies_at = chance.choice((None, chance.randint(2, 8)))
            child = fork(make_answer, directory, turns, dies_at)
            if dies_at is None and own_deaths < 20:
                time.sleep(chance.uniform(0.1, 1.5))
                os.kill(child, signal.SIGKILL)  # has no effect on a process that has ended
            if not finish({child: directory}):
                break
            own_deaths += 1
        check(directory, turns, own_deaths)
        deaths += own_deaths
    print(f"{runs} runs, {deaths} deaths")


if __name__ == "__main__":
    make_answer, directory = load(sys.argv[1]), Path(sys.argv[2])
    if len(sys.argv) > 3:
        die_at_random(make_answer, directory, int(sys.argv[3]))
    else:
        die_at_boundaries(make_answer, directory)
