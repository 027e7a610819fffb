"""Worker versioning.

The module has the version of the app's workers, and deployments with their versions on the server.

A version is a deployment and a build id. The server gives a worker with a version only the workflows of that version.
New workflows go to the deployment's current version, which ``durably temporal deployment set-current-version`` sets.
"""

import asyncio
import datetime as dt
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from temporalio.api.deployment.v1 import WorkerDeploymentInfo
from temporalio.api.deployment.v1 import WorkerDeploymentVersion as RawVersion
from temporalio.api.enums.v1 import WorkerDeploymentVersionStatus
from temporalio.api.workflowservice.v1 import (
    DeleteWorkerDeploymentVersionRequest,
    DescribeWorkerDeploymentRequest,
    ListWorkerDeploymentsRequest,
    SetWorkerDeploymentCurrentVersionRequest,
    SetWorkerDeploymentRampingVersionRequest,
)
from temporalio.client import Client
from temporalio.common import VersioningBehavior, WorkerDeploymentVersion
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import WorkerDeploymentConfig

from durably.errors import Error
from durably.temporal.errors import TemporalSettingsError
from durably.temporal.settings import ConnectionSettings, with_own_names

_BEHAVIORS = {
    "pinned": VersioningBehavior.PINNED,
    "auto-upgrade": VersioningBehavior.AUTO_UPGRADE,
}
"""``pinned``: a workflow stays on the version that began it. ``auto-upgrade``: it continues on the current version."""

_NAME, _BUILD_ID, _BEHAVIOR = "TEMPORAL_DEPLOYMENT_NAME", "TEMPORAL_WORKER_BUILD_ID", "TEMPORAL_VERSIONING_BEHAVIOR"


def worker_version(settings: ConnectionSettings) -> WorkerDeploymentConfig | None:
    """The version of the app's workers.

    ``None`` without a deployment and build id. Without a behavior, each workflow's decorator must give one.

    Raises ``TemporalSettingsError``.
    """
    try:
        return _worker_version(settings)
    except TemporalSettingsError as error:
        raise TemporalSettingsError(with_own_names(error.message, settings)) from None


def _worker_version(settings: ConnectionSettings) -> WorkerDeploymentConfig | None:
    name, build_id, behavior = settings.deployment_name, settings.build_id, settings.versioning_behavior
    if name is None and build_id is None:
        if behavior is not None:
            raise TemporalSettingsError(f"{_BEHAVIOR} has no effect without {_NAME} and {_BUILD_ID}: set both")
        return None
    if name is None or build_id is None:
        there, missing = (_BUILD_ID, _NAME) if name is None else (_NAME, _BUILD_ID)
        raise TemporalSettingsError(
            f"{there} is set, but {missing} is not: worker versioning needs both (in code: "
            "Temporal(deployment_name=…, build_id=…))"
        )
    if "." in name:
        raise TemporalSettingsError(f"{_NAME} is {name!r}, but the name of a deployment has no dots")
    chosen = VersioningBehavior.UNSPECIFIED
    if behavior is not None:
        found = _BEHAVIORS.get(behavior.lower().replace("_", "-"))
        if found is None:
            raise TemporalSettingsError(f"{_BEHAVIOR} is {behavior!r}; known are {', '.join(_BEHAVIORS)}")
        chosen = found
    return WorkerDeploymentConfig(
        version=WorkerDeploymentVersion(name, build_id), use_worker_versioning=True, default_versioning_behavior=chosen
    )


def describe_version(config: WorkerDeploymentConfig) -> str:
    """``shop.2026-01-31 (pinned)``."""
    behaviors = {value: name for name, value in _BEHAVIORS.items()}
    behavior = behaviors.get(config.default_versioning_behavior, "as each workflow says")
    return f"{config.version.to_canonical_string()} ({behavior})"


def explain_versioning(error: Exception) -> str | None:
    """The remedy, if the SDK says that a workflow has no versioning behavior."""
    if "versioning behavior" not in str(error).lower():
        return None
    return (
        f"{error} Set {_BEHAVIOR} (pinned or auto-upgrade) for all workflows, or give each its own: "
        "@workflow.defn(versioning_behavior=VersioningBehavior.PINNED)"
    )


