"""A storm: an app whose processes are killed again and again, while it places orders and ships them.

``python -m tests.outbox.storm django|sqlalchemy DATABASE_URL [--kills 200] [--seed N]``. Each process is forked from
one that has loaded the app. Exits with 1 if an order that was committed has not exactly one run and one shipment, if
one that was rolled back has any, or if a step that was repeated after its commit has run its function again.
"""

import argparse
import importlib
import json
import os
import random
import signal
import sqlite3
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

_THREADS = 4
_PAUSE_SECONDS = 0.004
_LIFE_SECONDS = (0.02, 0.35)
_SETTLE_SECONDS = 120.0
"""The longest that the last process makes no progress."""


def _load(kind: str, url: str, directory: Path) -> Any:
    """The module of the app, with its tables."""
    os.environ["SHOP_ENGINE"] = str(directory / "durably.db")
    os.environ["SHOP_DATABASE"] = url
    if kind == "sqlalchemy":
        app = importlib.import_module("tests.outbox.sqlalchemy_shop")
        app.create_tables()
        return app
    import django
    from django.conf import settings
    from django.core.management import call_command

    settings.configure(
        DATABASES={"default": django_database(url)},
        INSTALLED_APPS=["durably.django", "tests.outbox.shop"],
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    )
    django.setup()
    call_command("migrate", run_syncdb=True, verbosity=0)
    django.db.connections.close_all()
    return importlib.import_module("tests.outbox.shop.durable")


def django_database(url: str) -> dict[str, Any]:
    """The entry of ``DATABASES`` for a URL."""
    if url.startswith("sqlite"):
        return {"ENGINE": "django.db.backends.sqlite3", "NAME": url.removeprefix("sqlite:///")}
    from sqlalchemy import make_url

    parts = make_url(url)
    engine = {"postgresql": "postgresql", "mysql": "mysql"}[parts.get_backend_name()]
    fields = {"NAME": parts.database, "USER": parts.username, "HOST": parts.host, "PORT": parts.port}
    return {"ENGINE": f"django.db.backends.{engine}", **fields}


def _live(app: Any, number: int, ready: int, repeats: Path) -> None:
    """Run the app in this process, and place orders, until the process is killed."""
    _count_repeats(repeats)
    app.engine.start_sync()

    def place(thread: int) -> None:
        chance = random.Random(f"{number}-{thread}")
        for count in range(10_000):
            with suppress(Exception):  # such as a locked database
                app.place(f"{number}-{thread}-{count}", fails=chance.random() < 0.3)
            time.sleep(_PAUSE_SECONDS)

    for thread in range(_THREADS):
        threading.Thread(target=place, args=(thread,), daemon=True).start()
    # Without that, processes that are slow to connect would only take attempts from runs.
    is_placed, tries = False, 0
    while not is_placed:
        try:
            app.place(f"{number}-ready-{tries}", fails=False)
            is_placed = True
        except Exception as error:  # such as a locked database
            tries += 1
            print(f"process {number}: {type(error).__name__}: {error}", file=sys.stderr)
            if tries == 10:
                raise
    os.write(ready, b".")
    time.sleep(3600)


def _count_repeats(file: Path) -> None:
    """Note in a file that a step was repeated after its commit."""
    from durably.outbox import StepResult

    read = StepResult.read

    def noted(self: StepResult, connection: Any) -> tuple[bool, Any]:
        found = read(self, connection)
        if found[0]:
            with file.open("a") as notes:
                notes.write(".")
        return found

    StepResult.read = noted  # type: ignore[method-assign]


def _settle(app: Any, engine: Path) -> None:
    """Run the app until all events are sent and all runs have ended."""
    app.engine.start_sync()
    [relay] = app.client.relays
    quiet, left, changed_at = 0, (0, 0), time.monotonic()
    while quiet < 3:
        before, left = left, (relay.backlog().waiting, _unended(engine))
        if left != before:
            changed_at = time.monotonic()
        assert time.monotonic() < changed_at + _SETTLE_SECONDS, f"{left[0]} events and {left[1]} runs are stuck"
        quiet = 0 if any(left) else quiet + 1
        time.sleep(0.1)
    app.engine.stop_sync()


def _unended(engine: Path) -> int:
    with closing(sqlite3.connect(engine)) as connection:
        [(count,)] = connection.execute("SELECT COUNT(*) FROM runs WHERE ended_at IS NULL")
        return int(count)


def _runs(engine: Path, function: str) -> list[str]:
    """The references of the orders of a function's completed runs."""
    with closing(sqlite3.connect(engine)) as connection:
        rows = connection.execute(
            "SELECT events.body FROM runs JOIN events ON events.key = runs.event_key"
            " WHERE function_id = ? AND status = 'Completed'",
            (function,),
        )
        return [json.loads(body)["data"]["ref"] for (body,) in rows]


def storm(kind: str, url: str, directory: Path, *, kills: int, seed: int) -> str:
    """Kill the app's processes. Returns a summary. Raises ``AssertionError`` that names the faults."""
    app, chance = _load(kind, url, directory), random.Random(seed)
    engine, repeats = directory / "durably.db", directory / "repeats"
    repeats.touch()
    began = time.monotonic()
    for number in range(kills):
        reading, ready = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            try:
                _live(app, number, ready, repeats)
            except BaseException:
                traceback.print_exc()
            os._exit(1)
        os.close(ready)
        is_ready = os.read(reading, 1)
        os.close(reading)
        assert is_ready, f"process {number} has not started"
        time.sleep(chance.uniform(*_LIFE_SECONDS))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            _settle(app, engine)
            status = 0
        except BaseException:
            traceback.print_exc()
        os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0, "the last process has not completed all runs"
    orders, shipments = app.read()
    faults = []
    assert len(set(orders)) == len(orders) > kills
    for what, found in (
        ("shipments", shipments),
        ("runs of fulfil", _runs(engine, "shop-fulfil")),
        ("runs of thank", _runs(engine, "shop-thank")),
    ):
        counts = Counter(found)
        if missing := set(orders) - set(counts):
            faults.append(f"{len(missing)} orders without {what}, such as {min(missing)}")
        if extra := set(counts) - set(orders):
            faults.append(f"{what} of {len(extra)} orders that were rolled back, such as {min(extra)}")
        if repeated := [ref for ref, count in counts.items() if count > 1]:
            faults.append(f"several {what} of {len(repeated)} orders, such as {min(repeated)}")
    assert not faults, f"seed {seed}: {'; '.join(faults)}"
    return (
        f"{kind}, {url.partition(':')[0]}: {kills} kills in {time.monotonic() - began:.0f} s (seed {seed}): "
        f"{len(orders)} orders, each with one run and one shipment; {len(repeats.read_text())} steps were repeated "
        "after their commit"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=("django", "sqlalchemy"))
    parser.add_argument("url", help="of an empty database")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="durably-outbox-") as directory:
        try:
            print(storm(given.kind, given.url, Path(directory), kills=given.kills, seed=given.seed))
        except AssertionError as error:
            sys.exit(str(error))


if __name__ == "__main__":
    main()
