"""Options that several commands share, and the types of their values.

Keys belong in the environment: options appear in lists of processes.
"""

import datetime as dt
import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import click
from click.core import ParameterSource

from durably.engines import TEMPORAL_SCHEME, parse_temporal_url
from durably.errors import Error
from durably.protocol.call import TooDeepError, check_nesting
from durably.protocol.durations import DurationInvalidError, parse_duration, parse_rfc3339
from durably.protocol.events import DEFAULT_PORT
from durably.protocol.limits import MAX_DEPTH, MAX_STEPS
from durably.protocol.signatures import check_signing_key
from durably.settings import (
    DEV,
    DEV_ORIGIN,
    ENGINE_URL,
    EVENT_KEY,
    SIGNING_KEY,
    SIGNING_KEY_FALLBACK,
    Environment,
    Setting,
    parse_origin,
    parse_url,
)

from .text import CliError

if TYPE_CHECKING:
    from .client import EngineClient

T = TypeVar("T")
Command = Callable[..., Any]
Decorator = Callable[[Command], Command]

# -- types of values


def option_type(parse: Callable[[str], T]) -> Callable[[str], T]:
    """The ``type`` of an option, which errors of ``parse`` name."""

    def convert(text: str) -> T:
        try:
            return parse(text)
        except (Error, ValueError) as error:
            raise click.BadParameter(str(error)) from None

    return convert


APP_URL = option_type(functools.partial(parse_url, setting="it"))


@option_type
def read_age(text: str) -> dt.timedelta:
    """A duration."""
    duration = parse_duration(text)
    if not duration:
        raise ValueError("it must be longer than 0")
    return duration


@option_type
def read_time(text: str) -> dt.datetime:
    """A time in RFC 3339, or a duration before now."""
    try:
        return parse_rfc3339(text) or dt.datetime.now(dt.UTC) - parse_duration(text)
    except (DurationInvalidError, OverflowError):
        raise ValueError(f"{text!r} is neither a time like 2026-01-31T12:00:00Z nor a duration like 2h") from None


@option_type
def read_host(text: str) -> str:
    """An address to listen at. A server whose host is blank would listen at all addresses."""
    if not text.strip():
        raise ValueError("it must be an address of this machine, such as 127.0.0.1; 0.0.0.0 is all of them")
    return text


@option_type
def _engine_url(url: str) -> str:
    url = _parse_engine_url(url, "it")
    if "@" in urlsplit(url).netloc:
        raise ValueError("it must not hold a user name or password; the engine's keys are given by their options")
    return url


def _parse_engine_url(url: str, setting: str) -> str:
    if not url.startswith(TEMPORAL_SCHEME):
        return parse_origin(url, setting)
    parse_temporal_url(url, setting)
    return url


def _default_engine_url() -> str:
    """The engine of the environment, as SDKs find it, or a dev engine on this machine.

    Raises ``URLInvalidError``, which names the variable.
    """
    environment = Environment()
    for setting, url in ((ENGINE_URL, environment.read(ENGINE_URL)), (DEV, environment.dev_url)):
        if url:
            return _parse_engine_url(url, environment.name_of(setting))
    return DEV_ORIGIN


def read_json(text: str | None, shape: type[T], option: str = "--data") -> T:
    """The JSON value of an option, of the type ``shape``; ``shape()`` without ``text``.

    ``text`` is JSON, ``@file``, or ``-`` for stdin.
    """
    if text is None:
        return shape()
    source, content = option, text
    if text == "-":
        source, content = "the JSON on stdin", sys.stdin.read()
    elif text.startswith("@"):
        source = text[1:]
        try:
            content = Path(source).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CliError(f"cannot read {source}: {error}") from None
    try:
        check_nesting(content.encode(errors="replace"))
        data = json.loads(content)
        json.dumps(data, allow_nan=False)  # Python reads NaN, and 1e999 as infinity, which JSON does not have.
    except (TooDeepError, RecursionError):
        raise CliError(f"{source} is nested too deeply") from None
    except ValueError as error:
        raise CliError(f"{source} is not valid JSON: {error}") from None
    if not isinstance(data, shape):
        example = "array like '[1]'" if shape is list else "object like '{\"id\": 1}'"
        raise CliError(f"{source} must be a JSON {example}, not {type(data).__name__}")
    return data


# -- options


def options(*decorators: Decorator) -> Decorator:
    """One decorator that adds the options of several, in their order in the help."""
    return lambda command: functools.reduce(lambda each, decorate: decorate(each), reversed(decorators), command)


def json_option(what: str) -> Decorator:
    """The option ``as_json``. ``what`` completes the sentence "Print JSON: …".

    Commands print values with ``echo_json``, and each value of a stream with ``echo_json_line``.
    """
    return click.option("--json", "as_json", is_flag=True, help=f"Print JSON: {what}.")


def setting_option(
    *declarations: str, setting: Setting[str], help: str, read: Callable[[str], Any] = str, **others: Any
) -> Decorator:
    """An option whose default is a setting of the environment.

    ``read`` converts the setting's text.
    """

    def default() -> Any:
        text = Environment().read(setting)
        return None if text is None else read(text)

    names = " or ".join(setting.names)
    return click.option(*declarations, default=default, help=f"{help}  [env var: {names}]", metavar="KEY", **others)


def _check_signing_key(_: click.Context, option: click.Parameter, key: str | None) -> str | None:
    check_signing_key(key, option.opts[0])
    return key


