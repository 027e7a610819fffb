"""``durably.django`` in a project with two databases, by Django's own test runner."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import MakeUrl

ROOT = Path(__file__).parents[2]
RUN = """
import sys
import django
from django.conf import settings
from django.core.management import call_command
from tests.outbox.storm import django_database

if __name__ == "__main__":
    settings.configure(
        DATABASES={"default": django_database(sys.argv[1]), "other": django_database(sys.argv[2])},
        INSTALLED_APPS=[
            "django.contrib.admin",
            "django.contrib.auth",
            "django.contrib.contenttypes",
            "django.contrib.messages",
            "django.contrib.sessions",
            "durably.django",
            "tests.outbox.shop",
        ],
        MIDDLEWARE=[
            "django.contrib.sessions.middleware.SessionMiddleware",
            "django.contrib.auth.middleware.AuthenticationMiddleware",
            "django.contrib.messages.middleware.MessageMiddleware",
        ],
        TEMPLATES=[
            {
                "BACKEND": "django.template.backends.django.DjangoTemplates",
                "APP_DIRS": True,
                "OPTIONS": {
                    "context_processors": [
                        "django.template.context_processors.request",
                        "django.contrib.auth.context_processors.auth",
                        "django.contrib.messages.context_processors.messages",
                    ]
                },
            }
        ],
        ROOT_URLCONF="tests.outbox.shop.urls",
        STATIC_URL="static/",
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        SECRET_KEY="x",
        USE_TZ=True,
    )
    django.setup()
    call_command("test", "tests.outbox.shop.tests")
"""


@pytest.mark.parametrize("driver", ["sqlite", "postgresql+psycopg"])
def test_project_with_two_databases(driver: str, make_url: MakeUrl, tmp_path: Path) -> None:
    urls = [make_url("sqlite"), make_url(driver)]
    environment = {**os.environ, "SHOP_ENGINE": str(tmp_path / "durably.db")}
    result = subprocess.run(
        [sys.executable, "-c", RUN, *urls[::-1]], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "\nOK" in result.stderr
    assert not (tmp_path / "durably.db").exists()
