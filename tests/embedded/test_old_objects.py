"""Garbage collection in a process with an engine: old objects are left out, and garbage among them is not kept.

Each test is a program of its own, because an engine in a test run leaves the collector alone.
"""

import gc
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import asyncio, gc, sys, weakref

import durably


class Node:
    def __init__(self):
        self.itself = self
        self.content = bytearray(1)


def make_garbage():
    node = Node()
    return node, weakref.ref(node)


def busy():
    kept = []
    for _ in range(40):  # What survives makes Python collect all generations.
        kept = [[number] for number in range(100_000)]


async def main():
    loaded, reference = make_garbage()
    {before}
    embedded = durably.Embedded({database!r})
    async with embedded.running():
        {during}
    {after}


asyncio.run(main())
"""

WITH_GENERATIONS = pytest.mark.skipif(not gc.get_threshold()[2], reason="this Python visits old objects in parts")


@pytest.mark.parametrize(
    ("before", "during", "after"),
    [
        pytest.param(
            "",
            "assert gc.get_freeze_count() > 10_000",
            "assert gc.get_freeze_count() < 1_000",
            id="excluded",
            marks=WITH_GENERATIONS,
        ),
        pytest.param(
            "",
            "del loaded; gc.collect(0); assert reference(); gc.collect(); assert not reference()",
            "",
            id="gc.collect-visits-all",
        ),
        pytest.param(
            "",
            "gc.collect(); assert gc.get_freeze_count() > 10_000",
            "",
            id="excluded-again-after-gc.collect",
            marks=WITH_GENERATIONS,
        ),
        pytest.param(
            "",
            "del loaded\n        while reference(): busy(); await asyncio.sleep(0)",
            "",
            id="garbage-goes-in-the-end",
        ),
        pytest.param(
            "del loaded; gc.freeze()",
            "gc.collect(); assert reference() and not gc.callbacks",
            "assert gc.get_freeze_count()",
            id="frozen-by-the-app",
        ),
        pytest.param(
            "gc.disable()", "assert gc.get_freeze_count() < 1_000 and not gc.callbacks", "", id="turned-off-by-the-app"
        ),
    ],
)
def test_old_objects_are_left_out_and_garbage_among_them_goes(
    tmp_path: Path, before: str, during: str, after: str
) -> None:
    program = PROGRAM.format(database=str(tmp_path / "durably.db"), before=before, during=during, after=after)
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
