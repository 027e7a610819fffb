"""docs/how-to/deploy.md and examples/production: the commands as they stand, on free ports in another directory.

No container is built here. What compose.yaml runs in containers runs as processes, with the same arguments and
settings.
"""

import configparser
import json
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi.testclient import TestClient

from ..cli.conftest import TIMEOUT_SECONDS, Command, environment
from ..ports import free_port
from ..postgres import PostgresServer
from ..waiting import eventually

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "production"
PAGE = (ROOT / "docs" / "how-to" / "deploy.md").read_text()
BIN = Path(sys.executable).parent

Change = Callable[[str], str]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """The working directory of both programs: what deployments call /opt/shop and /var/lib/durably."""
    shutil.copy(EXAMPLE / "app.py", tmp_path)
    return tmp_path


@pytest.fixture
def variables(directory: Path) -> dict[str, str]:
    return environment() | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}


@pytest.fixture
def keys(directory: Path, variables: dict[str, str]) -> dict[str, str]:
    subprocess.run(["durably", "keys", "--output", "durably.env"], cwd=directory, env=variables, check=True)
    return dict(line.split("=", 1) for line in (directory / "durably.env").read_text().splitlines())


@pytest.fixture
def here(directory: Path) -> Change:
    """Puts this test's ports and paths in the place of those of a deployment."""
    ports = {name: str(free_port()) for name in ("8288", "8000")}
    paths = {"/opt/shop/venv/bin": str(BIN), "/var/lib/durably": str(directory), "/data/": f"{directory}/"}
    hosts = {"://engine:": "://127.0.0.1:", "://app:": "://127.0.0.1:", "0.0.0.0": "127.0.0.1"}

    def change(text: str) -> str:
        for old, new in (paths | hosts | ports).items():
            text = text.replace(old, new)
        return text

    return change


@contextmanager
def running(command: Sequence[str], directory: Path, variables: Mapping[str, str]) -> Iterator[Command]:
    program = Command((), directory, dict(variables), command)
    try:
        yield program
    finally:
        program.stop(signal.SIGTERM)  # gunicorn's workers would outlive it after SIGKILL


def engine_port(command: Sequence[str], here: Change) -> list[str]:
    """The engine's command listens at the default port, which other programs may use here."""
    return [*command, "--port", here("8288")]


def place_order(here: Change) -> None:
    request = urllib.request.Request(here("http://127.0.0.1:8000/orders/A-1"), method="POST")
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
        assert response.status == 202


# -- by hand


