"""Errors that engines raise. Each names what was wrong, where, and what to do about it."""

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
    """The file is no database of Durably's, or its content is damaged."""


class DatabaseLostError(EngineError):
    """Another engine took the database over while this one was running; this one must stop."""


class DatabaseReplacedError(DatabaseLostError):
    """The database was deleted, replaced, or given a hard link while this engine used it; this one must stop."""


class DatabaseLinkedError(EngineError):
    """The database has several hard links."""


class DatabaseNotOwnedError(EngineError):
    """A file of the database belongs to another user, or others can open it and that cannot be changed."""


class DatabasePathError(EngineError):
    """The path of a database or of its lock file names a directory, a device or another thing that is not a file."""


class DatabaseUnavailableError(EngineError):
    """The database cannot be read or written at the moment: the disk is full, or failing. Nothing was changed."""

    is_retriable = True


class DatabaseBusyError(DatabaseUnavailableError):
    """Another process is in the middle of a transaction, and does not come to its end."""


class BackupFailedError(EngineError):
    """A database could not be copied. Nothing was left behind."""


class EngineClosedError(EngineError):
    """The engine is closed or closing, and accepts nothing any more."""


class EventInvalidError(EngineError):
    """An event cannot be accepted. Nothing of what was sent together with it was stored."""


class EventTooLargeError(EventInvalidError):
    """An event is larger than the engine's limit (413)."""


class BodyInvalidError(EngineError):
    """The JSON of a request is malformed, or has the wrong shape (400)."""


class ConfigInvalidError(EngineError):
    """A sync was refused. The message names the function and the option."""

    @classmethod
    def at(cls, function_id: str, option: str, problem: str) -> "ConfigInvalidError":
        return cls(f"function {function_id!r}: {option} {problem}")


class FunctionNotFoundError(EngineError):
    """No app that has synced has a function of this id."""


class FunctionPausedError(EngineError):
    """The function is paused: nothing of it is started."""


class RunNotFoundError(EngineError):
    """The engine has no run of this id."""


class StepNotFoundError(EngineError):
    """A run is to be run again from a step that it has not finished."""


class CancellationNotFoundError(EngineError):
    """The engine has no bulk cancellation of this id."""


class SelectionInvalidError(EngineError):
    """What runs a bulk cancellation or replay is to concern, is not said well."""


class StaleCallError(EngineError):
    """A call was given up on, or its run has ended: what it sends changes nothing any more (409)."""


class CheckpointInvalidError(EngineError):
    """A checkpoint carries an op that needs a decision of the engine, or one that is malformed (400)."""


class TooLargeError(EngineError):
    """A step's output, or the state of a run, is over the protocol's limit (413)."""


class OpInvalidError(EngineError):
    """An op cannot be carried out. The message names the step and the reason."""
