"""Sending events: by ``client.send`` and by ``client.send_sync``, with one outcome."""

import asyncio
import base64
import json
import re
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest

import durably
from durably import Client, Event, events
from durably import app as app_module
from durably.errors import EngineNotConfiguredError, EventKeyUnspecifiedError, SendEventsError

from ..fake_engine import Answer, FakeEngine, Received
from ..io.test_transport import serving

KEY = "event-key"
ACCEPTED: Answer = (200, {"ids": ["01A", "01B"], "status": 200})
TWO = [Event(name="test/one", data={"n": 1}), Event(name="test/two")]

Send = Callable[..., list[str]]


@pytest.fixture(autouse=True)
def _short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "BASE_DELAY", 0.001)


@pytest.fixture(params=["send", "send_sync"])
def send(request: pytest.FixtureRequest) -> Send:
    """The same for both ways of sending."""

    def run(client: Client, *args: Any, **kwargs: Any) -> list[str]:
        if request.param == "send":
            return asyncio.run(client.send(*args, **kwargs))
        return client.send_sync(*args, **kwargs)

    return run


def make_client(engine: FakeEngine | str, **options: Any) -> Client:
    origin = engine if isinstance(engine, str) else engine.origin
    settings = {"app_id": "app", "event_api_base_url": origin, "event_key": KEY, "is_production": False}
    return Client(**(settings | options))


def test_events_and_their_ids(engine: FakeEngine, send: Send) -> None:
    engine.answers[f"/e/{KEY}"] = ACCEPTED
    assert send(make_client(engine, env="branch"), TWO) == ["01A", "01B"]
    [received] = engine.received
    assert received.method == "POST"
    one, two = received.json
    assert isinstance(one.pop("ts"), int)
    assert one == {"name": "test/one", "data": {"n": 1}}
    assert two["data"] == {}
    assert received.headers["x-inngest-env"] == "branch"
    assert received.headers["x-inngest-sdk"].startswith("durably:v")
    assert received.headers["content-type"] == "application/json"


def test_fields_of_an_event_are_kept(engine: FakeEngine, send: Send) -> None:
    engine.answers[f"/e/{KEY}"] = ACCEPTED
    send(make_client(engine), Event(name="test/full", data={"é": 1}, id="mine", ts=123, user={"id": 1}, v="2"))
    expected = {"name": "test/full", "data": {"é": 1}, "id": "mine", "ts": 123, "user": {"id": 1}, "v": "2"}
    assert engine.received[0].json == [expected]


def test_nothing_to_send_is_not_sent(engine: FakeEngine, send: Send) -> None:
    assert send(make_client(engine), []) == []
    assert engine.received == []


def test_the_seed_of_the_ids(engine: FakeEngine, send: Send) -> None:
    engine.answers[f"/e/{KEY}"] = ACCEPTED
    client = make_client(engine)
    send(client, TWO)
    send(client, TWO)
    seeds = [received.headers["x-inngest-event-id-seed"] for received in engine.received]
    assert len(set(seeds)) == 2
    for seed in seeds:
        assert re.fullmatch(r"\d{13},[A-Za-z0-9+/]{14}==", seed)
        assert base64.b64decode(seed.partition(",")[2])[6] < 0x80  # adding an index cannot overflow


@pytest.mark.parametrize("status", [500, 502, 503])
def test_faults_of_the_engine_are_tried_again_with_one_seed(engine: FakeEngine, send: Send, status: int) -> None:
    answers: list[Answer] = [(status, {"error": "busy"}), (status, b"<html>"), ACCEPTED]
    engine.answers[f"/e/{KEY}"] = lambda received: answers.pop(0)
    assert send(make_client(engine), TWO) == ["01A", "01B"]
    assert len(engine.received) == 3
    assert len({received.headers["x-inngest-event-id-seed"] for received in engine.received}) == 1
    assert len({received.body for received in engine.received}) == 1


def test_broken_connections_and_timeouts_are_tried_again_with_one_seed(send: Send) -> None:
    seen: list[bytes] = []
    done = threading.Event()

    def answer(connection: socket.socket) -> None:
        seen.append(connection.recv(10_000))
        if len(seen) == 1:
            return  # breaks off
        if len(seen) == 2:
            done.wait(10)  # too late
            return
        content = json.dumps(ACCEPTED[1]).encode()
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(content), content))

    with serving(answer) as host:
        assert send(make_client(f"http://{host}", request_timeout=200), TWO) == ["01A", "01B"]
        done.set()
    seeds = {re.search(rb"x-inngest-event-id-seed: (\S+)", request)[1] for request in seen}  # type: ignore[index]
    assert (len(seen), len(seeds)) == (3, 1)


