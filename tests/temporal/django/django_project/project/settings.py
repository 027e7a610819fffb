"""Settings of the tests' project: those of a new project, the seed's three, and what a test varies."""

import json
import os
from pathlib import Path

BASE_DIR = Path(__file__).parent.parent
SECRET_KEY = "of the tests"
DEBUG = True
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "project.urls"
USE_TZ = True
STATIC_URL = "static/"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "durably.temporal.django",
    "temporal_app",
    "mails",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [
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
]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": BASE_DIR / "db.sqlite3",
        "CONN_MAX_AGE": int(os.environ.get("TEST_CONN_MAX_AGE", "0")),
    }
}
EMAIL_BACKEND = "django.core.mail.backends.filebased.EmailBackend"
EMAIL_FILE_PATH = BASE_DIR / "sent"

TEMPORAL_SERVER = os.environ["TEST_TEMPORAL_SERVER"]
TEMPORAL_NAMESPACE = "default"
TEMPORAL_TASK_QUEUE = os.environ["TEST_TASK_QUEUE"]
TEMPORAL = json.loads(os.environ.get("TEST_TEMPORAL", "{}"))
TEMPORAL_CONNECTIONS = json.loads(os.environ.get("TEST_CONNECTIONS", "{}"))
if TEMPORAL_CONNECTIONS:
    INSTALLED_APPS.append("invoices")
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
