"""``deployment`` as a click group, which ``durably temporal``, Flask's and Django's command lines have in common.

The names are those of ``temporal worker deployment``. The deployment and the build id are those of the settings unless
given. Exit code 2: the server refuses, or cannot be reached.
"""

import asyncio
import datetime as dt
import json
from collections.abc import Callable, Coroutine
from dataclasses import asdict
from typing import Any, TypeVar

import click
from temporalio.client import Client

from durably.errors import Error
from durably.protocol.text import printable, printable_json

from .command_line import CouldNotRunError, with_target
from .connection import Temporal
from .deployments import (
    Deployment,
    VersionStatus,
    delete_version,
    describe_deployment,
    list_deployments,
    set_current_version,
    set_ramping_version,
    wait_until_drained,
)
from .settings import with_own_names

Load = Callable[..., Temporal]
UNVERSIONED = "workers without versions"
_NO_NAME = "which deployment? Give --deployment-name, or set TEMPORAL_DEPLOYMENT_NAME"
_NO_BUILD_ID = "which version? Give --build-id, or set TEMPORAL_WORKER_BUILD_ID"
_DEFAULT_WAIT = 30.0
_DEFAULT_DRAIN = 3600.0

_deployment_option = click.option(
    "--deployment-name", "name", metavar="NAME", help="The deployment.  [default: TEMPORAL_DEPLOYMENT_NAME]"
)
_build_option = click.option(
    "--build-id", metavar="ID", help="The version's build id.  [default: TEMPORAL_WORKER_BUILD_ID]"
)
_unversioned_option = click.option("--unversioned", is_flag=True, help="Workers without a version, not --build-id.")
_wait_option = click.option(
    "--wait",
    default=_DEFAULT_WAIT,
    show_default=True,
    type=click.FloatRange(0),
    metavar="SECONDS",
    help="How long the server may take to notice the version's workers.",
)
_missing_option = click.option(
    "--ignore-missing-task-queues", is_flag=True, help="Even if the version lacks a task queue of the current one."
)
_pollers_option = click.option("--allow-no-pollers", is_flag=True, help="Even if the version has no workers.")


def make_deployment_group(load: Load, *, target: str | None = None) -> click.Group:
    """``load`` gives the connection; it gets the argument ``target`` if there is one, shown as that text."""

    @click.group("deployment", help="Worker versions: which one is current, which one is ramping, which are drained.")
    def group() -> None:
        pass

    for make in (_describe, _list, _set_current, _set_ramping, _wait_until_drained, _delete_version):
        group.add_command(with_target(make(load), target))
    return group


def _describe(load: Load) -> click.Command:
    @click.command("describe")
    @_deployment_option
    @click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
    def command(name: str | None, as_json: bool, **target: str) -> None:
        """Show a deployment: the current version, the ramping one, and the status of each."""
        temporal = _loaded(load, target)
        chosen = _name(temporal, name)
        found = _run(temporal, lambda client: describe_deployment(client, chosen))
        if as_json:
            click.echo(printable_json(json.dumps(asdict(found), default=dt.datetime.isoformat, indent=2)))
            return
        for line in describe(found):
            _say(line)

    return command


def describe(found: Deployment) -> list[str]:
    """A line for the deployment, and one for each version."""
    ramping = f", ramping {found.ramping} ({found.percentage:g} %)" if found.ramping or found.percentage else ""
    lines = [f"{found.name}: current {found.current or UNVERSIONED}{ramping}"]
    return [*lines, *(f"  {each.build_id}: {each.status}" for each in found.versions)]


def _list(load: Load) -> click.Command:
    @click.command("list")
    def command(**target: str) -> None:
        """List the deployments of the namespace."""
        for name in _run(_loaded(load, target), list_deployments) or ["there are no deployments"]:
            _say(name)

    return command


def _set_current(load: Load) -> click.Command:
    @click.command("set-current-version")
    @_deployment_option
    @_build_option
    @_unversioned_option
    @_missing_option
    @_pollers_option
    @_wait_option
    def command(name: str | None, build_id: str | None, unversioned: bool, wait: float, **options: Any) -> None:
        """Give new workflows to a version, and running ones that upgrade themselves. A ramp of that version ends."""
        temporal = _loaded(load, options)
        chosen, build = _name(temporal, name), _build(temporal, build_id, unversioned)
        seconds = dt.timedelta(seconds=wait)
        previous = _run(
            temporal, lambda client: set_current_version(client, chosen, build, wait=seconds, **_flags(options))
        )
        _say(f"{chosen}: current {build or UNVERSIONED}, before {previous or UNVERSIONED}")

    return command


