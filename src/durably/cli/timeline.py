"""A run and its steps, for a person to read."""

from textwrap import indent

import msgspec

from durably.engine.views import AttemptView, EventView, MetadataView, RunView, StepView
from durably.protocol.opcodes import Opcode
from durably.protocol.text import printable

from .memos import describe_memo
from .text import (
    Styled,
    coloured_status,
    describe_facts,
    fit,
    fit_lines,
    format_json,
    format_local,
    format_seconds,
    shorten,
    style,
    table,
)

_MARKS = {"completed": ("✓", "green"), "failed": ("✗", "red"), "retrying": ("↻", "yellow")}
_OTHER_MARK = ("…", "blue")
_OUTPUT_WIDTH = 60
_ERROR_WIDTH = 200


def describe_run(run: RunView) -> Styled:
    output = run.decode_output()
    facts = [
        ("Run", run.id),
        ("Function", run.function_id),
        ("Status", coloured_status(run.status)),
        ("Event", ", ".join(run.event_ids)),
        ("Started", format_local(run.created_at)),
    ]
    if run.rerun_of:
        facts.append(("Rerun of", run.rerun_of))
    if run.ended_at:
        facts.append(("Duration", format_seconds((run.ended_at - run.created_at).total_seconds())))
    if run.status == "Failed":
        facts.append(("Error", _describe_error(output)))
    elif run.status in ("Cancelled", "Skipped") and isinstance(output, dict):
        facts.append(("Reason", printable(output.get("message"))))
    elif run.status == "Completed":
        facts.append(("Output", format_json(output)))
    return describe_facts(facts)


def describe_events(events: list[EventView], count: int) -> Styled:
    """The data of each event; ``count`` is how many the run has."""
    rows = [[event.id, event.name, format_json(event.data)] for event in events]
    more = f"\n… and {count - len(events)} more" if count > len(events) else ""
    return Styled(table(["EVENT", "NAME", "DATA"], rows) + more)


def describe_attempts(run: RunView, attempts: list[AttemptView]) -> Styled:
    """One line for each attempt that failed and was repeated, at the time after the run's start."""
    rows = [
        [
            f"+{format_seconds((attempt.ended_at - run.created_at).total_seconds())}",
            attempt.step or "(function)",
            str(attempt.attempt + 1),
            shorten(attempt.error, _ERROR_WIDTH),
        ]
        for attempt in attempts
    ]
    return table(["AT", "FAILED STEP", "ATTEMPT", "ERROR"], rows)


def describe_metadata(metadata: list[MetadataView]) -> Styled:
    """One line for each time that the app's SDK sent metadata about the run."""
    rows = [
        [format_local(one.received_at), shorten(format_json(msgspec.json.decode(one.body)), _ERROR_WIDTH)]
        for one in metadata
    ]
    return table(["TOLD AT", "METADATA"], rows)


def describe_steps(run: RunView, steps: list[StepView]) -> Styled:
    """One line a step, at the time after the run's start at which it ended or, of others, was asked for."""
    return table(["AT", "", "STEP", "KIND", "ATTEMPTS", "RESULT"], [_step_row(run, step) for step in steps])


def _step_row(run: RunView, step: StepView) -> list[str]:
    at = (step.ended_at or step.created_at) - run.created_at
    mark, colour = _MARKS.get(step.status, _OTHER_MARK)
    attempts = str(step.attempts) if step.attempts > 1 or step.op == Opcode.STEP_RUN else ""
    row = [f"+{format_seconds(at.total_seconds())}", style(mark, fg=colour), step.id, step.op, attempts]
    return [*row, _result(step)]


def _result(step: StepView) -> str:
    if step.error:
        due = f"; again at {format_local(step.due_at)}" if step.due_at and not step.ended_at else ""
        return shorten(step.error, _OUTPUT_WIDTH) + due
    if step.ended_at is None:
        return f"{step.status} until {format_local(step.due_at)}" if step.due_at else step.status
    return shorten(describe_memo(step.op, None if step.memo is None else msgspec.json.decode(step.memo)), _OUTPUT_WIDTH)


def _describe_error(output: object) -> str:
    """The error on one line, then its stack: indented, so that none of its lines can pass for one of the facts."""
    if not isinstance(output, dict):
        return format_json(output)
    described = fit(f"{output.get('name') or 'Error'}: {output.get('message') or ''}")
    stack = output.get("stack")
    if not isinstance(stack, str) or not stack.strip():
        return described
    return Styled(f"{described}\n\n{indent(fit_lines(stack.rstrip()), '  ')}")
