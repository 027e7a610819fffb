"""The file of running calls, as the next leader reads it."""

import os
import subprocess
import sys
from pathlib import Path

from durably.embedded.nodes.in_flight import CallKey, InFlightCalls, identity_of

GONE, HERE, DONE = CallKey("run-1", "step", 0), CallKey("run-2", "step", 0), CallKey("run-3", "a" * 40, 2)


def make_process() -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)


def test_only_calls_of_ended_processes_are_lost(tmp_path: Path) -> None:
    with make_process() as gone, make_process() as here:
        calls = InFlightCalls(tmp_path, 1)
        calls.begin(identity_of(gone.pid), GONE)
        calls.begin(identity_of(here.pid), HERE)
        calls.end(calls.begin(identity_of(gone.pid), DONE))
        gone.kill()
        gone.wait()
        following = InFlightCalls(tmp_path, 2)
        assert [following.take_lost(key) for key in (GONE, HERE, DONE)] == [True, False, False]
        assert not following.take_lost(GONE)
        here.kill()


def test_calls_of_the_last_leader_are_lost_although_it_lives(tmp_path: Path) -> None:
    calls = InFlightCalls(tmp_path, 1)
    calls.begin(identity_of(os.getpid()), HERE)
    assert InFlightCalls(tmp_path, 2).take_lost(HERE)


def test_a_lost_call_that_its_run_does_not_know_is_passed_on(tmp_path: Path) -> None:
    InFlightCalls(tmp_path, 1).begin(identity_of(os.getpid()), HERE)
    InFlightCalls(tmp_path, 2)
    (tmp_path / "1.calls").unlink()
    assert InFlightCalls(tmp_path, 3).take_lost(HERE)


def test_an_identity_distinguishes_processes_of_the_same_id() -> None:
    with make_process() as process:
        assert identity_of(process.pid) != identity_of(os.getpid())
        process.kill()
        process.wait()
        assert identity_of(process.pid) == ""


def test_file_grows_and_a_closed_file_accepts_no_records(tmp_path: Path) -> None:
    calls = InFlightCalls(tmp_path, 1)
    keys = [CallKey(f"run-{number}", "step", 0) for number in range(3000)]
    process = identity_of(os.getpid())
    slots = [calls.begin(process, key) for key in keys]
    following = InFlightCalls(tmp_path, 2)
    assert all(following.take_lost(key) for key in keys)
    calls.close()
    calls.end(slots[0])
