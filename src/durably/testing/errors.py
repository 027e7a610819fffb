"""Failures of tests.

All are ``AssertionError``, so that test runners report a failure, not an error.
"""


class RunUnknownError(AssertionError):
    """An event started no run or several runs, and the test needs exactly one."""


class RunStuckError(AssertionError):
    """A test waits for a run that does not end.

    Nothing more happens to the run, or not in the allowed time.
    """


class NotDeterministicError(AssertionError):
    """A function found other steps when it was called again with the same memos."""
