"""What tests fail with: all of these are ``AssertionError``, so that test runners report a failure and no crash."""


class RunUnknownError(AssertionError):
    """An event started no run, or several, where one was asked for."""


class RunStuckError(AssertionError):
    """A run was waited for that does not end: nothing more can happen to it, or not in the time allowed."""


class NotDeterministicError(AssertionError):
    """A function found other steps when it was called again with the same memos."""
