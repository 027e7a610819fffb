"""Settings: constructor arguments first, then the environment, then defaults.

Only this module reads ``os.environ``. ``SETTINGS`` declares each variable once. The reader, the error for two names
with different values, the command line's help and ``docs/reference/settings.md`` use it.
"""

import logging
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from ipaddress import ip_address
from pathlib import PurePath
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

from durably.protocol.events import DEFAULT_PORT
from durably.protocol.headers import ServerKind
from durably.protocol.signatures import check_signing_key, is_short_signing_key
from durably.protocol.text import FALSE_WORDS, TRUE_WORDS, parse_switch, redact_url, show_url

from .errors import FunctionConfigInvalidError, SettingConflictError, URLInvalidError

DEV_ORIGIN = f"http://127.0.0.1:{DEFAULT_PORT}"
DEFAULT_SERVE_PATH = "/api/inngest"

T = TypeVar("T")

PREFIX = "DURABLY_"
_OFF = "0"
_PATH = re.compile(r"""[^\s?#\\<>{}"']+""")
_HOST_AND_PORT = re.compile(r"localhost|[^\s/@:]+:[0-9]+/?|\[[0-9a-fA-F:.]+\]:[0-9]+/?")
_TEST_MODULES = (
    "pytest",
    "pytest.__main__",
    "unittest.__main__",
    "tornado.testing",
    "nose2.__main__",
    "twisted.trial",
)
"""Modules that run tests if they are the main program (``python -m unittest``)."""
_TEST_SCRIPTS = ("pytest", "py.test", "nose2", "trial")
_DJANGO_SCRIPTS = ("manage.py", "django-admin", "django-admin.py")
_BRANCH_VARIABLES = ("VERCEL_GIT_COMMIT_REF", "RENDER_GIT_BRANCH", "RAILWAY_GIT_BRANCH")


class Streaming(Enum):
    """Whether answers to calls are streamed.

    A stream has spaces that keep the connection alive, then the answer.
    """

    DISABLE = "disable"
    FORCE = "force"


class Setting(Generic[T]):
    """A variable of the environment.

    - ``name``: Its name, ``DURABLY_…``.
    - ``inngest``: Its name in the official SDKs, which is read too.
    - ``parse``: Converts its string, given its name. Raises ``FunctionConfigInvalidError``.
    - ``argument``: The argument that overrides it.
    - ``meaning``: For the documentation.
    """

    def __init__(
        self, name: str, parse: Callable[[str, str], T], argument: str, meaning: str, inngest: str | None = None
    ) -> None:
        self.name = PREFIX + name
        self.inngest = f"INNGEST_{inngest or name}"
        self.names = (self.name, self.inngest)
        self.parse = parse
        self.argument = argument
        self.meaning = meaning


# -- parsers


def _text(text: str, name: str) -> str:
    return text


def _signing_key(text: str, name: str) -> str:
    check_signing_key(text, name)
    return text


def _dev(text: str, name: str) -> str:
    """Read ``"1"``, ``"0"`` or the engine's URL.

    Development mode accepts unsigned calls, so no other value may enable it.
    """
    if (is_on := parse_switch(text)) is not None:
        return "1" if is_on else _OFF
    if "://" not in text and not _HOST_AND_PORT.fullmatch(text):
        raise FunctionConfigInvalidError(
            f"{name} must be 1 (development), 0 (production) or the development engine's URL, not {text!r}"
        )
    return parse_origin(text, name)


def _switch(text: str, name: str) -> bool:
    if (is_on := parse_switch(text)) is None:
        raise FunctionConfigInvalidError(
            f"{name} must be 1 ({', '.join(TRUE_WORDS[1:])}) or 0 ({', '.join(FALSE_WORDS[1:])}), not {text!r}"
        )
    return is_on


def _log_level(text: str, name: str) -> int:
    levels = logging.getLevelNamesMapping()
    level = levels.get(text.upper())
    if level is None:
        raise FunctionConfigInvalidError(f"{name} must be one of {', '.join(levels)}, not {text!r}")
    return level


