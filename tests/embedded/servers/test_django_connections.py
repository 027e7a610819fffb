"""Connections of the ORM in async functions: one that the database has ended is replaced before the next call."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import asyncio, datetime as dt
import django, durably
from asgiref.sync import sync_to_async
from django.conf import settings

settings.configure(
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "shop.sqlite3"}}, ROOT_URLCONF="__main__"
)
django.setup()
from django.db import connection
from durably.django.adapter import make_handler

urlpatterns = []
instant = durably.EngineSettings(backoff=lambda attempt, jitter: dt.timedelta(0))
engine = durably.Embedded("durably.db", settings=instant)
client = durably.Client(app_id="shop", engine=engine, is_production=False)


@sync_to_async
def select(is_broken):
    connection.ensure_connection()
    if is_broken:
        connection.connection.close()
    with connection.cursor() as cursor:
        return cursor.execute("SELECT 7").fetchone()


@client.create_function(fn_id="f", trigger=durably.TriggerEvent(event="f"))
async def f(ctx):
    return await ctx.step.run("select", select, ctx.attempt == 0)


make_handler(client, [f])
engine.start_sync()
[event_id] = client.send_sync(durably.Event(name="f"))
[run] = engine.event_runs_sync(event_id)
run = engine.wait_for_run_sync(run.id, timeout=dt.timedelta(seconds=60))
print(run.status, run.decode_output(), len(engine.run_attempts_sync(run.id)))
engine.stop_sync()
"""


@pytest.mark.slow
def test_a_broken_connection_fails_one_attempt(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout == "Completed [7] 1\n", done.stderr
