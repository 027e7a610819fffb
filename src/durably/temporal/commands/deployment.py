"""``deployment``: show and set the current version of workers.

The names are those of ``temporal worker deployment``. The settings give the default deployment and build id. The exit
code is 2 if the server refuses, or cannot be reached.
"""

import asyncio
import datetime as dt
import inspect
import json
from collections.abc import Callable, Coroutine
from dataclasses import asdict
from typing import Any, TypeVar

import click
from temporalio.client import Client

from durably.errors import Error
from durably.protocol.text import printable_json
from durably.temporal.client.connection import Temporal
from durably.temporal.settings import with_own_names
from durably.temporal.worker.deployments import (
    Deployment,
    VersionStatus,
    delete_version,
    describe_deployment,
    list_deployments,
    set_current_version,
    set_ramping_version,
    wait_until_drained,
)

from . import CouldNotRunError, json_option, print_line, with_target

Result = TypeVar("Result")

UNVERSIONED = "workers without versions"
_NO_NAME = "which deployment? Give --deployment-name, or set TEMPORAL_DEPLOYMENT_NAME"
_NO_BUILD_ID = "which version? Give --build-id, or set TEMPORAL_WORKER_BUILD_ID"
_DEFAULT_WAIT = 30.0
_DEFAULT_DRAIN = 3600.0

_NAME = click.Option(
    ["--deployment-name", "name"], metavar="NAME", help="The deployment.  [default: TEMPORAL_DEPLOYMENT_NAME]"
)
_BUILD_ID = click.Option(
    ["--build-id"], metavar="ID", help="The version's build id.  [default: TEMPORAL_WORKER_BUILD_ID]"
)
_DRAINED_BUILD_ID = click.Option(["--build-id"], required=True, metavar="ID", help="The version's build id.")
_UNVERSIONED = click.Option(["--unversioned"], is_flag=True, help="Workers without a version, not --build-id.")
_PERCENTAGE = click.Option(
    ["--percentage"], type=click.FloatRange(0, 100), metavar="PERCENT", help="Of new workflows, 0 to 100."
)
_DELETE = click.Option(["--delete"], is_flag=True, help="End the ramp: all new workflows go to the current version.")
_ROUTING = (
    click.Option(
        ["--ignore-missing-task-queues"],
        is_flag=True,
        help="Even if the version lacks a task queue of the current one.",
    ),
    click.Option(["--allow-no-pollers"], is_flag=True, help="Even if the version has no workers."),
    click.Option(
        ["--wait"],
        default=_DEFAULT_WAIT,
        show_default=True,
        type=click.FloatRange(0),
        metavar="SECONDS",
        help="Time for the server to notice the version's workers.",
    ),
)
_TIMEOUT = click.Option(
    ["--timeout"], default=_DEFAULT_DRAIN, show_default=True, type=click.FloatRange(0), metavar="SECONDS"
)
_SKIP_DRAINAGE = click.Option(["--skip-drainage"], is_flag=True, help="Even if workflows are pinned to it: they stop.")


def make_deployment_group(load: Callable[..., Temporal], *, target: str | None = None) -> click.Group:
    """The group ``deployment``.

    ``load`` returns the connection. If ``target`` is given, the command takes an argument with this metavar, and
    ``load`` gets it as ``target``.
    """

    def make(name: str, run: Callable[..., None], *options: click.Option) -> click.Command:
        def callback(**given: Any) -> None:
            temporal = load() if target is None else load(target=given.pop("target"))
            run(temporal, **given)

        words = inspect.getdoc(run)
        return with_target(click.Command(name, callback=callback, params=[*options, json_option()], help=words), target)

    return click.Group(
        "deployment",
        help="Worker versions: which one is current, which one is ramping, which are drained.",
        commands=[
            make("describe", _describe, _NAME),
            make("list", _list),
            make("set-current-version", _set_current, _NAME, _BUILD_ID, _UNVERSIONED, *_ROUTING),
            make("set-ramping-version", _ramp, _NAME, _BUILD_ID, _UNVERSIONED, _PERCENTAGE, _DELETE, *_ROUTING),
            make("wait-until-drained", _wait, _NAME, _BUILD_ID, _TIMEOUT),
            make("delete-version", _delete, _NAME, _DRAINED_BUILD_ID, _SKIP_DRAINAGE),
        ],
    )


def _describe(temporal: Temporal, name: str | None, as_json: bool) -> None:
    """Show a deployment: the current version, the ramping one, and the status of each."""
    chosen = _deployment_name(temporal, name)
    found = _run(temporal, lambda client: describe_deployment(client, chosen))
    if as_json:
        _echo_json(asdict(found))
        return
    for line in describe(found):
        print_line(line)


def _echo_json(document: object) -> None:
    click.echo(printable_json(json.dumps(document, default=dt.datetime.isoformat, indent=2)))


