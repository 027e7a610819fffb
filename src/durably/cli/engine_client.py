"""Talking to a running engine over its HTTP API."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlencode

import msgspec
import urllib3

from durably.io.http_client import failure_reason
from durably.protocol.api import (
    AppSyncBody,
    AttemptBody,
    CancellationBody,
    Envelope,
    ErrorBody,
    EventBody,
    FunctionBody,
    InvokeBody,
    MetadataBody,
    ReplayBody,
    RunBody,
    SendBody,
    SignalBody,
    StepBody,
)
from durably.protocol.events import Event
from durably.protocol.signatures import bearer_token
from durably.protocol.text import printable, redact_url, redact_urls
from durably.settings import ENGINE_URL

from .failures import CliError

if TYPE_CHECKING:
    from durably.engine.views import RunUpdate

T = TypeVar("T")
TIMEOUT_SECONDS = 30.0
ANY_EVENT_KEY = "dev"
"""A dev engine takes any event key."""
_DEVELOPMENT_ADVICE = "Start one with `durably dev`, or say where it is with --url."
_PRODUCTION_ADVICE = f"Is `durably start` running there? Its URL comes from --url or {ENGINE_URL.name}."


class AnswerError(CliError):
    """The engine refused. ``status`` is the HTTP status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class EngineUnreachedError(CliError):
    """No engine answers."""