def _set_ramping(load: Load) -> click.Command:
    @click.command("set-ramping-version")
    @_deployment_option
    @_build_option
    @_unversioned_option
    @click.option("--percentage", type=click.FloatRange(0, 100), metavar="PERCENT", help="Of new workflows, 0 to 100.")
    @click.option("--delete", is_flag=True, help="End the ramp: all new workflows go to the current version.")
    @_missing_option
    @_pollers_option
    @_wait_option
    def command(
        name: str | None,
        build_id: str | None,
        unversioned: bool,
        percentage: float | None,
        delete: bool,
        wait: float,
        **options: Any,
    ) -> None:
        """Give a share of new workflows to a version, and of running ones that upgrade themselves."""
        if delete == (percentage is not None):
            raise click.UsageError("say how much, --percentage 10, or end the ramp with --delete")
        temporal = _loaded(load, options)
        chosen = _name(temporal, name)
        build = None if delete else _build(temporal, build_id, unversioned)
        seconds, share = dt.timedelta(seconds=wait), percentage or 0.0
        _run(
            temporal, lambda client: set_ramping_version(client, chosen, build, share, wait=seconds, **_flags(options))
        )
        words = "no ramping version" if delete else f"ramping {build or UNVERSIONED} ({share:g} %)"
        _say(f"{chosen}: {words}")

    return command


def _wait_until_drained(load: Load) -> click.Command:
    @click.command("wait-until-drained")
    @_deployment_option
    @_build_option
    @click.option("--timeout", default=_DEFAULT_DRAIN, show_default=True, type=click.FloatRange(0), metavar="SECONDS")
    def command(name: str | None, build_id: str | None, timeout: float, **target: str) -> None:
        """Wait until no workflow is pinned to a version, so that its workers may be stopped.

        The exit code is 1 if some still are at the end of the timeout.
        """
        temporal = _loaded(load, target)
        chosen, build = _name(temporal, name), _build(temporal, build_id, False)
        assert build is not None
        seconds = dt.timedelta(seconds=timeout)
        status = _run(temporal, lambda client: wait_until_drained(client, chosen, build, seconds))
        _say(f"{chosen}.{build}: {status}")
        if status in (VersionStatus.CURRENT, VersionStatus.RAMPING):
            raise CouldNotRunError("a version that gets new workflows is not drained: make another one current first")
        if status is VersionStatus.DRAINING:
            raise click.exceptions.Exit(1)

    return command


def _delete_version(load: Load) -> click.Command:
    @click.command("delete-version")
    @_deployment_option
    @click.option("--build-id", required=True, metavar="ID", help="The version's build id.")
    @click.option("--skip-drainage", is_flag=True, help="Even if workflows are pinned to it: they would stop.")
    def command(name: str | None, build_id: str, skip_drainage: bool, **target: str) -> None:
        """Forget a version that is drained and has no workers."""
        temporal = _loaded(load, target)
        chosen = _name(temporal, name)
        _run(temporal, lambda client: delete_version(client, chosen, build_id, skip_drainage=skip_drainage))
        _say(f"{chosen}.{build_id}: deleted")

    return command


def _flags(options: dict[str, Any]) -> dict[str, bool]:
    return {name: options[name] for name in ("ignore_missing_task_queues", "allow_no_pollers")}


def _loaded(load: Load, options: dict[str, Any]) -> Temporal:
    return load(**{name: value for name, value in options.items() if name == "target"})


def _name(temporal: Temporal, given: str | None) -> str:
    found = given or _settings(temporal, "deployment_name")
    if found is None:
        raise click.UsageError(with_own_names(_NO_NAME, temporal.settings))
    return found


def _build(temporal: Temporal, given: str | None, unversioned: bool) -> str | None:
    if unversioned:
        if given is not None:
            raise click.UsageError("--unversioned and --build-id exclude each other")
        return None
    found = given or _settings(temporal, "build_id")
    if found is None:
        raise click.UsageError(with_own_names(_NO_BUILD_ID, temporal.settings))
    return found


def _settings(temporal: Temporal, name: str) -> str | None:
    try:
        found: str | None = getattr(temporal.settings, name)
    except Error as error:
        raise CouldNotRunError(error.message) from error
    return found


Result = TypeVar("Result")


def _run(temporal: Temporal, ask: Callable[[Client], Coroutine[Any, Any, Result]]) -> Result:
    async def run() -> Result:
        return await ask(await temporal.client())

    try:
        return asyncio.run(run())
    except Error as error:
        raise CouldNotRunError(error.message) from error


def _say(line: str) -> None:
    click.echo(printable(line))