def console_blocks(heading: str) -> list[list[tuple[str, str]]]:
    """The section's console blocks: their commands, each with the output that is shown below it."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"```console\n(.*?)```", section, re.DOTALL)
    return [re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE) for block in blocks]


@pytest.mark.slow
def test_documented_commands_deploy_the_app(directory: Path, variables: dict[str, str], here: Change) -> None:
    (_, make_keys), [read_keys], [start_engine], [name_engine, start_app], use = console_blocks("By hand")
    settings = f"{read_keys[0]}; {here(name_engine[0])}"

    def shell(command: str) -> list[str]:
        return ["bash", "-ec", f"{settings}; {command}"]

    subprocess.run(["bash", "-ec", make_keys[0]], cwd=directory, env=variables, check=True)
    engine_command = shell("exec " + shlex.join(engine_port(shlex.split(start_engine[0]), here)))
    app_command = shell("exec " + here(start_app[0]))
    with running(engine_command, directory, variables) as engine, running(app_command, directory, variables) as app:
        engine.until("engine started")
        for command, expected in use:
            done = subprocess.run(
                shell(here(command)), cwd=directory, env=variables, capture_output=True, text=True, check=True
            )
            assert here(expected) in done.stdout, done.stderr
        end = engine.until("run completed").end()
        place_order(here)
        engine.until('"step completed".*"step":"charge"', after=end)
        assert (engine.stop(signal.SIGTERM), app.stop(signal.SIGTERM)) == (0, 0)
        assert engine.output.count("run completed") == 1  # the second run sleeps still
    with running(engine_command, directory, variables) as engine, running(app_command, directory, variables):
        engine.until("run completed")


# -- systemd

UNIT_OPTIONS = {
    "Unit": {"Description", "Wants", "After"},
    "Service": {
        "Type",
        "User",
        "WorkingDirectory",
        "EnvironmentFile",
        "Environment",
        "StateDirectory",
        "StateDirectoryMode",
        "ExecStart",
        "ExecReload",
        "Restart",
        "RestartSec",
        "KillMode",
        "TimeoutStopSec",
        "LimitNOFILE",
        "NoNewPrivileges",
        "ProtectSystem",
        "ProtectHome",
        "PrivateTmp",
    },
    "Install": {"WantedBy"},
}
"""Options of the units here that systemd 240 and later has."""


def read_unit(name: str) -> dict[str, dict[str, str]]:
    parser = configparser.RawConfigParser(delimiters=("=",), comment_prefixes=("#",), strict=True)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(EXAMPLE / name)
    return {section: dict(parser[section]) for section in parser.sections()}


def test_an_order_is_refused_while_the_engine_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("durably.events.BASE_DELAY", 0)
    monkeypatch.setenv("DURABLY_ENGINE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("DURABLY_SIGNING_KEY", "signkey-prod-" + "0" * 64)
    monkeypatch.setenv("DURABLY_EVENT_KEY", "key")
    app = runpy.run_path(str(EXAMPLE / "app.py"))["app"]
    assert TestClient(app).post("/orders/A-1").status_code == 503


@pytest.mark.parametrize("name", ["durably.service", "shop.service"])
def test_systemd_units_are_valid(name: str, directory: Path, here: Change) -> None:
    unit = read_unit(name)
    assert unit.keys() == UNIT_OPTIONS.keys()
    for section, options in unit.items():
        assert options.keys() <= UNIT_OPTIONS[section]
    if shutil.which("systemd-analyze"):
        copy = directory / name
        copy.write_text(here((EXAMPLE / name).read_text()))
        verified = subprocess.run(["systemd-analyze", "verify", copy], capture_output=True, text=True, check=False)
        assert not [line for line in verified.stderr.splitlines() if name in line], verified.stderr


@pytest.mark.slow
def test_units_run_the_app_under_systemd(
    directory: Path, variables: dict[str, str], keys: dict[str, str], here: Change
) -> None:
    engine_unit, shop_unit = read_unit("durably.service")["Service"], read_unit("shop.service")["Service"]
    assert engine_unit["EnvironmentFile"] == shop_unit["EnvironmentFile"] == "/etc/durably.env"
    assert engine_unit["StateDirectory"] == "durably"  # makes /var/lib/durably
    engine_command = engine_port(shlex.split(here(engine_unit["ExecStart"])), here)
    name, _, value = here(shop_unit["Environment"]).partition("=")
    with running(engine_command, directory, variables | keys) as engine:
        app_command = shlex.split(here(shop_unit["ExecStart"]))
        with running(app_command, directory, variables | keys | {name: value}):
            engine.until('"app synced"')
            place_order(here)
            engine.until("run completed")
            assert engine.stop(signal.SIGTERM) == 0


# -- containers


@pytest.mark.slow
def test_the_services_of_the_compose_file(
    directory: Path, variables: dict[str, str], keys: dict[str, str], here: Change
) -> None:
    services: dict[str, Any] = yaml.safe_load((EXAMPLE / "compose.yaml").read_text())["services"]
    engine_service, app_service = services["engine"], services["app"]
    assert engine_service["env_file"] == app_service["env_file"] == "durably.env"
    assert engine_service["volumes"] == ["data:/data"]
    assert app_service["depends_on"] == {"engine": {"condition": "service_healthy"}}
    own = {name: here(value) for name, value in app_service["environment"].items()}
    engine_command = engine_port([here(word) for word in engine_service["command"]], here)
    with running(engine_command, directory, variables | keys) as engine:
        engine.until("engine started")
        check_health(engine_service, directory, variables | {"DURABLY_ENGINE_URL": here("http://127.0.0.1:8288")}, here)
        app_command = [here(word) for word in app_service["command"]]
        with running(app_command, directory, variables | keys | own):
            engine.until('"app synced"')
            check_health(app_service, directory, variables, here)
            place_order(here)
            engine.until("run completed")


def check_health(service: dict[str, Any], directory: Path, variables: Mapping[str, str], here: Change) -> None:
    kind, *command = service["healthcheck"]["test"]
    assert kind == "CMD"
    subprocess.run([here(word) for word in command], cwd=directory, env=dict(variables), check=True, timeout=60)


# -- Kubernetes


class Pod:
    """A container of a Deployment as a process, with a port and a directory of its own: an ``emptyDir``."""

    def __init__(self, deployment: dict[str, Any], node: Path, variables: Mapping[str, str], app: str) -> None:
        spec = deployment["spec"]["template"]["spec"]
        [self.container], [volume] = spec["containers"], spec["volumes"]
        assert self.container["volumeMounts"] == [{"name": volume["name"], "mountPath": "/data"}]
        assert volume["emptyDir"] == {}
        self.port = free_port()
        self.origin = f"http://127.0.0.1:{self.port}"
        directory = node / f"pod-{self.port}"
        directory.mkdir()
        changes = {"/data/": f"{directory}/", "0.0.0.0": "127.0.0.1", "http://shop:8000": app}
        command = [self._changed(word, changes) for word in self.container["command"]]
        self.program = Command((), directory, dict(variables), [*command, "--port", str(self.port)])

    @staticmethod
    def _changed(text: str, changes: Mapping[str, str]) -> str:
        for old, new in changes.items():
            text = text.replace(old, new)
        return text

    def passes(self, probe: str) -> bool:
        check = self.container[probe]["httpGet"]
        assert {"name": check["port"], "containerPort": 8288} in self.container["ports"]
        try:
            with urllib.request.urlopen(self.origin + check["path"], timeout=TIMEOUT_SECONDS):
                return True
        except OSError:
            return False


@pytest.mark.slow
def test_two_replicas_of_the_kubernetes_manifest_lead_one_after_the_other(
    directory: Path, variables: dict[str, str], keys: dict[str, str], here: Change, postgres: PostgresServer
) -> None:
    documents = [*yaml.safe_load_all((EXAMPLE / "kubernetes.yaml").read_text())]
    deployments = {each["metadata"]["name"]: each for each in documents if each["kind"] == "Deployment"}
    services = {each["metadata"]["name"]: each["spec"] for each in documents if each["kind"] == "Service"}
    for name, deployment in deployments.items():
        [port] = deployment["spec"]["template"]["spec"]["containers"][0]["ports"]
        assert services[name]["ports"] == [{"port": port["containerPort"], "targetPort": port["name"]}]
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        assert services[name]["selector"] == deployment["spec"]["selector"]["matchLabels"] == labels
    assert deployments["durably"]["spec"]["replicas"] == 2
    [shop] = deployments["shop"]["spec"]["template"]["spec"]["containers"]
    assert shop["env"] == [{"name": "DURABLY_ENGINE_URL", "value": "http://durably:8288"}]
    secrets = variables | keys | {"DURABLY_LOG": f"{postgres.url}?log={directory.name}-kubernetes"}

    pods: list[Pod] = []

    def start_pod() -> None:
        pods.append(Pod(deployments["durably"], directory, secrets, here("http://127.0.0.1:8000")))

    def leader_after(former: Pod | None) -> Pod:
        ready = eventually(lambda: [pod for pod in pods if pod.passes("readinessProbe")], "a replica is ready")
        assert len(ready) == 1
        assert ready[0] is not former
        assert all(pod.passes("livenessProbe") for pod in pods)
        return ready[0]

    def run_an_order(leader: Pod) -> None:
        end = len(leader.program.output)
        client = secrets | {"DURABLY_ENGINE_URL": leader.origin}
        leader.program.until('"app synced"')
        subprocess.run(
            ["durably", "send", "shop/order.placed", "--data", '{"order_id": "A-1"}'], env=client, check=True
        )
        leader.program.until("run completed", after=end)

    try:
        start_pod()
        start_pod()
        eventually(lambda: all(pod.passes("livenessProbe") for pod in pods), "both replicas live")
        first = leader_after(None)
        own = {"DURABLY_ENGINE_URL": first.origin}
        with running([here(word) for word in shop["command"]], directory, secrets | own):
            first.program.until('"app synced"')
            place_order(here)
            first.program.until("run completed")
            first.program.stop(signal.SIGKILL)
            pods.remove(first)
            second = leader_after(first)
            run_an_order(second)
            start_pod()
            eventually(lambda: pods[-1].passes("livenessProbe"), "the new replica lives")
            assert second.program.stop(signal.SIGTERM) == 0
            pods.remove(second)
            run_an_order(leader_after(second))
    finally:
        for pod in pods:
            pod.program.stop(signal.SIGKILL)


def test_image_has_the_commands_of_the_services() -> None:
    services: dict[str, Any] = yaml.safe_load((EXAMPLE / "compose.yaml").read_text())["services"]
    for service in services.values():
        context = (EXAMPLE / service["build"]["context"]).resolve()
        assert context == ROOT
        assert context / service["build"]["dockerfile"] == EXAMPLE / "Dockerfile"
    image = (EXAMPLE / "Dockerfile").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = re.search(r'"/src\[([\w,-]+)\]"', image)
    assert extras is not None
    assert set(extras[1].split(",")) <= project["optional-dependencies"].keys()
    for copied in re.findall(r"/src/(\S+)", image):
        assert (ROOT / copied).exists()


def test_page_shows_the_output_of_sync() -> None:
    """As a check that ``test_documented_commands_deploy_the_app`` compares something."""
    outputs = [output for block in console_blocks("By hand") for _, output in block if output]
    assert [output.partition("\n")[0] for output in outputs] == [
        "synced shop 1.0 at http://127.0.0.1:8000/api/inngest: 1 function",
        "ready",
    ]
    assert json.dumps({"order_id": "A-1"}) in PAGE
