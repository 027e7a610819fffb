"""The warning about functions that a Django project does not serve."""

import subprocess
import sys
from pathlib import Path

PROJECT = """
from django.conf import settings
settings.configure(SECRET_KEY="key", INSTALLED_APPS=["django.contrib.contenttypes"], ROOT_URLCONF=__name__)
import django
django.setup()
urlpatterns = []

import durably
client = durably.Client(app_id="shop", is_production=False, engine=durably.Embedded("durably.db"))

@client.create_function(fn_id="greet", trigger=durably.TriggerEvent(event="hello"))
def greet(ctx): ...

client.send_sync(durably.Event(name="hello"))
client.engine.stop_sync()
"""


def test_warning_names_installed_apps_without_an_adapter(tmp_path: Path) -> None:
    """No module of the project has imported ``durably.django``."""
    (tmp_path / "project.py").write_text(PROJECT)
    ended = subprocess.run(
        [sys.executable, "project.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    )
    assert "'shop-greet'" in ended.stderr
    assert "write INSTALLED_APPS += ['durably.django'] in the settings" in ended.stderr
    assert "fast_api" not in ended.stderr
