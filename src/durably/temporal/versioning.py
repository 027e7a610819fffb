"""The version of the app's workers, from its settings: a deployment and a build id.

With both, the server gives workers the workflows of their version only. New workflows go to the deployment's current
version, which ``durably temporal deployment set-current-version`` sets.
"""

from temporalio.common import VersioningBehavior, WorkerDeploymentVersion
from temporalio.worker import WorkerDeploymentConfig

from .errors import TemporalSettingsError
from .settings import ConnectionSettings, with_own_names

_BEHAVIORS = {
    "pinned": VersioningBehavior.PINNED,
    "auto-upgrade": VersioningBehavior.AUTO_UPGRADE,
}
"""``pinned``: a workflow stays on the version that began it. ``auto-upgrade``: it goes on with the current version."""

_NAME, _BUILD_ID, _BEHAVIOR = "TEMPORAL_DEPLOYMENT_NAME", "TEMPORAL_WORKER_BUILD_ID", "TEMPORAL_VERSIONING_BEHAVIOR"


def worker_version(settings: ConnectionSettings) -> WorkerDeploymentConfig | None:
    """``None`` without a deployment and build id. Without a behavior, each workflow's decorator must say its own.

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
