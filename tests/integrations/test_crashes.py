"""Agents of all libraries, and tasks of Celery, in processes that are killed."""

import asyncio
import signal
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest


@pytest.mark.parametrize("runs", [[], pytest.param(["12"], marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
@pytest.mark.parametrize("library", ["pydantic_ai", "openai_agents", "langgraph"])
async def test_nothing_stored_is_paid_again_after_a_crash(library: str, runs: list[str], tmp_path: Path) -> None:
    storm = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.integrations.agent_storm", library, str(tmp_path / "storm"), *runs),
        cwd=Path(__file__).parents[2],
        stdout=PIPE,
        stderr=PIPE,
    )
    output, errors = await storm.communicate()
    assert storm.returncode == 0, errors.decode()
    assert b"deaths" in output


async def test_a_chain_of_celery_tasks_goes_on_after_a_crash(tmp_path: Path) -> None:
    codes = []
    for _ in range(2):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.integrations.celery_storm", str(tmp_path)), cwd=Path(__file__).parents[2]
        )
        codes.append(await process.wait())
    assert codes == [-signal.SIGKILL, 0]
    assert (tmp_path / "log").read_text().split() == ["1", "2", "3", "3", "4", "5"]
