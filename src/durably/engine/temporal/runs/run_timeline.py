"""The timeline of a run in Temporal's UI, as Markdown.

It is workflow code, but nothing depends on it.
"""

from collections import deque

from temporalio import workflow

from durably.engine.core.inputs import (
    AwaitEvent,
    AwaitSignal,
    Command,
    EndRun,
    Invoke,
    MakeCall,
    MakeRequest,
    Sleep,
    WriteMemo,
)
from durably.engine.views import to_datetime

_MAX_LINES = 50
_MAX_CHARACTERS = 200


class RunTimeline:
    """The last lines of a run's timeline.

    ``workflow.set_current_details`` shows them; it adds nothing to histories.
    """

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=_MAX_LINES)
        self._dropped = 0

    def note(self, command: Command) -> None:
        text = _describe(command)
        if text is None:
            return
        self._dropped += len(self._lines) == _MAX_LINES
        at = workflow.now().strftime("%H:%M:%S.%f")[:-3]
        self._lines.append(f"- {at} {text[:_MAX_CHARACTERS]}")
        first = [f"- … {self._dropped} lines before"] if self._dropped else []
        workflow.set_current_details("\n".join([*first, *self._lines]))


def _describe(command: Command) -> str | None:
    match command:
        case WriteMemo(name=name, failed=failed, attempts=attempts):
            outcome = "failed" if failed else "finished"
            return f"step `{name}` {outcome}" + (f" at attempt {attempts}" if attempts > 1 else "")
        case MakeCall(call, failed) if failed is not None:
            return f"`{call.name or 'function'}` is repeated at {_time(call.due)}: {call.error}"
        case Sleep(name=name, until=until):
            return f"step `{name}` sleeps until {_time(until)}"
        case AwaitEvent(name=name, event=event, until=until):
            return f"step `{name}` waits for the event `{event}` until {_time(until)}"
        case AwaitSignal(name=name, signal=signal, until=until):
            return f"step `{name}` waits for the signal `{signal}` until {_time(until)}"
        case Invoke(name=name, function_id=function_id):
            return f"step `{name}` invokes `{function_id}`"
        case MakeRequest(name=name, attempt=attempt):
            return f"step `{name}` makes its request" + (f", attempt {attempt + 1}" if attempt else "")
        case EndRun(status=status):
            return f"the run is {status.value.lower()}"
        case _:
            return None


def _time(milliseconds: int) -> str:
    return to_datetime(milliseconds).strftime("%Y-%m-%d %H:%M:%S")
