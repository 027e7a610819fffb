"""Errors that engines raise.

Each message names the subject, the problem and the remedy.
"""

from durably.protocol.errors import Error


class EngineError(Error):
    """Base of the errors below."""

    include_stack = False
    is_retriable = False


class DatabaseMissingError(EngineError):
    """There is no database at the path."""


class DatabaseLockedError(EngineError):
    """Another engine owns the database."""


class DatabaseTooNewError(EngineError):
    """The database was written by a newer version of Durably than this one."""


class DatabaseCorruptError(EngineError):
    """The file is not a database of Durably, or its content is damaged."""


class DatabaseLostError(EngineError):
    """Another engine took the database over while this one was running.

    This engine must stop.
    """


class DatabaseReplacedError(DatabaseLostError):
    """The database's file has changed under the engine, which must stop.

    It was deleted, replaced, or given a hard link while this engine used it.
    """


class DatabaseLinkedError(EngineError):
    """The database has several hard links."""


class DatabaseNotOwnedError(EngineError):
    """A file of the database is not safe from other users.

    It belongs to another user, or others can open it and that cannot be changed.
    """


class DatabasePathError(EngineError):
    """The path of a database or of its lock file cannot be used.

    It names a directory, a device or similar, or no file can be created there.
    """


class DatabaseUnavailableError(EngineError):
    """The database cannot be read or written now. Nothing was changed.

    The disk is full, or failing.
    """

    is_retriable = True


class DatabaseBusyError(DatabaseUnavailableError):
    """Another process holds a transaction open, and does not end it."""


class LogRefusedError(EngineError):
    """The commit log cannot be used with this database, this URL, or this version of Durably."""


class LogDamagedError(EngineError):
    """A part of the commit log is missing or damaged."""


class BackupFailedError(EngineError):
    """A database could not be copied. Nothing was left behind."""


class EngineClosedError(EngineError):
    """The engine is closed or closing, and accepts no more input."""


class EventInvalidError(EngineError):
    """An event cannot be accepted.

    None of the events sent together with it was stored.
    """


class EventTooLargeError(EventInvalidError):
    """An event is larger than the engine's limit (413)."""


class JsonInvalidError(EngineError):
    """The JSON of a request is malformed, or has the wrong shape (400)."""


class ConfigInvalidError(EngineError):
    """A sync was refused. The message names the function and the option."""

    @classmethod
    def at(cls, function_id: str, option: str, problem: str) -> "ConfigInvalidError":
        return cls(f"function {function_id!r}: {option} {problem}")


class FunctionNotFoundError(EngineError):
    """No synced app has a function with this id."""


class FunctionPausedError(EngineError):
    """The function is paused, so its runs do not start."""


class RunNotFoundError(EngineError):
    """The engine has no run of this id."""


class StepNotFoundError(EngineError):
    """A run cannot be repeated from a step that it has not finished."""


class AnswerRefusedError(EngineError):
    """A run has not taken a message: it does not fit the type that the function receives (422)."""

    quiet = True


class QuestionClosedError(EngineError):
    """A run takes no message of this name any more (409).

    Its question has been answered, or the run has ended.
    """

    quiet = True


class CancellationNotFoundError(EngineError):
    """The engine has no bulk cancellation of this id."""


class SelectionInvalidError(EngineError):
    """The selection of a bulk operation or a search is not valid (400)."""


class TooManyWaitersError(EngineError):
    """More clients wait for changes than the engine allows (503)."""

    is_retriable = True


class NotSupportedError(EngineError):
    """This kind of engine does not support it (501). The message names the reason."""


class RunUnavailableError(EngineError):
    """No process of the engine answers for the run now (503)."""

    is_retriable = True


class ServerUnavailableError(EngineError):
    """The Temporal server of the engine does not answer (503)."""


class StaleCallError(EngineError):
    """A call was given up, or its run has ended. Its answer has no effect (409)."""


class CheckpointInvalidError(EngineError):
    """A checkpoint carries an op that cannot be checkpointed (400).

    The op needs a decision of the engine, or is malformed.
    """


class TooLargeError(EngineError):
    """A step's output, or the state of a run, is over the protocol's limit (413)."""


class OpInvalidError(EngineError):
    """An op cannot be executed. The message names the step and the reason."""


class WorkerLostError(Error):
    """The process of the call has ended, or has sent no heartbeat for the lease."""