class EngineClient:
    """``signing_keys`` are tried in order while the engine answers 401 or 403. ``database`` is that of an engine in an
    app's own processes, which is reached by a socket in place of ``url``."""

    def __init__(
        self,
        url: str,
        *,
        signing_keys: Sequence[str] = (),
        event_key: str | None = None,
        database: Path | None = None,
        is_development: bool = True,
    ) -> None:
        self.url = url.rstrip("/")
        self._place = f"at {redact_url(self.url)}" if database is None else f"on {database}"
        self._tokens = [bearer_token(key) for key in signing_keys]
        self._event_key = event_key
        # Advice if no engine answers.
        self._advice = _DEVELOPMENT_ADVICE if is_development else _PRODUCTION_ADVICE
        timeout = urllib3.Timeout(connect=5.0, read=TIMEOUT_SECONDS)
        self._pool: urllib3.PoolManager | urllib3.HTTPConnectionPool
        if database is None:
            self._pool = urllib3.PoolManager(retries=False, timeout=timeout)
        else:
            from .local_engine import SocketPool

            self.url, self._pool = "", SocketPool(database, timeout)
            self._advice = "Start the app that has its Embedded(…) there."

    def send_event(self, event: Event) -> SendBody:
        path = f"/e/{quote(self._event_key or ANY_EVENT_KEY, safe='')}"
        return self._decode(self._request("POST", path, _encode(event)), SendBody)

    def event_runs(self, event_id: str) -> list[RunBody]:
        return self._data(self._request("GET", f"/v1/events/{_segment(event_id)}/runs"), list[RunBody])

    def get_event(self, event_id: str) -> EventBody:
        return self._data(self._request("GET", f"/v1/events/{_segment(event_id)}"), EventBody)

    def list_events(
        self,
        *,
        name: str | None = None,
        received_after: str | None = None,
        limit: int,
        cursor: str | None = None,
        id_suffix: str | None = None,
    ) -> list[EventBody]:
        path = "/v1/events" + _query(
            name=name, received_after=received_after, limit=limit, cursor=cursor, id_suffix=id_suffix
        )
        return self._data(self._request("GET", path), list[EventBody])

    def list_runs(
        self,
        *,
        status: str | None = None,
        function_id: str | None = None,
        started_after: str | None = None,
        id_suffix: str | None = None,
        limit: int,
    ) -> list[RunBody]:
        path = "/v1/runs" + _query(
            status=status, function_id=function_id, started_after=started_after, id_suffix=id_suffix, limit=limit
        )
        return self._data(self._request("GET", path), list[RunBody])

    def updates(self, *, function_id: str | None, on_connected: Callable[[], None]) -> "Iterator[RunUpdate]":
        """Future changes of runs, until the engine stops. ``on_connected`` is called first."""
        from durably.engine.views import RunUpdate

        path = "/v1/updates" + _query(function_id=function_id)
        response = self._send("GET", path, None, preload_content=False)
        on_connected()
        try:
            for line in _lines(response):
                if line:
                    decoded = self._decode(line, dict[str, Any])
                    output = decoded.pop("output")
                    update = msgspec.convert(decoded, RunUpdate)
                    encoded = None if output is None else msgspec.Raw(msgspec.json.encode(output))
                    yield msgspec.structs.replace(update, output=encoded)
        except urllib3.exceptions.HTTPError as error:
            raise self._unreached(redact_urls(error)) from None
        finally:
            response.release_conn()
            response.close()

    def get_run(self, run_id: str) -> RunBody:
        return self._data(self._request("GET", f"/v1/runs/{_segment(run_id)}"), RunBody)

    def run_steps(self, run_id: str) -> list[StepBody]:
        return self._data(self._request("GET", f"/v1/runs/{_segment(run_id)}/steps"), list[StepBody])

    def run_attempts(self, run_id: str) -> list[AttemptBody]:
        return self._data(self._request("GET", f"/v1/runs/{_segment(run_id)}/attempts"), list[AttemptBody])

    def run_metadata(self, run_id: str) -> list[MetadataBody]:
        return self._data(self._request("GET", f"/v1/runs/{_segment(run_id)}/metadata"), list[MetadataBody])

    def cancel_run(self, run_id: str) -> RunBody:
        return self._data(self._request("DELETE", f"/v1/runs/{_segment(run_id)}"), RunBody)

    def rerun(self, run_id: str, from_step: dict[str, Any] | None) -> RunBody:
        body = _encode({} if from_step is None else {"from_step": from_step})
        return self._data(self._request("POST", f"/v1/runs/{_segment(run_id)}/rerun", body), RunBody)

    def cancel_runs(self, selection: dict[str, Any]) -> CancellationBody:
        return self._data(self._request("POST", "/v1/cancellations", _encode(selection)), CancellationBody)

    def get_cancellation(self, cancellation_id: str) -> CancellationBody:
        return self._data(self._request("GET", f"/v1/cancellations/{_segment(cancellation_id)}"), CancellationBody)

    def list_cancellations(self) -> list[CancellationBody]:
        return self._data(self._request("GET", "/v1/cancellations"), list[CancellationBody])

    def delete_cancellation(self, cancellation_id: str) -> None:
        self._request("DELETE", f"/v1/cancellations/{_segment(cancellation_id)}")

    def replay(self, selection: dict[str, Any]) -> ReplayBody:
        return self._data(self._request("POST", "/v1/replays", _encode(selection)), ReplayBody)

    def get_replay(self, replay_id: str) -> ReplayBody:
        return self._data(self._request("GET", f"/v1/replays/{_segment(replay_id)}"), ReplayBody)

    def list_functions(self) -> list[FunctionBody]:
        return self._data(self._request("GET", "/v1/functions"), list[FunctionBody])

    def sync_app(self, url: str) -> AppSyncBody:
        return self._data(self._request("POST", "/v1/apps/sync", _encode({"url": url})), AppSyncBody)

    def check_ready(self) -> None:
        """Raises ``CliError`` if the engine does not answer, or does not take events."""
        self._request("GET", "/ready")

    def pause_function(self, function_id: str) -> FunctionBody:
        return self._data(self._request("POST", f"/v1/functions/{_segment(function_id)}/pause"), FunctionBody)

    def resume_function(self, function_id: str) -> FunctionBody:
        return self._data(self._request("POST", f"/v1/functions/{_segment(function_id)}/resume"), FunctionBody)

    def signal(self, name: str, data: Any) -> SignalBody:
        return self._data(self._request("POST", "/v1/signals", _encode({"signal": name, "data": data})), SignalBody)

    def invoke(self, function_id: str, data: dict[str, Any]) -> InvokeBody:
        body = _encode({"data": data})
        return self._decode(self._request("POST", f"/invoke/{_segment(function_id)}", body), InvokeBody)

    def _request(self, method: str, path: str, body: bytes | None = None) -> bytes:
        return self._send(method, path, body).data

    def _send(
        self, method: str, path: str, body: bytes | None, *, preload_content: bool = True
    ) -> urllib3.BaseHTTPResponse:
        """Try each signing key in turn, as long as the engine refuses it."""
        first, *others = [{"authorization": f"Bearer {token}"} for token in self._tokens] or [{}]
        response = self._attempt(method, path, body, first, preload_content)
        for headers in others:
            if response.status not in (401, 403):
                break
            response = self._attempt(method, path, body, headers, preload_content)
        if response.status >= 400:
            raise AnswerError(self._describe(response.status, response.data), response.status)
        return response

    def _attempt(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str], preload_content: bool
    ) -> urllib3.BaseHTTPResponse:
        if body is not None:
            headers = headers | {"content-type": "application/json"}
        try:
            return self._pool.request(
                method, self.url + path, body=body, headers=headers, preload_content=preload_content
            )
        except (
            urllib3.exceptions.NewConnectionError,
            urllib3.exceptions.SSLError,
        ) as error:  # Before the timeouts: urllib3 has it among them.
            raise self._unreached(failure_reason(error)) from None
        except urllib3.exceptions.TimeoutError:
            raise self._unreached(f"no answer within {TIMEOUT_SECONDS:.0f} s") from None
        except (urllib3.exceptions.HTTPError, ValueError) as error:
            raise self._unreached(redact_urls(error)) from None

    def _unreached(self, reason: str) -> EngineUnreachedError:
        return EngineUnreachedError(f"no engine answers {self._place} ({reason})\n{self._advice}")

    def _describe(self, status: int, answer: bytes) -> str:
        try:
            return printable(msgspec.json.decode(answer, type=ErrorBody).error)
        except msgspec.DecodeError:
            return f"what answers {self._place} is not an engine of Durably (status {status})"

    def _data(self, answer: bytes, of: type[T]) -> T:
        return self._decode(answer, Envelope[of]).data  # type: ignore[valid-type]

    def _decode(self, answer: bytes, as_type: type[T]) -> T:
        try:
            return msgspec.json.decode(answer, type=as_type)
        except msgspec.DecodeError:
            raise CliError(f"what answers {self._place} is not an engine of Durably") from None


def _query(**parameters: str | int | None) -> str:
    given = {name: value for name, value in parameters.items() if value}
    return f"?{urlencode(given)}" if given else ""


def _lines(response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    """The lines of a streamed body. Empty lines keep the connection alive."""
    rest = b""
    for chunk in response.stream(65_536):
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines


def _segment(text: str) -> str:
    return quote(text, safe="")


def _encode(body: Any) -> bytes:
    try:
        return msgspec.json.encode(body)
    except UnicodeEncodeError:  # "\\ud800" is valid in JSON, but half of a character
        raise CliError("the data holds text that is not valid Unicode: half of a surrogate pair") from None