_PAUSE = 0.5
_IN_PROGRESS = 1
"""``ROUTING_CONFIG_UPDATE_STATE_IN_PROGRESS`` of the server's API."""

_NOT_SEEN_YET = (RPCStatusCode.NOT_FOUND, RPCStatusCode.FAILED_PRECONDITION)
"""Errors of a server that has not yet noticed the workers of a version."""

_HINTS: Mapping[RPCStatusCode, str] = {
    RPCStatusCode.UNIMPLEMENTED: ": the server has no worker deployments; Temporal has them from version 1.28 on",
    RPCStatusCode.NOT_FOUND: ": the server knows a deployment and its versions from the workers that poll",
}


class DeploymentError(Error):
    """The server refuses an operation on a deployment.

    The message names the operation, the reason and a remedy.
    """


class VersionStatus(StrEnum):
    """The status of a version.

    ``DRAINING``: workflows that are pinned to the version still run. ``DRAINED``: no such workflow runs.
    """

    CREATED = "created"
    INACTIVE = "inactive"
    CURRENT = "current"
    RAMPING = "ramping"
    DRAINING = "draining"
    DRAINED = "drained"
    UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True)
class Version:
    build_id: str
    status: VersionStatus
    created_at: dt.datetime


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """A deployment on the server.

    ``current`` and ``ramping`` are build ids; ``None`` is workers without versions. ``percentage`` is the ramp's. The
    versions are sorted, the latest first.
    """

    name: str
    current: str | None
    ramping: str | None
    percentage: float
    versions: tuple[Version, ...]

    def version(self, build_id: str) -> Version:
        """Raises ``DeploymentError``."""
        for each in self.versions:
            if each.build_id == build_id:
                return each
        known = ", ".join(each.build_id for each in self.versions) or "none"
        raise DeploymentError(f'the deployment "{self.name}" has no version {build_id!r}; it has {known}')


async def describe_deployment(client: Client, name: str) -> Deployment:
    """Raises ``DeploymentError``."""
    request = DescribeWorkerDeploymentRequest(namespace=client.namespace, deployment_name=name)
    response = await _send(name, client.workflow_service.describe_worker_deployment(request))
    return _deployment(response.worker_deployment_info)


async def list_deployments(client: Client) -> list[str]:
    """The names of the namespace's deployments. Raises ``DeploymentError``."""
    names: list[str] = []
    token = b""
    while True:
        request = ListWorkerDeploymentsRequest(namespace=client.namespace, next_page_token=token)
        response = await _send("*", client.workflow_service.list_worker_deployments(request))
        names += [each.name for each in response.worker_deployments]
        if not (token := response.next_page_token):
            return sorted(names)


async def set_current_version(
    client: Client,
    name: str,
    build_id: str | None,
    *,
    ignore_missing_task_queues: bool = False,
    allow_no_pollers: bool = False,
    wait: dt.timedelta = dt.timedelta(0),
) -> str | None:
    """Route new workflows, and those that upgrade themselves, to a version.

    ``None`` is workers without versions. ``wait`` is the time for the server to notice the version's workers, and then
    to pass the change to its task queues. Returns the previous build id. Raises ``DeploymentError``.
    """
    request = SetWorkerDeploymentCurrentVersionRequest(
        namespace=client.namespace,
        deployment_name=name,
        build_id=build_id or "",
        ignore_missing_task_queues=ignore_missing_task_queues,
        allow_no_pollers=allow_no_pollers,
    )
    call = client.workflow_service.set_worker_deployment_current_version
    response = await _call_with_retries(name, lambda: call(request), wait)
    await _wait_for_routing(client, name, wait)
    return response.previous_deployment_version.build_id or None