def test_send_fails_after_five_attempts(engine: FakeEngine, send: Send) -> None:
    engine.answers[f"/e/{KEY}"] = 503, {"error": "busy", "ids": ["01A"]}
    with pytest.raises(SendEventsError, match="not sent after 5 attempts: busy") as raised:
        send(make_client(engine), TWO)
    assert raised.value.ids == ["01A"]
    assert len(engine.received) == events.MAX_ATTEMPTS


def test_send_to_unreachable_engine_fails(send: Send) -> None:
    message = r"cannot reach http://127\.0\.0\.1:9: connection refused \(is `durably dev` running\?\)"
    with pytest.raises(SendEventsError, match=message) as raised:
        send(make_client("http://127.0.0.1:9"), TWO)
    assert KEY not in str(raised.value)


@pytest.mark.parametrize(
    ("answer", "message", "ids"),
    [
        ((400, {"error": "event 1: no name", "status": 400}), "event 1: no name", []),
        ((400, {"error": "event 1: no name", "ids": ["01A"]}), "event 1: no name", ["01A"]),
        ((413, {"error": "event 1 is too large"}), "too large", []),
        ((401, {}), "the engine answered 401", []),
        ((404, b"<html>"), "the engine answered 404", []),
        ((302, b""), "the engine answered 302", []),
        ((200, b"nonsense"), "the engine answered 200", []),
        ((200, {"ids": ["01A"], "error": "one was not accepted"}), "one was not accepted", ["01A"]),
    ],
)
def test_refusals_are_not_tried_again(
    engine: FakeEngine, send: Send, answer: Answer, message: str, ids: list[str]
) -> None:
    engine.answers[f"/e/{KEY}"] = answer
    with pytest.raises(SendEventsError, match=message) as raised:
        send(make_client(engine), TWO)
    assert raised.value.ids == ids
    assert len(engine.received) == 1
    assert raised.value.is_retriable == (answer[0] not in (400, 413)), "a step that sends invalid events is not retried"


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ([{"name": "test/dict"}], "not dict"),
        ({"name": "test/dict"}, "not dict"),
        ("test/name", "not str"),
        (Event(name="test/odd", data=["odd"]), "event 'test/odd': data is a dictionary or a pydantic model, not list"),  # type: ignore[arg-type]
        (Event(name="test/odd", data={"odd": object()}), "cannot be expressed in JSON"),
    ],
)
def test_value_that_is_not_an_event_is_refused(engine: FakeEngine, send: Send, events: Any, message: str) -> None:
    with pytest.raises(SendEventsError, match=message):
        send(make_client(engine), events)
    assert engine.received == []


# -- keys


def test_production_needs_a_key(engine: FakeEngine, send: Send) -> None:
    with pytest.raises(EventKeyUnspecifiedError, match="DURABLY_EVENT_KEY"):
        send(make_client(engine, is_production=True, event_key=None), TWO)
    assert engine.received == []