signing_key_options = options(
    setting_option("--signing-key", setting=SIGNING_KEY, callback=_check_signing_key, help="The engine's signing key."),
    setting_option(
        "--signing-key-fallback",
        setting=SIGNING_KEY_FALLBACK,
        callback=_check_signing_key,
        help="The key before a rotation, accepted too.",
    ),
)
"""``signing_key`` and ``signing_key_fallback``."""


def client_options(command: Command) -> Command:
    """Add the options of a client, and call the command with an ``EngineClient``."""

    @options(
        click.option(
            "--url",
            default=_default_engine_url,
            type=_engine_url,
            metavar="URL",
            help=f"The engine to connect to: its origin, or {TEMPORAL_SCHEME}HOST:PORT[/NAMESPACE] for one on a "
            f"Temporal server, with TLS, API key and encryption from variables whose names begin with TEMPORAL.  "
            f"[env var: {ENGINE_URL.name}, {DEV.name}; default: {DEV_ORIGIN}]",
        ),
        click.option(
            "--db",
            "database",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            metavar="PATH",
            help="Connect to the engine in an app's own processes, by the path of its Embedded(…), instead of to "
            "--url.",
        ),
        signing_key_options,
        setting_option("--event-key", setting=EVENT_KEY, help="One of its event keys."),
    )
    @functools.wraps(command)
    def with_client(
        *,
        url: str,
        database: Path | None,
        signing_key: str | None,
        signing_key_fallback: str | None,
        event_key: str | None,
        **others: Any,
    ) -> Any:
        if database is None and url.startswith(TEMPORAL_SCHEME):
            return command(client=_temporal_client(url), **others)
        from .client import HttpClient

        keys = [key for key in (signing_key, signing_key_fallback) if key]
        is_development = not keys and Environment().read(ENGINE_URL) is None
        client = HttpClient(
            url, signing_keys=keys, event_key=event_key, database=database, is_development=is_development
        )
        return command(client=client, **others)

    return with_client


def require_temporal() -> None:
    """Raises ``CliError``, which names the extra, if ``temporalio`` is not installed."""
    try:
        import durably.temporal  # noqa: F401
    except ImportError as error:
        raise CliError(str(error)) from error


def _temporal_client(url: str) -> "EngineClient":
    """Raises ``CliError`` for keys of the command line, which have no effect."""
    context = click.get_current_context()
    for name in ("signing_key", "signing_key_fallback", "event_key"):
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise CliError(
                f"--{name.replace('_', '-')} has no effect on a Temporal server, which has an API key and TLS: set "
                "TEMPORAL_API_KEY and the variables TEMPORAL_TLS_…"
            )
    require_temporal()
    from .temporal_client import TemporalClient

    return TemporalClient(url)


database_option = click.option(
    "--db",
    "database",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="PATH",
    help="The database: the --db of an engine, the path of an Embedded(…), or .durably/dev.db.",
)
"""``database``, for commands that read the file themselves, with or without a running engine."""


def log_format_option(default: str) -> Decorator:
    return click.option(
        "--log-format",
        type=click.Choice(["json", "text"]),
        default=default,
        show_default=True,
        envvar="DURABLY_LOG_FORMAT",
        show_envvar=True,
        help="The form of the log: JSON objects, or text for people.",
    )


def server_options(*, poll_interval: float, allow_private_addresses: bool, log_format: str) -> Decorator:
    """Options of an engine's server, with defaults that differ in development and production."""
    return options(
        click.option(
            "--host",
            default="127.0.0.1",
            show_default=True,
            type=read_host,
            metavar="ADDRESS",
            help="Address that the engine listens at.",
        ),
        click.option(
            "--port",
            default=DEFAULT_PORT,
            show_default=True,
            type=click.IntRange(0, 65535),
            help="Port of the engine; 0 takes a free one.",
        ),
        click.option(
            "-u",
            "--app-url",
            "urls",
            multiple=True,
            type=APP_URL,
            metavar="URL",
            help="An app to sync with. May be repeated.",
        ),
        click.option(
            "--poll-interval",
            default=poll_interval,
            show_default=True,
            type=click.FloatRange(0),
            metavar="SECONDS",
            help="How often to sync with the apps of -u; 0 means once.",
        ),
        click.option(
            "--max-connections",
            default=1000,
            show_default=True,
            type=click.IntRange(1),
            help="Connections to the engine at a time; further ones wait. At most half of `ulimit -n`.",
        ),
        click.option(
            "--allow-private-addresses/--no-allow-private-addresses",
            default=allow_private_addresses,
            show_default=True,
            help="Let step.fetch and step.ai.infer reach this machine and private networks.",
        ),
        click.option(
            "--max-steps",
            default=MAX_STEPS,
            show_default=True,
            type=click.IntRange(1),
            metavar="N",
            help="The most steps that a run may have. A run that asks for more fails.",
        ),
        click.option(
            "--max-depth",
            default=MAX_DEPTH,
            show_default=True,
            type=click.IntRange(1),
            metavar="N",
            help="How deep functions may invoke each other; ten times as many runs may start each other in an hour.",
        ),
        log_format_option(log_format),
        click.option(
            "--otel",
            is_flag=True,
            envvar="DURABLY_OTEL",
            show_envvar=True,
            help="Export spans of events, runs and calls by OpenTelemetry, whose own variables configure this, such as "
            "OTEL_EXPORTER_OTLP_ENDPOINT.",
        ),
    )