async def set_ramping_version(
    client: Client,
    name: str,
    build_id: str | None,
    percentage: float,
    *,
    ignore_missing_task_queues: bool = False,
    allow_no_pollers: bool = False,
    wait: dt.timedelta = dt.timedelta(0),
) -> None:
    """Route a share of the current version's workflows to another version.

    ``percentage`` is from 0 to 100. ``None`` and 0 end the ramp. Raises ``DeploymentError``.
    """
    request = SetWorkerDeploymentRampingVersionRequest(
        namespace=client.namespace,
        deployment_name=name,
        build_id=build_id or "",
        percentage=percentage,
        ignore_missing_task_queues=ignore_missing_task_queues,
        allow_no_pollers=allow_no_pollers,
    )
    call = client.workflow_service.set_worker_deployment_ramping_version
    await _call_with_retries(name, lambda: call(request), wait)
    await _wait_for_routing(client, name, wait)


async def wait_until_drained(client: Client, name: str, build_id: str, timeout: dt.timedelta) -> VersionStatus:
    """Wait until no workflow is pinned to a version.

    Returns the version's status then, or at the end of ``timeout``. The server checks for such workflows every few
    minutes. Raises ``DeploymentError``.
    """
    end = asyncio.get_running_loop().time() + timeout.total_seconds()
    while True:
        status = (await describe_deployment(client, name)).version(build_id).status
        if status is not VersionStatus.DRAINING or asyncio.get_running_loop().time() >= end:
            return status
        await asyncio.sleep(min(_PAUSE * 10, max(0.0, end - asyncio.get_running_loop().time())))


async def delete_version(client: Client, name: str, build_id: str, *, skip_drainage: bool = False) -> None:
    """Delete a version that is drained and has no workers. Raises ``DeploymentError``."""
    request = DeleteWorkerDeploymentVersionRequest(
        namespace=client.namespace,
        deployment_version=RawVersion(deployment_name=name, build_id=build_id),
        skip_drainage=skip_drainage,
    )
    await _send(name, client.workflow_service.delete_worker_deployment_version(request))


async def _send(name: str, call: Awaitable[Any]) -> Any:
    try:
        return await call
    except RPCError as error:
        raise _refused(name, error) from error


async def _call_with_retries(name: str, call: Callable[[], Awaitable[Any]], wait: dt.timedelta) -> Any:
    end = asyncio.get_running_loop().time() + wait.total_seconds()
    while True:
        try:
            return await call()
        except RPCError as error:
            if error.status not in _NOT_SEEN_YET or asyncio.get_running_loop().time() >= end:
                raise _refused(name, error) from error
        await asyncio.sleep(_PAUSE)


async def _wait_for_routing(client: Client, name: str, wait: dt.timedelta) -> None:
    """Wait until the server has passed a change to its task queues.

    The server does so after its answer.
    """
    end = asyncio.get_running_loop().time() + wait.total_seconds()
    request = DescribeWorkerDeploymentRequest(namespace=client.namespace, deployment_name=name)
    while asyncio.get_running_loop().time() < end:
        response = await _send(name, client.workflow_service.describe_worker_deployment(request))
        # Older versions of temporalio do not know the field, older servers do not set it.
        if getattr(response.worker_deployment_info, "routing_config_update_state", 0) != _IN_PROGRESS:
            return
        await asyncio.sleep(_PAUSE / 5)


def _refused(name: str, error: RPCError) -> DeploymentError:
    return DeploymentError(f'the deployment "{name}": {error.message}{_HINTS.get(error.status, "")}')


def _deployment(info: WorkerDeploymentInfo) -> Deployment:
    routing = info.routing_config
    versions = [
        Version(
            build_id=each.deployment_version.build_id,
            status=_status(each.status),
            created_at=each.create_time.ToDatetime(dt.UTC),
        )
        for each in info.version_summaries
    ]
    return Deployment(
        name=info.name,
        current=routing.current_deployment_version.build_id or None,
        ramping=routing.ramping_deployment_version.build_id or None,
        percentage=routing.ramping_version_percentage,
        versions=tuple(sorted(versions, key=lambda each: each.created_at, reverse=True)),
    )


def _status(number: WorkerDeploymentVersionStatus.ValueType) -> VersionStatus:
    """The status. A later server may have more statuses."""
    try:
        name = WorkerDeploymentVersionStatus.Name(number)
    except ValueError:
        return VersionStatus.UNKNOWN
    word = name.removeprefix("WORKER_DEPLOYMENT_VERSION_STATUS_").lower()
    return VersionStatus(word) if word in set(VersionStatus) else VersionStatus.UNKNOWN
