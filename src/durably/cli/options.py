"""Options and arguments that several commands share.

Keys belong in the environment: options appear in lists of processes.
"""

import datetime as dt
import functools
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import click
from click.core import ParameterSource

from durably.engines import TEMPORAL_SCHEME, parse_temporal_url
from durably.errors import URLInvalidError
from durably.protocol.call import TooDeepError, check_nesting
from durably.protocol.durations import DurationInvalidError, parse_duration, parse_rfc3339
from durably.protocol.events import DEFAULT_PORT
from durably.protocol.limits import MAX_DEPTH, MAX_STEPS
from durably.protocol.signatures import check_signing_key
from durably.protocol.text import is_name
from durably.settings import (
    DASHBOARD_KEY,
    DASHBOARD_VIEWER_KEY,
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

from .text import CliError, echo, style

if TYPE_CHECKING:
    from .client import EngineClient

T = TypeVar("T")
_SHAPES: dict[type, str] = {dict: "a JSON object like '{\"id\": 1}'", list: "a JSON array like '[1]'"}


def read_data(text: str | None) -> dict[str, Any]:
    """The JSON object of ``--data``; empty without ``text``.

    ``text`` is JSON, ``@file``, or ``-`` for stdin.
    """
    return {} if text is None else read_json(text, "--data", dict)


def read_json(text: str, option: str, shape: type[T]) -> T:
    """The JSON value of an option, of the type ``shape``.

    ``text`` is JSON, ``@file``, or ``-`` for stdin.
    """
    source, content = option, text
    if text == "-":
        source, content = "the JSON on stdin", sys.stdin.read()
    elif text.startswith("@"):
        source = text[1:]
        try:
            with open(source, encoding="utf-8") as file:
                content = file.read()
        except (OSError, UnicodeDecodeError) as error:
            raise CliError(f"cannot read {source}: {error}") from None
    try:
        check_nesting(content.encode(errors="replace"))
        data = json.loads(content)
    except json.JSONDecodeError as error:
        raise CliError(f"{source} is not valid JSON: {error}") from None
    except (TooDeepError, RecursionError):
        raise CliError(f"{source} is nested too deeply") from None
    if not isinstance(data, shape):
        raise CliError(f"{source} must be {_SHAPES[shape]}, not {type(data).__name__}")
    return data


_ID_LENGTH = 26


def is_short_id(text: str) -> bool:
    """Whether the text may be the end of an id, as `durably dev` prints it."""
    return len(text) < _ID_LENGTH and text.isascii() and text.isalnum()


def echo_notes(client: "EngineClient") -> None:
    """Print notes on the lists of this kind of engine, beside the output."""
    for note in client.describe_engine_sync().notes:
        echo(style(note, dim=True), err=True)


def only_id(kind: str, text: str, found: Sequence[str]) -> str:
    """The only element of ``found``, ids that end with ``text``.

    ``kind`` is run or event. Raises ``CliError`` if there are none or several.
    """
    if not found:
        raise CliError(
            f"no {kind} has the id {text!r}, or an id that ends with it; `durably {kind}s list` lists {kind}s"
        )
    if len(found) > 1:
        ids = ", ".join(found)
        raise CliError(f"several {kind}s have ids that end with {text!r}: {ids}; give more characters of the id")
    return found[0]


Command = Callable[..., Any]


def json_option(what: str) -> Callable[[Command], Command]:
    """The option ``as_json``. ``what`` completes the sentence "Print JSON: …".

    Commands print values with ``echo_json``, and each value of a stream with ``echo_json_line``.
    """
    return click.option("--json", "as_json", is_flag=True, help=f"Print JSON: {what}.")


def engine_url() -> str:
    """The engine of the environment, as SDKs find it, or a dev engine on this machine.

    Raises ``URLInvalidError``, which names the variable.
    """
    environment = Environment()
    for setting, url in ((ENGINE_URL, environment.read(ENGINE_URL)), (DEV, environment.dev_url)):
        if url:
            name = environment.name_of(setting)
            return _checked_temporal_url(url, name) if url.startswith(TEMPORAL_SCHEME) else parse_origin(url, name)
    return DEV_ORIGIN


def _checked_temporal_url(url: str, setting: str) -> str:
    parse_temporal_url(url, setting)
    return url


def _check_engine_url(context: click.Context, parameter: click.Parameter, url: str) -> str:
    try:
        if url.startswith(TEMPORAL_SCHEME):
            return _checked_temporal_url(url, "it")
        url = parse_origin(url, "it")
    except URLInvalidError as error:
        raise click.BadParameter(error.message) from None
    if "@" in urlsplit(url).netloc:
        raise click.BadParameter(
            "it must not hold a user name or password; the engine's keys are given by their options"
        )
    return url


def read_app_url(context: click.Context, parameter: click.Parameter, url: str) -> str:
    """The callback of an argument that is an app's URL."""
    return _check_url(url)


def _check_app_urls(context: click.Context, parameter: click.Parameter, urls: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(_check_url(url) for url in urls)


def read_age(context: click.Context, parameter: click.Parameter, text: str | None) -> dt.timedelta | None:
    """The callback of options that are durations."""
    if text is None:
        return None
    try:
        age = parse_duration(text)
    except DurationInvalidError as error:
        raise click.BadParameter(error.message) from None
    if age <= dt.timedelta():
        raise click.BadParameter("it must be longer than 0")
    return age


def read_address(context: click.Context, parameter: click.Parameter, text: str | None) -> tuple[str, int] | None:
    """The callback of options that are a host and a port, such as ``[::1]:9464``."""
    if text is None:
        return None
    host, _, port = text.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    is_port = port.isascii() and port.isdigit() and int(port[:6]) <= 65535
    if not host or not is_port or (":" in host and f"[{host}]" not in text):
        raise click.BadParameter(f"it must be a host and a port like 127.0.0.1:9464, not {text!r}")
    return host, int(port)


def read_host(context: click.Context, parameter: click.Parameter, host: str) -> str:
    """The callback of ``--host``.

    A server whose host is blank would listen at all addresses.
    """
    if not is_name(host) or " " in host:
        raise click.BadParameter(
            f"it must be an address of this machine, such as 127.0.0.1, not {host!r}; 0.0.0.0 is all of them"
        )
    return host


def read_interval(context: click.Context, parameter: click.Parameter, seconds: float) -> float:
    """The callback of options that are seconds: neither infinite nor NaN."""
    if not math.isfinite(seconds):
        raise click.BadParameter(f"it must be a number of seconds, not {seconds}")
    return seconds


def read_web_address(context: click.Context, parameter: click.Parameter, url: str | None) -> str | None:
    """The callback of options that are the address of a page."""
    if not url:
        return None
    try:
        url = parse_url(url, "it")
    except URLInvalidError as error:
        raise click.BadParameter(error.message) from None
    if urlsplit(url).query or urlsplit(url).fragment:
        raise click.BadParameter("it must have no query (?…) and no fragment (#…)")
    return url


def read_names(context: click.Context, parameter: click.Parameter, names: tuple[str, ...]) -> tuple[str, ...]:
    """The callback of options that are ids or keys."""
    for name in names:
        if not is_name(name):
            raise click.BadParameter("it must not be blank, and must have printable characters only")
    return names


def read_allowed_hosts(context: click.Context, parameter: click.Parameter, hosts: tuple[str, ...]) -> tuple[str, ...]:
    """The callback of ``--allowed-host``: names and addresses."""
    from durably.engine.api.http.requests import check_allowed_host

    try:
        return tuple(check_allowed_host(host) for host in hosts)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _check_url(url: str) -> str:
    try:
        return parse_url(url, "it")
    except URLInvalidError as error:
        raise click.BadParameter(error.message) from None


def _check_text(options: dict[str, Any]) -> None:
    """Refuse bytes that are not UTF-8.

    They arrive as surrogates, which cannot be sent to the engine.
    """
    for name, value in options.items():
        if isinstance(value, str) and any("\ud800" <= c <= "\udfff" for c in value):
            raise click.UsageError(f"{name.replace('_', ' ')} is not encoded in UTF-8")


def read_time(context: click.Context, parameter: click.Parameter, text: str | None) -> dt.datetime | None:
    """The callback of options that are times: RFC 3339, or a duration before now."""
    if text is None:
        return None
    if time := parse_rfc3339(text):
        return time
    try:
        return dt.datetime.now(dt.UTC) - parse_duration(text)
    except (DurationInvalidError, OverflowError):
        raise click.BadParameter(
            f"{text!r} is neither a time like 2026-01-31T12:00:00Z nor a duration like 2h"
        ) from None


def setting_option(
    *declarations: str, setting: Setting[str], help: str, read: Callable[[str], Any] = str, **options: Any
) -> Callable[[Command], Command]:
    """An option whose default is a setting of the environment.

    ``read`` converts the setting's text.
    """

    def default() -> Any:
        text = Environment().read(setting)
        return None if text is None else read(text)

    names = " or ".join(setting.names)
    return click.option(*declarations, default=default, help=f"{help}  [env var: {names}]", **options)


def _check_signing_key(_: click.Context, option: click.Parameter, key: str | None) -> str | None:
    check_signing_key(key, option.opts[0])
    return key


def signing_key_options(command: Command) -> Command:
    """``signing_key`` and ``signing_key_fallback``."""
    for option in (
        setting_option(
            "--signing-key-fallback",
            setting=SIGNING_KEY_FALLBACK,
            metavar="KEY",
            callback=_check_signing_key,
            help="The key before a rotation, accepted too.",
        ),
        setting_option(
            "--signing-key",
            setting=SIGNING_KEY,
            metavar="KEY",
            callback=_check_signing_key,
            help="The engine's signing key.",
        ),
    ):
        command = option(command)
    return command


def client_options(command: Command) -> Command:
    """Add the options of a client, and call the command with an ``EngineClient``.

    The options describe the client.
    """

    @click.option(
        "--url",
        default=engine_url,
        callback=_check_engine_url,
        metavar="URL",
        help=f"The engine to connect to: its origin, or {TEMPORAL_SCHEME}HOST:PORT[/NAMESPACE] for one on a Temporal "
        f"server, with TLS, API key and encryption from variables whose names begin with TEMPORAL.  "
        f"[env var: {ENGINE_URL.name}, {DEV.name}; default: {DEV_ORIGIN}]",
    )
    @click.option(
        "--db",
        "database",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        metavar="PATH",
        help="Connect to the engine in an app's own processes, by the path of its Embedded(…), instead of to --url.",
    )
    @signing_key_options
    @setting_option("--event-key", setting=EVENT_KEY, metavar="KEY", help="One of its event keys.")
    @functools.wraps(command)
    def with_client(
        *,
        url: str,
        database: Path | None,
        signing_key: str | None,
        signing_key_fallback: str | None,
        event_key: str | None,
        **options: Any,
    ) -> Any:
        _check_text(options)
        if database is None and url.startswith(TEMPORAL_SCHEME):
            return command(client=_temporal_client(url), **options)
        from .client import HttpClient

        keys = [key for key in (signing_key, signing_key_fallback) if key]
        is_development = not keys and Environment().read(ENGINE_URL) is None
        client = HttpClient(
            url, signing_keys=keys, event_key=event_key, database=database, is_development=is_development
        )
        return command(client=client, **options)

    return with_client


_KEY_OPTIONS = ("signing_key", "signing_key_fallback", "event_key")


def require_temporal() -> None:
    """Raises ``CliError``, which names the extra, if ``temporalio`` is not installed."""
    try:
        import durably.temporal  # noqa: F401
    except ImportError as error:
        raise CliError(str(error)) from error


def _temporal_client(url: str) -> "EngineClient":
    """Raises ``CliError`` for keys of the command line, which have no effect."""
    context = click.get_current_context()
    for option in context.command.params:
        name = option.name or ""
        if name in _KEY_OPTIONS and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise CliError(
                f"{option.opts[0]} has no effect on a Temporal server, which has an API key and TLS: set "
                "TEMPORAL_API_KEY and the variables TEMPORAL_TLS_…"
            )
    require_temporal()
    from .temporal_client import TemporalClient

    return TemporalClient(url)


_OTLP_PROTOCOLS = ("OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
_OTLP_OVER_HTTP = "http/protobuf"


def open_tracing(is_on: bool) -> AbstractContextManager[Any]:
    """The engine's tracing for ``--otel``; a context of ``None`` without it.

    Raises ``CliError`` if the extra is not installed, or a variable asks for a protocol that it does not have.
    """
    if not is_on:
        return nullcontext()
    for name in _OTLP_PROTOCOLS:
        if (protocol := os.environ.get(name, _OTLP_OVER_HTTP)) != _OTLP_OVER_HTTP:
            raise CliError(f"--otel exports by {_OTLP_OVER_HTTP} only: {name} must not be {protocol!r}")
    try:
        from durably.otel.exporter import exporting
    except ModuleNotFoundError as error:
        raise CliError(f'--otel: {error.name} is not installed; it comes with pip install "durably[otel]"') from None
    return exporting()


def dashboard_options(command: Command) -> Command:
    """The keys of the dashboard, ``dashboard_key`` and ``dashboard_viewer_key``."""
    for option in (
        click.option(
            "--dashboard-viewer-key",
            envvar=DASHBOARD_VIEWER_KEY,
            show_envvar=True,
            metavar="KEY",
            help="Another key, for visitors who may see all and change nothing.",
        ),
        click.option(
            "--dashboard-key",
            envvar=DASHBOARD_KEY,
            show_envvar=True,
            metavar="KEY",
            help="Serve the dashboard at /, for visitors who enter this key as their password. Without it there is "
            "none.",
        ),
    ):
        command = option(command)
    return command


def database_option(command: Command) -> Command:
    """The option ``database``, for commands that read the file themselves.

    They do so with or without a running engine.
    """
    return click.option(
        "--db",
        "database",
        required=True,
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="PATH",
        help="The database: the --db of an engine, the path of an Embedded(…), or .durably/dev.db.",
    )(command)


def server_options(
    *, poll_interval: float, allow_private_addresses: bool, log_format: str
) -> Callable[[Command], Command]:
    """Options of an engine's server.

    They are ``host`` and ``port`` of the engine, ``urls`` of apps, the interval of their syncs, and limits.
    """
    options = (
        click.option(
            "--host",
            default="127.0.0.1",
            show_default=True,
            callback=read_host,
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
            callback=_check_app_urls,
            metavar="URL",
            help="An app to sync with. May be repeated.",
        ),
        click.option(
            "--poll-interval",
            default=poll_interval,
            show_default=True,
            type=click.FloatRange(0),
            callback=read_interval,
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
        click.option(
            "--log-format",
            type=click.Choice(["json", "text"]),
            default=log_format,
            show_default=True,
            envvar="DURABLY_LOG_FORMAT",
            show_envvar=True,
            help="The form of the log: JSON objects, or text for people.",
        ),
        click.option(
            "--otel",
            is_flag=True,
            envvar="DURABLY_OTEL",
            show_envvar=True,
            help="Export spans of events, runs and calls by OpenTelemetry, whose own variables configure this, such as "
            "OTEL_EXPORTER_OTLP_ENDPOINT.",
        ),
    )

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate
