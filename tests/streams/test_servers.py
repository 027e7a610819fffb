"""Streams to browsers on real servers: what they show, whom they refuse, their limit and their ends."""

import time
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path

import pytest

from ..variants import variants
from ..waiting import eventually
from .apps import LOGS_URLS, MAX_LISTENERS, SERVERS, ServerSentEvent, Site, Stream, serving

WSGI = ["flask-gunicorn", "flask-run", "flask-waitress", "django-runserver", "django-gunicorn", "wsgi-gunicorn"]
TOO_LONG = {"aiohttp": 400, "aiohttp-gunicorn": 400, "sanic": 413}
"""Statuses for a long query from servers that refuse it themselves."""
QUICK = ["fastapi-uvicorn", "flask-gunicorn", "django-runserver", "tornado"]


@pytest.fixture(scope="module", params=variants(SERVERS, QUICK))
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with serving(request.param, tmp_path_factory.mktemp("streams")) as site:
        yield site


def open_streams(site: Site, path: str, *, in_each_worker: bool = True) -> list[Stream]:
    """A stream in each process of the server."""
    workers = (
        2 if in_each_worker and (" -w 2" in SERVERS[site.name][1] or "--workers 2" in SERVERS[site.name][1]) else 1
    )
    found: dict[str, Stream] = {}

    def look() -> bool:
        stream = site.ask(path)
        if stream.status == 503:  # A thread notices only when it writes that the surplus listeners have gone away.
            return False
        assert stream.status == 200, (stream.text, site.server.log())
        worker = stream.headers.get("x-worker", "")
        if worker in found:
            stream.close()
        else:
            found[worker] = stream
        return len(found) == workers

    eventually(look, f"each worker has a listener\n{site.server.log()}")
    return list(found.values())


def shown(events: list[ServerSentEvent]) -> list[tuple[str, object]]:
    return [
        (each.event, each.data["data"] if each.event == "message" else each.data["data"]["status"]) for each in events
    ]


def test_listeners_in_each_process_see_a_run_from_its_state_to_its_end(site: Site) -> None:
    run_id = site.start()
    path = f"/streams?channel={run_id}"
    streams = open_streams(site, path)
    before = [[next(events), next(events)] for stream in streams for events in [stream.events()]]
    site.publish(run_id, "words", "line\nbreak\r\u2028")
    site.publish(run_id, "words", {"n": 1})
    site.go(run_id)
    for first, stream in zip(before, streams, strict=True):
        rest = list(stream.events())
        assert shown([*first, *rest]) == [
            ("run", "Running"),
            ("step", "waiting"),
            ("message", "line\nbreak\r\u2028"),
            ("message", {"n": 1}),
            ("step", "completed"),
            ("step", "completed"),
            ("run", "Completed"),
        ]
        assert {each.data["channel"] for each in rest} == {run_id}
        assert stream.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert stream.headers["x-accel-buffering"] == "no"
        assert "no-store" in stream.headers["cache-control"]
        assert not [name for name in stream.headers if name.lower().startswith("access-control")]
        # back after an interruption: the rest; back after the end: nothing, for good
        assert [each.id for each in site.ask(path, last_event_id=rest[0].id).events()] == [each.id for each in rest[1:]]
        assert site.ask(path, last_event_id=stream.last_id).status == 204


def test_a_token_opens_its_run_and_topics_and_is_in_no_log(site: Site) -> None:
    run_id, other = site.start(), site.start()
    token = site.token(run_id)
    [stream] = open_streams(site, f"/streams?token={token}", in_each_worker=False)
    site.publish(run_id, "words", "hello")
    site.publish(run_id, "secrets", "no")
    site.go(run_id)
    assert shown(list(stream.events())) == [("run", "Running"), ("message", "hello"), ("run", "Completed")]
    narrower = site.ask(f"/streams?token={token}&topic=words", x_user="eve")
    assert shown(list(narrower.events())) == [("message", "hello")]
    cases = {
        f"token={token}x": 401,
        f"token={token[:-2]}": 401,
        f"token=.{token}": 401,
        f"token=x{token}": 401,
        f"token={'a' * 3500}": 401,
        "token=%FF%00.%F0%9F": 401,
        "token=%C3%A9.%C3%BC": 401,
        f"token={token}&channel={other}": 403,
        f"token={token}&topic=secrets": 403,
        f"token={token}&topic=words&topic=$step": 403,
        f"channel={run_id}": 403,
        f"channel=public&channel={run_id}": 403,
        "": 400,
        "channel=": 400,
        "&".join(f"channel=public{n}" for n in range(51)): 400,
        f"channel={'x' * 600}": 403,
        f"channel={'x' * 9000}": TOO_LONG.get(site.name, 414),
    }
    found = {query: site.ask(f"/streams?{query}", x_user="eve").status for query in cases}
    assert found == cases
    assert site.ask(f"/streams?channel={'x' * 600}").status == 400
    if site.name in LOGS_URLS:
        assert "token=***" in site.server.log()
        assert token.partition(".")[2] not in site.server.log()