@pytest.mark.parametrize("key", [{}, {"event_key": KEY}])
def test_production_needs_an_engine(send: Send, key: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The events do not go to a hosted engine instead."""
    client = Client(app_id="shop", is_production=True, **key)
    with pytest.raises(EngineNotConfiguredError, match=r"'shop' has no engine in this test run: .*TestEngine"):
        send(client, TWO)
    monkeypatch.setattr(app_module, "is_test_run", lambda: False)
    with pytest.raises(EngineNotConfiguredError, match=r"DURABLY_ENGINE_URL.*DURABLY_DEV=1.*Embedded.*InngestCloud"):
        send(client, TWO)


def test_a_key_with_odd_characters_stays_one_part_of_the_path(engine: FakeEngine, send: Send) -> None:
    send(make_client(engine, event_key="a/b?c"), TWO)
    assert engine.received[0].path == "/e/a%2Fb%3Fc"


# -- middleware


def make_middleware(log: list[str], *, is_async: bool) -> type[Any]:
    if is_async:

        class Async(durably.Middleware):
            async def before_send_events(self, events: list[Event]) -> None:
                await asyncio.sleep(0)
                log.append(f"async before {len(events)}")
                events[0].data = {"marked": True}

            async def after_send_events(self, result: durably.SendEventsResult) -> None:
                await asyncio.sleep(0)
                log.append(f"async after {result.ids} {result.error}")

        return Async

    class Sync(durably.MiddlewareSync):
        def before_send_events(self, events: list[Event]) -> None:
            log.append(f"sync before {len(events)}")

        def after_send_events(self, result: durably.SendEventsResult) -> None:
            log.append(f"sync after {result.ids} {result.error}")

    return Sync


@pytest.fixture
def log() -> list[str]:
    return []


@pytest.fixture
def client(engine: FakeEngine, log: list[str]) -> Client:
    both = [make_middleware(log, is_async=True), make_middleware(log, is_async=False)]
    return make_client(engine, middleware=both)


def test_hooks_learn_of_errors(engine: FakeEngine, send: Send, client: Client, log: list[str]) -> None:
    engine.answers[f"/e/{KEY}"] = 400, {"error": "no", "ids": ["01A"]}
    with pytest.raises(SendEventsError, match="no"):
        send(client, Event(name="test/one"))
    assert log == ["async before 1", "sync before 1", "sync after ['01A'] no", "async after ['01A'] no"]


def test_a_hook_that_raises_before_nothing_was_sent(engine: FakeEngine, send: Send) -> None:
    class Refuses(durably.MiddlewareSync):
        def before_send_events(self, events: list[Event]) -> None:
            raise PermissionError("not these")

    with pytest.raises(PermissionError, match="not these"):
        send(make_client(engine, middleware=[Refuses]), Event(name="test/one"))
    assert engine.received == []


def test_events_of_many_threads_and_tasks(engine: FakeEngine) -> None:
    def answer(received: Received) -> Answer:
        return 200, {"ids": [event["name"] for event in received.json]}

    engine.answers[f"/e/{KEY}"] = answer
    client = make_client(engine)

    async def send_all(prefix: str) -> list[list[str]]:
        return await asyncio.gather(*(client.send(Event(name=f"{prefix}{n}")) for n in range(50)))

    results: list[list[list[str]]] = []
    threads = [threading.Thread(target=lambda p=p: results.append(asyncio.run(send_all(p)))) for p in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(ids for sent in results for [ids] in sent) == sorted(f"{p}{n}" for p in "abc" for n in range(50))


# -- sends that share requests


async def send_at_once(client: Client, *sends: Event | list[Event]) -> list[Any]:
    """The ids or the error of each."""
    return await asyncio.gather(*(client.send(each) for each in sends), return_exceptions=True)


def ids_of(received: Received) -> list[str]:
    """Ids as engines make them of a seed: the same events have the same ids in each request."""
    milliseconds, _, encoded = received.headers["x-inngest-event-id-seed"].partition(",")
    entropy = base64.b64decode(encoded)
    first = int.from_bytes(entropy[6:])
    return [f"{milliseconds}-{entropy[:6].hex()}-{first + index}" for index in range(len(received.json))]


async def test_sends_that_overlap_share_a_request(engine: FakeEngine) -> None:
    """Each gets the ids of its own events."""
    engine.answers[f"/e/{KEY}"] = lambda received: (200, {"ids": [event["name"] for event in received.json]})
    events = [[Event(name=f"{n}-{i}") for i in range(n)] for n in range(1, 30)]
    sent = await send_at_once(make_client(engine), *events)
    assert sent == [[event.name for event in each] for each in events]
    # The first send does not wait, and neither do the others for it: their request may arrive before.
    assert sorted(len(received.json) for received in engine.received) == [1, 434]


@pytest.mark.parametrize("fault", [(400, {"error": "event 2: no name"}), (503, {"error": "busy"}), (200, {"ids": []})])
async def test_a_send_does_not_fail_because_of_another(engine: FakeEngine, fault: Answer) -> None:
    """After a shared request has failed, each send has a request of its own, with the same ids."""
    shared: list[str] = []

    def answer(received: Received) -> Answer:
        names = [event["name"] for event in received.json]
        if len(names) > 2:
            shared.extend(ids_of(received))
            return fault
        return (400, {"error": "no name"}) if "bad" in names else (200, {"ids": ids_of(received)})

    engine.answers[f"/e/{KEY}"] = answer
    first, *others, bad, last = await send_at_once(
        make_client(engine), Event(name="first"), Event(name="a"), TWO, Event(name="bad"), Event(name="b")
    )
    assert len(first) == 1
    assert [*others[0], *others[1]] == shared[:3]
    assert isinstance(bad, SendEventsError)
    assert last == shared[4:]
    assert len(engine.received) == 6


async def test_sends_of_different_runs_share_no_request(engine: FakeEngine) -> None:
    """An engine knows the sender of a request, not of an event."""
    engine.answers[f"/e/{KEY}"] = lambda received: (200, {"ids": [event["name"] for event in received.json]})
    client = make_client(engine)

    async def send_in(run: str) -> None:
        events.sending_run.set(run)
        await client.send(Event(name=run))

    await asyncio.gather(*(send_in(run) for run in ("a", "b", "c")))
    assert sorted(received.headers["x-run-id"] for received in engine.received) == ["a", "b", "c"]


async def test_a_cancelled_send_leaves_the_others_alone(engine: FakeEngine) -> None:
    engine.answers[f"/e/{KEY}"] = lambda received: (200, {"ids": [event["name"] for event in received.json]})
    client = make_client(engine)
    sends = [asyncio.create_task(client.send(Event(name=name))) for name in "abcd"]
    await asyncio.sleep(0)
    sends[2].cancel()
    assert await asyncio.gather(*sends[:2], sends[3]) == [["a"], ["b"], ["d"]]
    assert [event["name"] for event in engine.received[1].json] == ["b", "d"]