def _answer(as_json: bool, line: str, **document: object) -> None:
    """Print the result, as a line or as JSON."""
    if as_json:
        _echo_json(document)
    else:
        print_line(line)


def describe(found: Deployment) -> list[str]:
    """A line for the deployment, and one for each version."""
    ramping = f", ramping {found.ramping} ({found.percentage:g} %)" if found.ramping or found.percentage else ""
    lines = [f"{found.name}: current {found.current or UNVERSIONED}{ramping}"]
    return [*lines, *(f"  {each.build_id}: {each.status}" for each in found.versions)]


def _list(temporal: Temporal, as_json: bool) -> None:
    """List the deployments of the namespace."""
    found = _run(temporal, list_deployments)
    if as_json:
        _echo_json([*found])
        return
    for name in found or ["there are no deployments"]:
        print_line(name)


def _set_current(
    temporal: Temporal,
    name: str | None,
    build_id: str | None,
    unversioned: bool,
    wait: float,
    as_json: bool,
    **routing: bool,
) -> None:
    """Route new workflows to a version.

    Running workflows that upgrade themselves are routed to it too. A ramp of that version ends.
    """
    chosen, build = _deployment_name(temporal, name), _build_id(temporal, build_id, unversioned)
    seconds = dt.timedelta(seconds=wait)
    previous = _run(temporal, lambda client: set_current_version(client, chosen, build, wait=seconds, **routing))
    line = f"{chosen}: current {build or UNVERSIONED}, before {previous or UNVERSIONED}"
    _answer(as_json, line, name=chosen, current=build, previous=previous)


def _ramp(
    temporal: Temporal,
    name: str | None,
    build_id: str | None,
    unversioned: bool,
    percentage: float | None,
    delete: bool,
    wait: float,
    as_json: bool,
    **routing: bool,
) -> None:
    """Route a share of new workflows to a version.

    The same share of running workflows that upgrade themselves is routed to it too.
    """
    if delete == (percentage is not None):
        raise click.UsageError("give the share, such as --percentage 10, or end the ramp with --delete")
    chosen = _deployment_name(temporal, name)
    build = None if delete else _build_id(temporal, build_id, unversioned)
    seconds, share = dt.timedelta(seconds=wait), percentage or 0.0
    _run(temporal, lambda client: set_ramping_version(client, chosen, build, share, wait=seconds, **routing))
    words = "no ramping version" if delete else f"ramping {build or UNVERSIONED} ({share:g} %)"
    _answer(as_json, f"{chosen}: {words}", name=chosen, ramping=build, percentage=share)


def _wait(temporal: Temporal, name: str | None, build_id: str | None, timeout: float, as_json: bool) -> None:
    """Wait until no workflow is pinned to a version.

    Its workers may then be stopped. The exit code is 1 if workflows are still pinned at the timeout.
    """
    chosen, build = _deployment_name(temporal, name), _build_id(temporal, build_id, False)
    assert build is not None
    seconds = dt.timedelta(seconds=timeout)
    status = _run(temporal, lambda client: wait_until_drained(client, chosen, build, seconds))
    _answer(as_json, f"{chosen}.{build}: {status}", name=chosen, build_id=build, status=status)
    if status in (VersionStatus.CURRENT, VersionStatus.RAMPING):
        raise CouldNotRunError("a version that gets new workflows is not drained: make another one current first")
    if status is VersionStatus.DRAINING:
        raise click.exceptions.Exit(1)


def _delete(temporal: Temporal, name: str | None, build_id: str, skip_drainage: bool, as_json: bool) -> None:
    """Delete a version that is drained and has no workers."""
    chosen = _deployment_name(temporal, name)
    _run(temporal, lambda client: delete_version(client, chosen, build_id, skip_drainage=skip_drainage))
    _answer(as_json, f"{chosen}.{build_id}: deleted", name=chosen, deleted=build_id)


def _deployment_name(temporal: Temporal, given: str | None) -> str:
    found = given or _setting(temporal, "deployment_name")
    if found is None:
        raise click.UsageError(with_own_names(_NO_NAME, temporal.settings))
    return found


def _build_id(temporal: Temporal, given: str | None, unversioned: bool) -> str | None:
    if unversioned:
        if given is not None:
            raise click.UsageError("--unversioned and --build-id cannot be combined")
        return None
    found = given or _setting(temporal, "build_id")
    if found is None:
        raise click.UsageError(with_own_names(_NO_BUILD_ID, temporal.settings))
    return found


def _setting(temporal: Temporal, name: str) -> str | None:
    try:
        found: str | None = getattr(temporal.settings, name)
    except Error as error:
        raise CouldNotRunError(error.message) from error
    return found


def _run(temporal: Temporal, ask: Callable[[Client], Coroutine[Any, Any, Result]]) -> Result:
    async def run() -> Result:
        return await ask(await temporal.client())

    try:
        return asyncio.run(run())
    except Error as error:
        raise CouldNotRunError(error.message) from error
