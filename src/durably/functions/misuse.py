"""Explanations of steps that user code calls with wrong arguments."""

import ast
import linecache
import re
from types import TracebackType

from durably.errors import FunctionConfigInvalidError

_RECEIVERS = {
    "Step": "ctx.step",
    "StepSync": "ctx.step",
    "AI": "ctx.step.ai",
    "AISync": "ctx.step.ai",
    "Group": "ctx.group",
    "GroupSync": "ctx.group",
}
_WRONG_ARGUMENTS = re.compile(rf"(?P<class>{'|'.join(_RECEIVERS)})\.(?P<method>\w+)\(\) (?P<fault>.*)", re.DOTALL)
"""Python's message for a call whose arguments do not fit."""


def explain_wrong_arguments(error: Exception) -> Exception:
    """The error of a step that was called with wrong arguments.

    Another error is returned as it is.     No attempt can succeed, so the new error is not retried. It names the step,
    by the source of its call.
    """
    if type(error) is not TypeError or (found := _WRONG_ARGUMENTS.match(str(error))) is None:
        return error
    call = f"{_RECEIVERS[found['class']]}.{found['method']}()"
    step = "" if (step_id := _step_id(error.__traceback__)) is None else f"step {step_id}: "
    explained = FunctionConfigInvalidError(f"{step}{call} {found['fault']}")
    return explained.with_traceback(error.__traceback__)


def _step_id(traceback: TracebackType | None) -> str | None:
    """The first argument of the call that raised, as its source has it.

    ``None`` if there is no source.
    """
    if traceback is None:
        return None
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    code = traceback.tb_frame.f_code
    first, last, start, end = list(code.co_positions())[traceback.tb_lasti // 2]
    if first is None or last is None or start is None or end is None:
        return None
    lines = [linecache.getline(code.co_filename, number).encode() for number in range(first, last + 1)]
    lines[-1] = lines[-1][:end]
    lines[0] = lines[0][start:]
    try:
        called = ast.parse(f"({b''.join(lines).decode()})", mode="eval").body
    except (SyntaxError, UnicodeDecodeError):
        return None
    if not isinstance(called, ast.Call):
        return None
    named = [keyword.value for keyword in called.keywords if keyword.arg == "step_id"]
    given = [*named, *called.args][:1]
    if not given:
        return None
    if isinstance(given[0], ast.Constant) and isinstance(given[0].value, str):
        return f'"{given[0].value}"'
    return ast.unparse(given[0])
