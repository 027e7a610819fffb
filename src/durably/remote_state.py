"""Remote state: middleware that keeps large outputs of steps in the app's store.

The engine gets a *reference*, ``{"__REMOTE_STATE__": true, "__STRATEGY__": …, …}``, instead of the output. The
references and objects of ``S3Driver`` are in the format of ``inngest.experimental.remote_state_middleware``.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import re
import secrets
import stat
import string
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol

import msgspec

from durably.functions.middleware import TransformOutputResult
from durably.protocol.opcodes import Opcode
from durably.values.outputs import encode_output

from .errors import Error, FunctionConfigInvalidError
from .middleware import MiddlewareSync

if TYPE_CHECKING:
    from durably.functions.function import Function

    from .client import Client
    from .context import Context, ContextSync
    from .execution import StepMemos

__all__ = [
    "DEFAULT_THRESHOLD_BYTES",
    "DirectoryDriver",
    "RemoteStateMiddleware",
    "S3Driver",
    "StateDriver",
    "StateError",
]

DEFAULT_THRESHOLD_BYTES: Final = 64 * 1024

_MARKER: Final = "__REMOTE_STATE__"
_MARKER_IN_JSON: Final = f'"{_MARKER}"'.encode()
_STRATEGY: Final = "__STRATEGY__"
_NAME_CHARS: Final = string.ascii_letters + string.digits
_NAME_LENGTH: Final = 32
_LOADS_AT_ONCE: Final = 8
_OFFICIAL_PREFIX: Final = "inngest/remote_state"


class StateError(Error):
    """An output could not be stored or loaded. The message states where and why."""

    include_stack = False


class StateDriver(Protocol):
    """A store of outputs.

    Several threads may call its methods at once. The methods may block.
    """

    @property
    def strategy(self) -> str:
        """The name of the kind of store in references."""
        ...

    def save(self, run_id: str, data: bytes) -> Mapping[str, Any]:
        """Store JSON durably.

        Returns the fields that ``load`` needs, as JSON values. Raises ``StateError``.
        """
        ...

    def owns(self, reference: Mapping[str, Any]) -> bool:
        """Whether ``save`` of this store may have returned the reference.

        References are untrusted.
        """
        ...

    def load(self, reference: Mapping[str, Any]) -> bytes:
        """The JSON behind a reference that the store ``owns``. Raises ``StateError``."""
        ...


@dataclass(frozen=True)
class RemoteStateFactory:
    """A factory for a client's or function's ``middleware``."""

    middleware: type[RemoteStateMiddleware]
    driver: StateDriver
    threshold_bytes: int
    read_drivers: tuple[StateDriver, ...]
    allow_plaintext: bool

    def __call__(self, client: Client, raw_request: object) -> RemoteStateMiddleware:
        return self.middleware(
            client, raw_request, self.driver, threshold_bytes=self.threshold_bytes, read_drivers=self.read_drivers
        )

    def check_order(self, before: Sequence[Any], where: str) -> None:
        """Refuse encryption that is registered before this middleware.

        Outgoing hooks run in reverse order, so encryption must come after this middleware. Raises
        ``FunctionConfigInvalidError``.
        """
        if not self.allow_plaintext and any(getattr(factory, "is_encryption", False) for factory in before):
            raise FunctionConfigInvalidError(
                f"{where}: RemoteStateMiddleware must come before EncryptionMiddleware, or outputs are stored "
                "unencrypted. If that is meant: RemoteStateMiddleware.factory(…, allow_plaintext=True)"
            )


class RemoteStateMiddleware(MiddlewareSync):
    """Keeps outputs of steps above a size in a store.

    It loads them when the function is called again. Give ``RemoteStateMiddleware.factory(driver)`` to a client or
    function.
    """

    runs_in_thread: ClassVar[bool] = True

    def __init__(
        self,
        client: Client,
        raw_request: object,
        driver: StateDriver,
        *,
        threshold_bytes: int = DEFAULT_THRESHOLD_BYTES,
        read_drivers: Sequence[StateDriver] = (),
    ) -> None:
        """See ``factory``."""
        super().__init__(client, raw_request)
        self._driver = driver
        self._threshold = threshold_bytes
        self._readers = (driver, *read_drivers)
        self._run_id = ""

    @classmethod
    def factory(
        cls,
        driver: StateDriver,
        *,
        threshold_bytes: int = DEFAULT_THRESHOLD_BYTES,
        read_drivers: Sequence[StateDriver] = (),
        allow_plaintext: bool = False,
    ) -> RemoteStateFactory:
        """Create a factory for a client's or function's ``middleware``.

        - ``driver``: Stores outputs of more than ``threshold_bytes`` of JSON.
        - ``threshold_bytes``: 0 stores all outputs there.
        - ``read_drivers``: Load outputs that were stored elsewhere before.
        - ``allow_plaintext``: Lets encryption come before this middleware.

        Raises ``FunctionConfigInvalidError``.
        """
        if threshold_bytes < 0:
            raise FunctionConfigInvalidError("remote state: threshold_bytes must not be negative")
        for given in (driver, *read_drivers):
            if isinstance(given, type) or not all(
                hasattr(given, name) for name in ("strategy", "save", "owns", "load")
            ):
                raise FunctionConfigInvalidError(
                    f"remote state: {given!r} is not a driver; give a DirectoryDriver(…), an S3Driver(…) of "
                    "durably.remote_state, or an object with the methods of StateDriver"
                )
        return RemoteStateFactory(cls, driver, threshold_bytes, tuple(read_drivers), allow_plaintext)

    def transform_input(self, ctx: Context | ContextSync, function: Function[Any], steps: StepMemos) -> None:
        """Load stored outputs, several at a time."""
        self._run_id = ctx.run_id
        remote = [(hashed_id, memo) for hashed_id, memo in steps.items() if _is_reference(memo.data)]
        for (hashed_id, memo), loaded in zip(remote, self._load_all([memo.data for _, memo in remote]), strict=True):
            if isinstance(loaded, StateError):
                steps.refuse(hashed_id, f"its output cannot be loaded: {loaded}")
            else:
                memo.data = loaded

    def _load_all(self, references: list[Mapping[str, Any]]) -> Iterator[Any]:
        if len(references) < 2:
            return map(self._load, references)
        with ThreadPoolExecutor(min(len(references), _LOADS_AT_ONCE), thread_name_prefix="durably-state") as pool:
            return pool.map(self._load, references)

    def _load(self, reference: Mapping[str, Any]) -> Any:
        """The output, or the ``StateError``."""
        try:
            return msgspec.json.decode(self._reader_of(reference).load(reference))
        except StateError as error:
            return error
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return StateError("the stored data is not JSON")

    def _reader_of(self, reference: Mapping[str, Any]) -> StateDriver:
        strategy = reference.get(_STRATEGY)
        alike = [driver for driver in self._readers if driver.strategy == strategy]
        if not alike:
            raise StateError(f"no driver of the middleware reads outputs stored with {str(strategy)[:64]!r}")
        for driver in alike:
            if driver.owns(reference):
                return driver
        raise StateError(
            f"the reference is to none of the places that {' or '.join(map(repr, alike))} stores in; give the driver "
            "that does as one of read_drivers"
        )

    def transform_output(self, result: TransformOutputResult) -> None:
        """Store the output of a step.

        An output that looks like a reference is always stored, because an output must not choose what is loaded.
        """
        step = result.step
        if step is None or step.op is not Opcode.STEP_RUN or result.error is not None or not result.has_output():
            return
        data = encode_output(result.output, f'step "{step.id}"')
        if len(data) <= self._threshold and _MARKER_IN_JSON not in data:
            return
        reference = self._driver.save(self._run_id, data)
        result.output = {_MARKER: True, _STRATEGY: self._driver.strategy, **reference}


def _is_reference(data: Any) -> bool:
    return isinstance(data, dict) and data.get(_MARKER) is True and _STRATEGY in data


def _random_name() -> str:
    return "".join(secrets.choice(_NAME_CHARS) for _ in range(_NAME_LENGTH))


class S3Driver:
    """A bucket of S3, or of a service with its API.

    - ``client``: boto3's for S3. Default: ``boto3.client("s3")``, with the settings of the environment.
    - ``prefix``: Objects are named ``<prefix>/<run id>/<random>``.
    - ``put_options``: Further arguments of ``put_object`` (storage class, server-side encryption, tags).

    The driver deletes no objects: give the bucket a lifecycle rule.
    """

    strategy: Final = "inngest/s3"

    def __init__(
        self,
        *,
        bucket: str,
        client: Any = None,
        prefix: str = _OFFICIAL_PREFIX,
        put_options: Mapping[str, Any] | None = None,
    ) -> None:
        if not bucket or not prefix.strip("/"):
            raise FunctionConfigInvalidError("remote state: S3Driver needs the names of a bucket and a prefix")
        self._bucket = bucket
        self._client = _default_s3_client() if client is None else client
        self._prefix = prefix.strip("/")
        self._put_options = dict(put_options or {})

    def __repr__(self) -> str:
        return f"S3Driver(bucket={self._bucket!r})"

    def save(self, run_id: str, data: bytes) -> dict[str, Any]:
        key = f"{self._prefix}/{run_id}/{_random_name()}"
        with self._errors("store", key):
            self._client.put_object(
                **{"ContentType": "application/json", **self._put_options}, Bucket=self._bucket, Key=key, Body=data
            )
        return {"bucket": self._bucket, "key": key}

    def owns(self, reference: Mapping[str, Any]) -> bool:
        """Whether the reference is to the bucket, also for objects of the official driver."""
        key = reference.get("key")
        prefixes = (f"{self._prefix}/", f"{_OFFICIAL_PREFIX}/")
        return reference.get("bucket") == self._bucket and isinstance(key, str) and key.startswith(prefixes)

    def load(self, reference: Mapping[str, Any]) -> bytes:
        key = reference["key"]
        with self._errors("load", key):
            data: bytes = self._client.get_object(Bucket=self._bucket, Key=key)["Body"].read()
            return data

    @contextlib.contextmanager
    def _errors(self, action: str, key: str) -> Iterator[None]:
        """Convert errors of boto3 (which is not imported here) by their codes.

        Their messages may show credentials.
        """
        try:
            yield
        except Exception as error:
            response = getattr(error, "response", None) or {}
            code = response.get("Error", {}).get("Code") or type(error).__name__
            if code in ("NoSuchKey", "404"):
                raise StateError(
                    f"{self!r} has no object {key!r}. Was it deleted, by a lifecycle rule perhaps, "
                    "before the run ended?"
                ) from None
            raise StateError(f"{self!r} cannot {action} {key!r}: {code}") from None


def _default_s3_client() -> Any:
    try:
        import boto3
    except ImportError as error:
        raise ImportError('S3Driver needs boto3: pip install "durably[s3]"') from error
    return boto3.client("s3")


_KEY = re.compile(r"[A-Za-z0-9_-]{1,128}/[A-Za-z0-9]{32}")


def _user_id(default: int) -> int:
    return os.getuid() if hasattr(os, "getuid") else default  # missing on Windows


class DirectoryDriver:
    """A directory on a disk that all processes of the app share.

    It is readable by its user only, and created if it is missing. If other users may write to it,
    ``FunctionConfigInvalidError`` is raised. Only ``purge`` deletes files.
    """

    strategy: Final = "durably/directory"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._root = Path(path).resolve()
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = self._root.stat()
        if status.st_mode & 0o022:
            is_shared = status.st_mode & stat.S_ISVTX or status.st_uid != _user_id(status.st_uid)  # such as /tmp
            advice = f"chmod 700 {self._root}"
            if is_shared:
                advice = f"give a directory of the app's own below it, such as {self._root / 'durably-state'}"
            raise FunctionConfigInvalidError(f"remote state: other users may write to {self._root}: {advice}")

    def __repr__(self) -> str:
        return f"DirectoryDriver({str(self._root)!r})"

    def save(self, run_id: str, data: bytes) -> dict[str, Any]:
        """Store JSON. The file is on the disk when this returns."""
        key = f"{run_id}/{_random_name()}"
        if not _KEY.fullmatch(key):
            raise StateError(f"{self!r} cannot store outputs of a run with the id {run_id!r}")
        path = self._root / key
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            _write_durably(path, data)
        except OSError as error:
            raise StateError(f"{self!r} cannot store {key!r}: {error.strerror}") from None
        return {"key": key}

    def owns(self, reference: Mapping[str, Any]) -> bool:
        """Whether the reference is to this directory. A key never leads out of it."""
        key = reference.get("key")
        return isinstance(key, str) and _KEY.fullmatch(key) is not None

    def load(self, reference: Mapping[str, Any]) -> bytes:
        key = reference["key"]
        try:
            with open(os.open(self._root / key, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
                return file.read()
        except FileNotFoundError:
            raise StateError(f"{self!r} has no file {key!r}. Was it purged before the run ended?") from None
        except OSError as error:
            raise StateError(f"{self!r} cannot load {key!r}: {error.strerror}") from None

    def purge(self, older_than: dt.timedelta) -> int:
        """Delete older files. Returns their number. Runs that need a deleted file fail."""
        limit = time.time() - older_than.total_seconds()
        purged = 0
        for directory in self._root.iterdir():
            if not directory.is_dir() or directory.is_symlink():
                continue
            is_old = directory.stat().st_mtime < limit
            for file in directory.iterdir():
                if file.lstat().st_mtime < limit:
                    file.unlink(missing_ok=True)
                    purged += 1
            if is_old:  # otherwise it may be in use by a writer
                with contextlib.suppress(OSError):
                    directory.rmdir()
        return purged


def _write_durably(path: Path, data: bytes) -> None:
    """Write the file atomically: completely, or not at all."""
    temporary = path.with_name(f".{path.name}")
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    for directory in (path.parent, path.parent.parent):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
