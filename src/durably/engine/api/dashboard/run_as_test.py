"""Code of a test that reproduces a run, with ``durably.testing.TestEngine``. Pure.

Steps that have ended return what they did in the run. The step that made the run fail is executed, so that the test
fails as the run did until the code is mended. Waits get their events at once, and sleeps pass on the virtual clock.
"""

import keyword
import re
import textwrap
import unicodedata
from collections import defaultdict
from typing import Any

from durably.engine.model.runs import RunReport, RunStatus, Step, StepStatus, StoredEvent
from durably.protocol.errors import ErrorData
from durably.protocol.events import InternalEvent
from durably.protocol.opcodes import Opcode, hash_step_id

from .formats import format_size, short_id
from .values import decode

MOST_BYTES = 64 * 1024
"""A larger output is left out of the code, with a comment that says so."""
_WIDTH = 100
_INDENT = " " * 8
_NEXT = ",\n"
_SOURCE = '''\
"""Reproduces the run {run_id} of {function_id}, which {ending}."""

import pytest
{imports}

# Change this line: import your client and your function.
from app import client, {function}
{helper}

@pytest.mark.asyncio
async def test_{function}_{id}() -> None:
    async with TestEngine(client, [{function}]) as engine:
{steps}
{start}
        await run.wait()
{check}
'''
_HELPER = '''

def in_turn(*outputs):
    """Give the repetitions of a step one output each."""
    remaining = iter(outputs)
    return lambda *args, **kwargs: next(remaining)
'''
_REPETITION = re.compile(r"(.*):([1-9][0-9]{0,8})", re.DOTALL)


def write_test(report: RunReport) -> str:
    """The code of a module with one test."""
    run, function = report.run, _identifier(report.run.function_id.removeprefix(f"{report.run.app_id}-"))
    body = "\n".join(_mocks(report.steps)) or "# No step of the run had ended."
    start, check = _start(report, function), _check(report)
    used = body + start
    names = [name for name in ("Event", "FetchResponse", "NonRetriableError", "Signal") if f"{name}(" in used]
    imports = [
        *([f"from durably import {', '.join(names)}"] if names else []),
        "from durably.testing import TestEngine",
    ]
    return _SOURCE.format(
        run_id=run.id,
        function_id=_in_docstring(run.function_id),
        ending=_ENDINGS.get(run.status, f"is {run.status.lower()}"),
        imports="\n".join(imports),
        function=function,
        helper=_HELPER if "in_turn(" in body else "",
        id=short_id(run.id).lower(),
        steps=textwrap.indent(body, _INDENT),
        start=textwrap.indent(start, _INDENT),
        check=textwrap.indent(check, _INDENT),
    )


_ENDINGS = {
    RunStatus.COMPLETED: "completed",
    RunStatus.FAILED: "failed",
    RunStatus.CANCELLED: "was cancelled",
    RunStatus.SKIPPED: "was skipped",
}


def _in_docstring(text: str) -> str:
    """A text that does not end the docstring it is in."""
    return repr(text)[1:-1].replace('"', '\\"')


def _identifier(text: str) -> str:
    """A Python name like a text."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    name = re.sub(r"\W+", "_", plain).strip("_").lower() or "function"
    return f"fn_{name}" if name[0].isdigit() or keyword.iskeyword(name) else name


# the start of the run


def _start(report: RunReport, function: str) -> str:
    """The statement that starts the run.

    Its event is sent, or the function is invoked if an engine made the event.
    """
    match report.events:
        case [event] if event.name not in set(InternalEvent):
            return f"run = await engine.send({_event(event)})"
        case [event]:
            data = {name: value for name, value in (event.data or {}).items() if name != "_inngest"}
            return f"run = await engine.invoke({function}{', ' + _literal(data) if data else ''})"
        case []:
            return f"run = await engine.invoke({function})"
    events = ",\n".join(textwrap.indent(_event(event), "    ") for event in report.events)
    return f"run, *_ = await engine.send([\n{events},\n])"


def _event(event: StoredEvent) -> str:
    parts = [f"name={_text(event.name)}", f"data={_literal(event.data)}"]
    parts += [f"user={_literal(event.user)}"] if event.user else []
    parts += [f"v={_text(event.v)}"] if event.v is not None else []
    return f"Event({', '.join(parts)})"


# the steps


def _mocks(steps: list[Step]) -> list[str]:
    """Statements that give ended steps their results, and comments on others."""
    by_id = defaultdict[str, list[tuple[int, Step]]](list)
    for step in steps:
        step_id, index = _split_id(step)
        by_id[step_id].append((index, step))
    return [
        line
        for step_id, found in by_id.items()
        for line in _mock(step_id, [step for _, step in sorted(found, key=_index)])
    ]


def _index(repetition: tuple[int, Step]) -> int:
    return repetition[0]


def _split_id(step: Step) -> tuple[str, int]:
    """The step's id as the user wrote it, and the number of its repetition."""
    match = _REPETITION.fullmatch(step.id)
    if match is not None and hash_step_id(match[1], int(match[2])) == step.hashed_id:
        return match[1], int(match[2])
    return step.id, 0


