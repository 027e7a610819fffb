"""Worker deployments on the server: their versions, which one is current, and which one is ramping."""

import asyncio
import datetime as dt
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from temporalio.api.deployment.v1 import WorkerDeploymentInfo, WorkerDeploymentVersion
from temporalio.api.enums.v1 import WorkerDeploymentVersionStatus
from temporalio.api.workflowservice.v1 import (
    DeleteWorkerDeploymentVersionRequest,
    DescribeWorkerDeploymentRequest,
    ListWorkerDeploymentsRequest,
    SetWorkerDeploymentCurrentVersionRequest,
    SetWorkerDeploymentRampingVersionRequest,
)
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from durably.errors import Error

_PAUSE = 0.5
_IN_PROGRESS = 1
"""``ROUTING_CONFIG_UPDATE_STATE_IN_PROGRESS`` of the server's API."""

_NOT_SEEN_YET = (RPCStatusCode.NOT_FOUND, RPCStatusCode.FAILED_PRECONDITION)
"""What the server answers while it has not noticed the workers of a version."""

_HINTS: Mapping[RPCStatusCode, str] = {
    RPCStatusCode.UNIMPLEMENTED: ": the server has no worker deployments; Temporal has them from version 1.28 on",
    RPCStatusCode.NOT_FOUND: ": the server gets to know a deployment and its versions from the workers that poll",
}


class DeploymentError(Error):
    """The server refuses what was asked of a deployment; the message names it, the reason and a remedy."""


class VersionStatus(StrEnum):
    """``DRAINING``: workflows that are pinned to the version still run. ``DRAINED``: none does."""

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
    """``current`` and ``ramping`` are build ids; ``None`` is workers without versions. ``percentage`` is the ramp's.

    The versions are sorted, the latest first.
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
    response = await _ask(name, client.workflow_service.describe_worker_deployment(request))
    return _deployment(response.worker_deployment_info)


async def list_deployments(client: Client) -> list[str]:
    """The names of the namespace's deployments. Raises ``DeploymentError``."""
    names: list[str] = []
    token = b""
    while True:
        request = ListWorkerDeploymentsRequest(namespace=client.namespace, next_page_token=token)
        response = await _ask("*", client.workflow_service.list_worker_deployments(request))
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
    """Give new workflows, and those that upgrade themselves, to a version; ``None`` is workers without versions.

    ``wait`` is how long the server may take to notice the version's workers, and then to tell its task queues of the
    change. The previous build id. Raises
    ``DeploymentError``.
    """
    request = SetWorkerDeploymentCurrentVersionRequest(
        namespace=client.namespace,
        deployment_name=name,
        build_id=build_id or "",
        ignore_missing_task_queues=ignore_missing_task_queues,
        allow_no_pollers=allow_no_pollers,
    )
    call = client.workflow_service.set_worker_deployment_current_version
    response = await _ask_patiently(name, lambda: call(request), wait)
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
    """Give ``percentage`` (0 to 100) of the workflows that would go to the current version to another one.

    ``None`` and 0 end the ramp. Raises ``DeploymentError``.
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
    await _ask_patiently(name, lambda: call(request), wait)
    await _wait_for_routing(client, name, wait)


async def wait_until_drained(client: Client, name: str, build_id: str, timeout: dt.timedelta) -> VersionStatus:
    """Wait until no workflow is pinned to a version; its status then, or at the end of ``timeout``.

    The server looks for such workflows every few minutes. Raises ``DeploymentError``.
    """
    end = asyncio.get_running_loop().time() + timeout.total_seconds()
    while True:
        status = (await describe_deployment(client, name)).version(build_id).status
        if status is not VersionStatus.DRAINING or asyncio.get_running_loop().time() >= end:
            return status
        await asyncio.sleep(min(_PAUSE * 10, max(0.0, end - asyncio.get_running_loop().time())))


async def delete_version(client: Client, name: str, build_id: str, *, skip_drainage: bool = False) -> None:
    """Forget a version that is drained and has no workers. Raises ``DeploymentError``."""
    request = DeleteWorkerDeploymentVersionRequest(
        namespace=client.namespace,
        deployment_version=WorkerDeploymentVersion(deployment_name=name, build_id=build_id),
        skip_drainage=skip_drainage,
    )
    await _ask(name, client.workflow_service.delete_worker_deployment_version(request))


async def _ask(name: str, call: Awaitable[Any]) -> Any:
    try:
        return await call
    except RPCError as error:
        raise _refused(name, error) from error


async def _ask_patiently(name: str, call: Callable[[], Awaitable[Any]], wait: dt.timedelta) -> Any:
    end = asyncio.get_running_loop().time() + wait.total_seconds()
    while True:
        try:
            return await call()
        except RPCError as error:
            if error.status not in _NOT_SEEN_YET or asyncio.get_running_loop().time() >= end:
                raise _refused(name, error) from error
        await asyncio.sleep(_PAUSE)


async def _wait_for_routing(client: Client, name: str, wait: dt.timedelta) -> None:
    """The server passes a change to its task queues after it has answered."""
    end = asyncio.get_running_loop().time() + wait.total_seconds()
    request = DescribeWorkerDeploymentRequest(namespace=client.namespace, deployment_name=name)
    while asyncio.get_running_loop().time() < end:
        response = await _ask(name, client.workflow_service.describe_worker_deployment(request))
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
    """A later server may have more."""
    try:
        name = WorkerDeploymentVersionStatus.Name(number)
    except ValueError:
        return VersionStatus.UNKNOWN
    word = name.removeprefix("WORKER_DEPLOYMENT_VERSION_STATUS_").lower()
    return VersionStatus(word) if word in set(VersionStatus) else VersionStatus.UNKNOWN
