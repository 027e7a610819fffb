"""Syncs of any shape: each is stored as a whole, or refused with words, and nothing of it is kept."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from durably.engine.model.settings import Durability, EngineSettings
from durably.engine.sqlite.server import serve_database

_URL = "http://127.0.0.1:9/api/inngest"

_DURATIONS = ["0s", "1s", "90s", "8d", "400d", "-1m", "1e9s", "9" * 400 + "d", "2000-01-01T00:00:00Z"]
_EXPRESSIONS = [
    "event.data.id",
    "event.data.",
    "async.data.id == event.data.id",
    "'high'",
    "1",
    "event.n > 1",
    "((((((",
]
_SCHEDULES = [
    "* * * * *",
    "0 0 30 2 *",
    "TZ=Mars/Base 0 0 * * *",
    "TZ=Europe/Paris 30 2 * * *",
    "*/0 * * * *",
    "0 0 29 2 1",
]
_URLS = ["embedded://shop", "http://[::1", "http://h:port/"]
_SECRET_URLS = ["ftp://me:secret-of-mine@h/", "http://me:secret-of-mine@h:x/", "http://me:secret-of-mine@[::1"]
_NAMES = ["", " ", "\x00", "\ud800", "fn", "account", "skip", "cancel"]

_texts = st.sampled_from([*_DURATIONS, *_EXPRESSIONS, *_SCHEDULES, *_URLS, *_NAMES]) | st.text(max_size=20)
_numbers = st.sampled_from([0, 1, 2, -1, 10**9, 10**9 + 1, 10**30, 1.0, 1.5, 1e300, float("nan"), float("inf")])
_leaves = st.none() | st.booleans() | _numbers | _texts
_values = st.recursive(_leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_texts, inner, max_size=3))


def _option(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Mostly an object with some of the fields, mostly of the right kind."""
    known = st.fixed_dictionaries({}, optional={name: value | _values for name, value in fields.items()})
    return known | _values | st.builds(dict.__or__, known, st.dictionaries(_texts, _values, max_size=1))


_counts = st.integers(-1, 20) | _numbers
_durations = st.sampled_from(["1s", "5s", "1m", "2h", "7d", "500ms", "366d"])
_keys = st.sampled_from(["event.data.id", "'all'", "event.data.n > 1"])
_limits = _option(limit=_counts, key=_keys, scope=st.sampled_from(["fn", "env", "account"]))
_triggers = _option(event=st.just("x"), expression=_keys) | _option(
    cron=st.sampled_from(["* * * * *", "TZ=Asia/Tokyo 0 9 * * MON-FRI"]), jitter=_durations
)
_steps = _option(
    id=st.just("step"),
    runtime=_option(url=st.sampled_from([_URL, *_SECRET_URLS]), type=st.just("http")),
    retries=_option(attempts=_counts),
)
_options: dict[str, st.SearchStrategy[Any]] = {
    "id": st.sampled_from(["shop-a", "shop-b"]) | _values,
    "name": st.just("f") | _values,
    "triggers": st.lists(_triggers, max_size=3) | _values,
    "steps": st.fixed_dictionaries({"step": _steps}) | _values,
    "idempotency": _keys | _values,
    "batchEvents": _option(maxSize=_counts, timeout=_durations, key=_keys, **{"if": _keys}),
    "cancel": st.lists(_option(event=st.just("x"), timeout=_durations, **{"if": _keys}), max_size=6) | _values,
    "rateLimit": _option(limit=_counts, period=_durations, key=_keys),
    "throttle": _option(limit=_counts, period=_durations, burst=_counts, key=_keys),
    "debounce": _option(period=_durations, timeout=_durations, key=_keys),
    "priority": _option(run=_keys | st.just("100")),
    "concurrency": st.lists(_limits, max_size=3) | _limits | _counts,
    "singleton": _option(mode=st.sampled_from(["skip", "cancel"]), key=_keys),
    "timeouts": _option(start=_durations, finish=_durations),
    "checkpoint": _values,
    "retries": _counts,
}
_configs = st.sets(st.sampled_from(list(_options)), max_size=3).flatmap(
    lambda names: st.fixed_dictionaries({name: _options[name] for name in sorted(names)})
)


def _function(function_id: str) -> dict[str, Any]:
    runtime = {"type": "http", "url": f"{_URL}?fnId={function_id}&stepId=step"}
    step = {"id": "step", "name": "step", "runtime": runtime}
    return {"id": function_id, "name": "f", "triggers": [{"event": "x"}], "steps": {"step": step}}


class Syncing:
    """An engine that is served, and a loop to talk to it from code that is not async."""

    def __init__(self, runner: asyncio.Runner, http: aiohttp.ClientSession) -> None:
        self._runner, self._http = runner, http

    def sync(self, *configs: Any) -> tuple[int, str]:
        """The status, and the answer."""
        body = json.dumps({"url": _URL, "appName": "shop", "functions": configs}, allow_nan=True)
        return self._runner.run(self._ask("POST", "/fn/register", body))

    def functions(self) -> Any:
        return json.loads(self._runner.run(self._ask("GET", "/v1/apps/shop/functions"))[1])["data"]

    async def _ask(self, method: str, path: str, body: str | None = None) -> tuple[int, str]:
        async with self._http.request(method, path, data=body) as response:
            return response.status, await response.text()


@pytest.fixture(scope="module")
def syncing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Syncing]:
    path: Path = tmp_path_factory.mktemp("syncs") / "engine.db"
    with asyncio.Runner() as runner:
        opening = serve_database(path, EngineSettings(durability=Durability.NORMAL), port=0)
        server = runner.run(opening)

        async def connect() -> aiohttp.ClientSession:
            return aiohttp.ClientSession(server.origin)

        http = runner.run(connect())
        yield Syncing(runner, http)
        runner.run(http.close())
        runner.run(server.close())


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(_configs)
def test_a_sync_is_stored_as_a_whole_or_refused_with_words(syncing: Syncing, changes: dict[str, Any]) -> None:
    assert syncing.sync(_function("shop-before"))[0] == 200
    before = syncing.functions()
    status, answer = syncing.sync(_function("shop-other"), _function("shop-fn") | changes)
    if status == 200:
        assert [function["id"] for function in syncing.functions()].count("shop-other") == 1
        return
    assert status == 400, answer
    error = json.loads(answer)["error"]
    assert error
    assert "secret-of-mine" not in error
    assert syncing.functions() == before
