"""Settings: constructor arguments first, then the environment, then defaults. The only reader of ``os.environ``."""

import os
import sys
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import PurePath
from urllib.parse import urlsplit

from durably.errors import FunctionConfigInvalidError, URLInvalidError
from durably.protocol.headers import ServerKind

DEV_ORIGIN = "http://127.0.0.1:8288"
CLOUD_API_ORIGIN = "https://api.inngest.com"
CLOUD_EVENT_ORIGIN = "https://inn.gs"
DEFAULT_SERVE_PATH = "/api/inngest"

_FALSE = ("", "0", "false")
_TRUE = ("1", "true")
_TEST_MODULES = ("pytest", "pytest.__main__", "unittest.__main__", "tornado.testing", "nose2.__main__", "twisted.trial")
"""Modules that run tests when they are the main program (``python -m unittest``)."""
_TEST_SCRIPTS = ("pytest", "py.test", "nose2", "trial")
_DJANGO_SCRIPTS = ("manage.py", "django-admin", "django-admin.py")
_ENVIRONMENT_NAMES = ("INNGEST_ENV", "VERCEL_GIT_COMMIT_REF", "RENDER_GIT_BRANCH", "RAILWAY_GIT_BRANCH")


class Streaming(Enum):
    """Whether answers to calls are streamed: spaces that keep the connection alive, then the answer."""

    DISABLE = "disable"
    FORCE = "force"


class Environment:
    """The settings that the environment gives, read when asked for."""

    def __init__(self, variables: Mapping[str, str] | None = None) -> None:
        self._variables = os.environ if variables is None else variables

    def _get(self, name: str) -> str | None:
        value = self._variables.get(name, "").strip()
        return value or None

    @property
    def mode(self) -> ServerKind:
        dev = self._get("INNGEST_DEV")
        return ServerKind.CLOUD if dev is None or dev.lower() in _FALSE else ServerKind.DEV

    @property
    def event_key(self) -> str | None:
        return self._get("INNGEST_EVENT_KEY")

    @property
    def signing_key(self) -> str | None:
        return self._get("INNGEST_SIGNING_KEY")

    @property
    def signing_key_fallback(self) -> str | None:
        return self._get("INNGEST_SIGNING_KEY_FALLBACK")

    @property
    def name(self) -> str | None:
        """The environment that an engine keeps apart from others: a branch, say."""
        return next((value for name in _ENVIRONMENT_NAMES if (value := self._get(name))), None)

    @property
    def serve_origin(self) -> str | None:
        return self._get("INNGEST_SERVE_ORIGIN")

    @property
    def serve_path(self) -> str | None:
        return self._get("INNGEST_SERVE_PATH")

    @property
    def streaming(self) -> Streaming | None:
        value = self._get("INNGEST_STREAMING")
        if value is None:
            return None
        if value.lower() == "allow":  # what other SDKs of the protocol also accept
            return Streaming.FORCE
        try:
            return Streaming(value.lower())
        except ValueError:
            raise FunctionConfigInvalidError(f'INNGEST_STREAMING must be "force" or "disable", not {value!r}') from None

    @property
    def allows_in_band_sync(self) -> bool:
        return (self._get("INNGEST_ALLOW_IN_BAND_SYNC") or "1").lower() not in _FALSE

    @property
    def allows_unsigned_sync(self) -> bool:
        return (self._get("INNGEST_ENABLE_UNAUTHED_SYNC") or "1").lower() not in _FALSE

    @property
    def thread_pool_max_workers(self) -> int | None:
        """``0`` means no pool, ``None`` Python's default size."""
        value = self._get("INNGEST_THREAD_POOL_MAX_WORKERS")
        if value is not None and not (value.isascii() and value.isdigit()):
            raise FunctionConfigInvalidError(
                f"INNGEST_THREAD_POOL_MAX_WORKERS must be a number of threads (0 for no pool), not {value!r}"
            )
        return None if value is None else int(value)

    @property
    def is_reloader_parent(self) -> bool:
        """Whether this process of ``flask run`` only watches over the one that serves."""
        is_debug = (self._get("FLASK_DEBUG") or "").lower() not in ("", "0", "false", "no")
        return is_debug and self._get("WERKZEUG_RUN_MAIN") != "true"

    @property
    def log_level(self) -> str | None:
        return self._get("INNGEST_LOG_LEVEL")

    def api_origin(self, mode: ServerKind) -> str:
        return self._origin("INNGEST_API_BASE_URL", mode, CLOUD_API_ORIGIN)

    def event_origin(self, mode: ServerKind) -> str:
        return self._origin("INNGEST_EVENT_API_BASE_URL", mode, CLOUD_EVENT_ORIGIN)

    def _origin(self, name: str, mode: ServerKind, cloud: str) -> str:
        for variable in (name, "INNGEST_BASE_URL"):
            if value := self._get(variable):
                return parse_origin(value, mode, variable)
        dev = self._get("INNGEST_DEV")
        if dev is not None and dev.lower() not in (*_TRUE, *_FALSE):
            return parse_origin(dev, mode, "INNGEST_DEV")
        return DEV_ORIGIN if mode is ServerKind.DEV else cloud


def parse_origin(text: str, mode: ServerKind, setting: str) -> str:
    """A base URL without trailing slash. A missing scheme is https, in dev mode http.

    Raises ``URLInvalidError`` naming the setting.
    """
    url = text.strip()
    if "://" not in url:
        url = f"{'http' if mode is ServerKind.DEV else 'https'}://{url}"
    try:
        parts = urlsplit(url)
        is_valid = parts.scheme in ("http", "https") and bool(parts.hostname)
        is_valid = is_valid and ("." in parts.netloc or ":" in parts.netloc or parts.hostname == "localhost")
        _ = parts.port
    except ValueError:
        is_valid = False
    if not is_valid:
        raise URLInvalidError(f"{setting} is not a valid URL: {text!r}; write it like https://engine.example.com")
    return url.rstrip("/")


def is_test_run() -> bool:
    """Whether this process runs tests: pytest and its pytest-xdist workers, ``manage.py test``, ``python -m unittest``.

    A child that a test run forks, or starts with ``multiprocessing``, is part of the test run. A program that a test
    starts by itself is not: a server in a subprocess is a server. So nothing here reads environment variables, which
    such programs inherit (``PYTEST_CURRENT_TEST``).
    """
    # Set by our pytest plugin, which each process of a pytest session loads.
    if getattr(sys.modules.get("pytest_durably"), "open_sessions", 0) > 0:
        return True
    # Django's own test runner, whatever started it: setup_test_environment() makes the outbox.
    if hasattr(sys.modules.get("django.core.mail"), "outbox"):
        return True
    main = getattr(sys.modules.get("__main__"), "__spec__", None)
    return is_test_program(getattr(main, "name", None), sys.argv)


def is_test_program(main_module: str | None, arguments: Sequence[str]) -> bool:
    """Whether a program with this ``__main__`` module (``None`` for a script) and ``sys.argv`` runs tests."""
    script = PurePath(arguments[0]).name.removesuffix(".exe") if arguments else ""
    if main_module in _TEST_MODULES or script in _TEST_SCRIPTS:
        return True
    is_django = main_module == "django.__main__" or script in _DJANGO_SCRIPTS
    return is_django and list(arguments[1:2]) == ["test"]