def _mock(step_id: str, steps: list[Step]) -> list[str]:
    if steps[0].op is Opcode.SLEEP:
        return []
    if any(step.status is StepStatus.FAILED for step in steps):
        return [_failure(step_id, next(step.error for step in steps if step.status is StepStatus.FAILED))]
    if not all(step.status is StepStatus.COMPLETED for step in steps):
        return [f"# The step {_text(step_id)} had not ended. It is executed."]
    sizes = [0 if step.output is None else len(bytes(step.output)) for step in steps]
    if sum(sizes) > MOST_BYTES:
        return [f"# The output of the step {_text(step_id)} has {format_size(sum(sizes))}, so it is executed."]
    values = [_result(step) for step in steps]
    if len(values) == 1:
        return [f"engine.mock_step({_text(step_id)}, returns={values[0]})"]
    return [
        f"engine.mock_step({_text(step_id)}, calls=in_turn(\n{textwrap.indent(_NEXT.join([*values, '']), '    ')}))"
    ]


def _failure(step_id: str, error: ErrorData | None) -> str:
    """A failed step is executed, so that the test shows whether its code still fails."""
    described = "an error" if error is None else f"{error.name or 'Error'}: {error.message or ''}"
    first = textwrap.shorten(repr(described)[1:-1], 160, placeholder="…")
    return f"# The step {_text(step_id)} failed, and is executed: {first}"


def _result(step: Step) -> str:
    """The result of a step, as its function got it."""
    value = None if step.output is None else decode(step.output)
    match step.op, value:
        case Opcode.WAIT_FOR_EVENT, {"name": str(name), **rest}:
            return f"Event(name={_text(name)}, data={_literal(rest.get('data') or {})})"
        case Opcode.WAIT_FOR_SIGNAL, {"signal": str(name), **rest}:
            return f"Signal({_text(name)}, {_literal(rest.get('data'))})"
        case Opcode.GATEWAY, {"status_code": int(status), **rest}:
            return f"FetchResponse({status}, {_literal(rest.get('headers') or {})}, {_literal(rest.get('body') or '')})"
    return _literal(value)


# the end


def _check(report: RunReport) -> str:
    if report.run.status is RunStatus.COMPLETED:
        output = report.run.output
        if output is not None and len(bytes(output)) <= MOST_BYTES:
            return f"run.assert_completed(output={_literal(decode(output))})"
    if report.run.status is RunStatus.FAILED and report.error is not None:
        failed = f"{report.error.name or 'Error'}: {report.error.message or ''}"
        return f"# The run failed: {textwrap.shorten(repr(failed)[1:-1], 160, placeholder='…')}\nrun.assert_completed()"
    return "run.assert_completed()"


def _literal(value: Any, width: int = _WIDTH) -> str:
    """A JSON value as Python, on several lines if it is wider than ``width``.

    What is so deep that no width is left is on one line: with a line for each value, its indentation would be longer
    than itself.

    Characters that are not visible are escaped, so that none has an effect on an editor. Raises ``RecursionError``.
    """
    line = _line(value)
    if len(line) <= width or width <= 0 or not isinstance(value, dict | list):
        return line
    if isinstance(value, dict):
        lines = [f"{_text(key)}: {_literal(each, width - 6 - len(_text(key)))}" for key, each in value.items()]
    else:
        lines = [_literal(each, width - 5) for each in value]
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    return f"{opening}\n{textwrap.indent(_NEXT.join([*lines, '']), '    ')}{closing}"


def _line(value: Any) -> str:
    match value:
        case str():
            return _text(value)
        case dict():
            return f"{{{', '.join(f'{_text(key)}: {_line(each)}' for key, each in value.items())}}}"
        case list():
            return f"[{', '.join(map(_line, value))}]"
    return repr(value)


def _text(value: str) -> str:
    """A text, with double quotes if it contains none."""
    quoted = repr(value)
    return quoted if '"' in quoted else f'"{quoted[1:-1]}"'