def _streaming(text: str, name: str) -> Streaming:
    if text.lower() == "allow":  # other SDKs of the protocol accept these too
        return Streaming.FORCE
    try:
        return Streaming(text.lower())
    except ValueError:
        raise FunctionConfigInvalidError(f'{name} must be "force" or "disable", not {text!r}') from None


def _thread_count(text: str, name: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise FunctionConfigInvalidError(f"{name} must be a number of threads (0 for no pool), not {text!r}")
    return int(text)


def check_serve_path(text: str, name: str) -> str:
    """A URL's path, with or without its leading slash.

    Raises ``FunctionConfigInvalidError``.
    """
    if "://" in text or text.startswith("//") or not (_PATH.fullmatch(text) and text.isprintable()):
        raise FunctionConfigInvalidError(
            f"{name} must be a path like {DEFAULT_SERVE_PATH}, without host, query, fragment and spaces, not "
            f"{show_url(text)!r}"
        )
    return text


# -- the settings

DEV = Setting(
    "DEV",
    _dev,
    "`Client(is_production=…)`",
    f"`1` or the engine's URL: development mode, with the engine there or at `{DEV_ORIGIN}`; `0` or unset: production",
)
ENGINE_URL = Setting(
    "ENGINE_URL", _text, "`Client(engine=…)`", "the URL of the engine. Production has no default", "BASE_URL"
)
SIGNING_KEY = Setting(
    "SIGNING_KEY",
    _signing_key,
    "`Client(signing_key=…)`",
    "signs and verifies calls and syncs. Production needs it",
)
SIGNING_KEY_FALLBACK = Setting(
    "SIGNING_KEY_FALLBACK", _signing_key, "", "a second key that is accepted, while keys are rotated"
)
EVENT_KEY = Setting(
    "EVENT_KEY", _text, "`Client(event_key=…)`", "lets the app send events. Production needs it to send"
)
SERVE_ORIGIN = Setting(
    "SERVE_ORIGIN", _text, "`serve(serve_origin=…)`", "the origin under which the engine reaches the app"
)
SERVE_PATH = Setting(
    "SERVE_PATH",
    check_serve_path,
    "`serve(serve_path=…)`",
    f"the path of the endpoint; unset: `{DEFAULT_SERVE_PATH}`",
)
ENV = Setting(
    "ENV",
    _text,
    "`Client(env=…)`",
    "the environment's name; unset: the branch that Vercel, Render or Railway name",
)
STREAMING = Setting(
    "STREAMING",
    _streaming,
    "`serve(streaming=…)`",
    "`force` or `disable`: send spaces every three seconds while a call runs",
)
THREAD_POOL_MAX_WORKERS = Setting(
    "THREAD_POOL_MAX_WORKERS",
    _thread_count,
    "",
    "threads for sync functions under async servers, and for [sync handlers of async functions]"
    "(steps.md#where-handlers-run); default: the number of CPUs plus 4, at most 32; `0`: none, they run on the event "
    "loop (in-process mode: the default)",
)
ALLOW_IN_BAND_SYNC = Setting(
    "ALLOW_IN_BAND_SYNC", _switch, "", "`0`: answer every sync by a request of the app's own to its engine"
)
ENABLE_UNAUTHED_SYNC = Setting(
    "ENABLE_UNAUTHED_SYNC",
    _switch,
    "`serve(enable_unauthed_sync=…)`",
    "`0`: refuse every sync that is not signed",
)
LOG_LEVEL = Setting(
    "LOG_LEVEL",
    _log_level,
    "`Client(logger=…)`",
    "level of the logger `durably`: `debug`, `info`, `warning`, `error` or `critical`",
)
STRICT_REPLAY = Setting(
    "STRICT_REPLAY",
    _switch,
    "`Client(strict_replay=…)`",
    "`1`: a run fails if its function [no longer reaches](../how-to/change-functions.md) a step that the run has "
    "finished",
)
SEND_STEP_INPUT = Setting(
    "SEND_STEP_INPUT",
    _switch,
    "`Client(send_step_input=…)`",
    "`0`: the arguments of steps stay in the app; see [steps](steps.md#arguments)",
)
API_BASE_URL = Setting(
    "API_BASE_URL",
    _text,
    "`Client(api_base_url=…)`",
    "the URL of the engine's API, if it is not the one for events",
)
EVENT_API_BASE_URL = Setting(
    "EVENT_API_BASE_URL",
    _text,
    "`Client(event_api_base_url=…)`",
    "the URL that events are sent to, if it is not the one of the API",
)

DASHBOARD_KEY = "DURABLY_DASHBOARD_KEY"
DASHBOARD_VIEWER_KEY = "DURABLY_DASHBOARD_VIEWER_KEY"
SETTINGS: tuple[Setting[Any], ...] = tuple(value for value in vars().copy().values() if isinstance(value, Setting))
"""The settings, in the order of the documentation."""

_ENGINE_CHOICE = (DEV, ENGINE_URL, API_BASE_URL, EVENT_API_BASE_URL)


class Environment:
    """The settings of the environment, read on access.

    Properties raise ``SettingConflictError`` for a setting whose two names have different values, and
    ``FunctionConfigInvalidError`` for an invalid value.
    """

    def __init__(self, variables: Mapping[str, str] | None = None) -> None:
        self._variables = os.environ if variables is None else variables

    def _get(self, name: str) -> str | None:
        value = self._variables.get(name, "").strip()
        return value or None

    def read(self, setting: Setting[T]) -> T | None:
        """The setting's value; an empty variable counts as unset."""
        values = {name: setting.parse(text, name) for name in setting.names if (text := self._get(name)) is not None}
        ours, theirs = values.get(setting.name), values.get(setting.inngest)
        if len(values) == 2 and ours != theirs:
            raise SettingConflictError(*setting.names)
        return theirs if ours is None else ours

    def name_of(self, setting: Setting[Any]) -> str:
        """The name under which a setting is set, for errors."""
        return next((name for name in setting.names if self._get(name) is not None), setting.name)

    @property
    def mode(self) -> ServerKind:
        return ServerKind.CLOUD if self.read(DEV) in (None, _OFF) else ServerKind.DEV

    @property
    def name(self) -> str | None:
        """The environment, such as a branch, that an engine separates from others."""
        return self.read(ENV) or next((value for name in _BRANCH_VARIABLES if (value := self._get(name))), None)

    @property
    def is_flask_debug(self) -> bool:
        return (self._get("FLASK_DEBUG") or "").lower() not in ("", "0", "false", "no")

    @property
    def is_reloaded(self) -> bool:
        """Whether this process serves under Werkzeug's or Django's reloader.

        The reloader runs in the parent.
        """
        return "true" in (self._get("WERKZEUG_RUN_MAIN"), self._get("RUN_MAIN"))

    @property
    def log_url(self) -> str | None:
        """The URL of the commit log of an engine in the app's own processes, without an argument."""
        return self._get("DURABLY_LOG")

    @property
    def notify_socket(self) -> str | None:
        """The socket at which systemd receives a service's state."""
        return self._get("NOTIFY_SOCKET")

    @property
    def dev_url(self) -> str | None:
        """The development engine's URL, if ``DURABLY_DEV`` is one."""
        dev = self.read(DEV)
        return None if dev in (None, "1", _OFF) else dev


def development_variables(engine_origin: str) -> dict[str, str]:
    """Variables for an app that uses only the development engine at ``engine_origin``.

    Both names are set, because the app may use another SDK. Other variables that choose an engine are emptied instead
    of removed, because a ``.env`` file that the app loads does not replace variables that are set.
    """
    emptied = dict.fromkeys((name for setting in _ENGINE_CHOICE for name in setting.names), "")
    return emptied | dict.fromkeys(DEV.names, engine_origin)


_warned: set[str] = set()
_warned_apps: set[str] = set()


def warn_of_unused_signing_key(app_id: str, logger: logging.Logger | logging.LoggerAdapter[Any]) -> None:
    """Warn that an app in development mode has a signing key.

    The warning is given once per process and app. An app that was meant for production would accept unsigned calls. A
    URL in ``DURABLY_DEV`` names a development engine, as ``durably dev`` does, and is not a mistake.
    """
    environment = Environment()
    if environment.dev_url is not None or app_id in _warned_apps:
        return
    _warned_apps.add(app_id)
    cause = f"{environment.name_of(DEV)} is on" if environment.read(DEV) == "1" else "is_production=False"
    logger.warning(
        "app %r is in development mode (%s) although it has a signing key: it runs unsigned calls. In "
        "production unset %s and is_production; in development unset the key",
        app_id,
        cause,
        DEV.name,
    )


def warn_of_short_signing_keys(keys: Sequence[str | None], logger: logging.Logger | logging.LoggerAdapter[Any]) -> None:
    """Warn of signing keys that could be guessed, once per process."""
    if any(map(is_short_signing_key, keys)) and SIGNING_KEY.name not in _warned:
        _warned.add(SIGNING_KEY.name)
        logger.warning(
            "a signing key (%s) is so short that it could be guessed from a signature: make one with `durably keys`",
            SIGNING_KEY.name,
        )


def parse_origin(text: str, setting: str) -> str:
    """A base URL without trailing slash, query and fragment.

    Raises ``URLInvalidError`` naming the setting.
    """
    url = parse_url(text, setting)
    if "?" in url or "#" in url:
        raise URLInvalidError(
            f"{setting} is a base URL, to which paths are appended, so it has no query or fragment: {redact_url(url)!r}"
        )
    return url.rstrip("/")


def parse_url(text: str, setting: str) -> str:
    """A URL with its scheme.

    A URL without a scheme is http on this machine, and refused for any other host. ``setting`` is its source: a
    setting, an argument or an option. Raises ``URLInvalidError`` naming the setting.
    """
    text = text.strip()
    url = text if "://" in text else f"http://{text}"
    try:
        parts = urlsplit(url)
        is_valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        is_valid = is_valid and parts.netloc.isprintable() and " " not in parts.netloc
    except ValueError:  # a bracket that is not closed, a port that is not a number
        is_valid = False
    if not is_valid:
        raise URLInvalidError(
            f"{setting} is not a valid URL: {show_url(text)!r}; write it like https://host.example.com or "
            "http://127.0.0.1:8000"
        )
    if "://" not in text and not is_local(urlsplit(url).hostname or ""):
        rest = redact_url(url).removeprefix("http://").rstrip("/")
        raise URLInvalidError(f"{setting} has no scheme; write https://{rest} or http://{rest}")
    return url


def is_local(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def is_test_run() -> bool:
    """Whether this process runs tests.

    Test runs are those of pytest and its pytest-xdist workers, ``manage.py test`` and ``python -m unittest``. A child
    that a test run forks, or starts with ``multiprocessing``, is part of the test run. A program that a test starts is
    not: a server in a subprocess is a server. Therefore this function reads no environment variables, which such
    programs inherit (``PYTEST_CURRENT_TEST``).
    """
    # Set by Durably's pytest plugin, which each process of a pytest session loads.
    if getattr(sys.modules.get("pytest_durably"), "open_sessions", 0) > 0:
        return True
    # Django's test runner, however it was started: setup_test_environment() creates the outbox.
    if hasattr(sys.modules.get("django.core.mail"), "outbox"):
        return True
    main = getattr(sys.modules.get("__main__"), "__spec__", None)
    return is_test_program(getattr(main, "name", None), sys.argv)


def is_test_program(main_module: str | None, arguments: Sequence[str]) -> bool:
    """Whether a program runs tests, by its ``__main__`` module and ``sys.argv``.

    ``main_module`` is ``None`` for a script.
    """
    script = PurePath(arguments[0]).name.removesuffix(".exe") if arguments else ""
    if main_module in _TEST_MODULES or script in _TEST_SCRIPTS:
        return True
    is_django = main_module == "django.__main__" or script in _DJANGO_SCRIPTS
    return is_django and list(arguments[1:2]) == ["test"]