def test_what_authorize_raises_or_returns_by_mistake_is_not_shown(site: Site) -> None:
    for user in ("broken", "odd"):
        answer = site.ask("/streams?channel=private", x_user=user)
        assert (answer.status, answer.text) == (500, "the app could not check access\n")
    assert "a secret of the app" in site.server.log()
    assert "authorize= returned str" in site.server.log()
    assert site.ask("/streams?channel=public", "POST").status in (403, 405)  # 403: Tornado has no XSRF cookie for it


@pytest.mark.parametrize("last_id", ["x", "-1", "9" * 4000, "1e9", "7531198977568407561", "é", "\t"])
def test_an_unknown_position_begins_with_the_state(site: Site, last_id: str) -> None:
    run_id = site.start()
    stream = site.ask(f"/streams?channel={run_id}", last_event_id=last_id.encode().decode("latin-1"))
    site.go(run_id)
    assert shown([each for each in stream.events() if each.event == "run"])[-1] == ("run", "Completed")


def test_a_listener_too_many_is_refused_until_another_goes_away(site: Site) -> None:
    streams: list[Stream] = []
    while (stream := site.ask("/streams?channel=public")).status == 200:
        streams.append(stream)
        assert len(streams) <= 2 * MAX_LISTENERS
    assert (stream.status, stream.headers["retry-after"]) == (503, "5")
    assert f"{MAX_LISTENERS} listeners" in stream.text
    full = [each for each in streams if each.headers.get("x-worker") == stream.headers.get("x-worker")]
    assert len(full) == MAX_LISTENERS
    for each in streams:
        each.close()

    def is_free() -> bool:
        if site.name in WSGI:
            site.publish("public", "words", "is anybody there?")  # A thread notices when it writes.
        stream = site.ask("/streams?channel=public")
        stream.close()
        return stream.status == 200

    eventually(is_free, "readers are free again", timeout=30)


@pytest.mark.slow
@pytest.mark.parametrize("name", WSGI)
def test_a_thread_whose_browser_goes_away_is_free_after_three_comments(name: str, tmp_path: Path) -> None:
    with serving(name, tmp_path) as site:
        streams: list[Stream] = []
        while (stream := site.ask("/streams?channel=public")).status == 200:
            streams.append(stream)
        for each in streams:
            each.close()
        eventually(lambda: site.ask("/streams?channel=public").status == 200, "a thread is free", timeout=16)


STOPPED = [name for name in SERVERS if name not in ("flask-waitress", "django-daphne", "fastapi-hypercorn")]


@pytest.mark.parametrize("name", variants(STOPPED, ["fastapi-uvicorn", "flask-gunicorn"]))
def test_open_streams_do_not_delay_the_end_of_the_server(name: str, tmp_path: Path) -> None:
    with serving(name, tmp_path) as site:
        streams = [site.ask("/streams?channel=public") for _ in range(2)]
        assert {each.status for each in streams} == {200}
        began = time.monotonic()
        site.server.process.terminate()
        site.server.process.wait(20)
        assert time.monotonic() - began < 10, site.server.log()
        for each in streams:
            with suppress(OSError, HTTPException):
                # A worker that takes the database over before it ends itself says that messages may be lost.
                assert {found.event for found in each.events()} <= {"gap"}
                assert each.last_id in ("", "0")  # A browser connects again.


@pytest.mark.slow
def test_a_server_that_reloads_serves_new_code_at_once(tmp_path: Path) -> None:
    with serving("fastapi-reload", tmp_path) as site:
        stream = site.ask("/streams?channel=public")
        main = tmp_path / "main.py"
        main.write_text(main.read_text() + '\n@app.get("/new")\ndef new():\n    return 1\n')
        began = time.monotonic()
        eventually(lambda: site.server.get("/new") == 200, site.server.log())
        assert time.monotonic() - began < 15
        with suppress(OSError, HTTPException):
            assert list(stream.events()) == []
