"""Durably's errors as Python objects. ``tests/test_error_codes.py`` has their form on the wire."""

import copy
import datetime as dt
import pickle

import pytest

from durably import NonRetriableError, RetryAfterError, StepError
from durably.errors import EventKeyUnspecifiedError, MethodUnsupportedError, SendEventsError
from durably.protocol.errors import Error

ERRORS = [
    NonRetriableError("no more", quiet=True),
    RetryAfterError("later", dt.timedelta(minutes=5)),
    StepError("it failed", "ValueError", "a stack"),
    SendEventsError("not sent", ["01A"]),
    MethodUnsupportedError("no PATCH", "GET, PUT, POST"),
    EventKeyUnspecifiedError(),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_can_be_pickled_and_copied(error: Error) -> None:
    """As a process pool does with the errors of its tasks."""
    for found in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(found) is type(error)
        assert (found.args, str(found), vars(found)) == (error.args, str(error), vars(error))
