"""The documented ``pip install "durably[temporal,fast-api]"`` is enough for ``durably temporal …``.

The packages of all other extras are hidden from the command and from its child processes.
"""

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest

from ..cli.conftest import Start, directory, start
from .dev_server import DevServer
from .test_temporal_dev import place, write_app

__all__ = ["directory", "start"]

EXTRAS: dict[str, list[str]] = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"][
    "optional-dependencies"
]
HIDE = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {hidden!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Hidden())
"""


def packages(*extras: str) -> set[str]:
    """The distributions of the extras, and their dependencies."""
    found = set[str]()
    for requirement in [requirement for extra in extras for requirement in EXTRAS[extra]]:
        found |= _with_needs(requirement)
    return found


def _with_needs(requirement: str) -> set[str]:
    name = re.split(r"[^\w.-]", requirement)[0].lower().replace("_", "-")
    if name == "durably":
        return set()
    needs = importlib.metadata.requires(name) or []
    return {name}.union(*(_with_needs(need) for need in needs if "extra ==" not in need and _is_installed(need)))


def _is_installed(requirement: str) -> bool:
    try:
        importlib.metadata.version(re.split(r"[^\w.-]", requirement)[0])
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def hidden_modules(*extras: str) -> set[str]:
    """The modules of packages that an installation with just these extras lacks."""
    others = packages(*(extra for extra in EXTRAS if extra != "all"))
    own = packages(*extras) | {"msgspec", "rfc8785", "urllib3"}
    modules = importlib.metadata.packages_distributions()
    return {
        module
        for module, names in modules.items()
        if (found := {name.lower().replace("_", "-") for name in names}) & others and not found & own
    }


@pytest.fixture
def minimal(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands run without the packages of other extras."""
    hidden = hidden_modules("temporal", "fast-api")
    assert {"aiohttp", "re2", "cronsim", "flask", "django", "tornado", "cryptography"} <= hidden
    site = directory / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(HIDE.format(hidden=hidden))
    monkeypatch.setenv("PYTHONPATH", str(site))


@pytest.mark.slow
@pytest.mark.usefixtures("minimal")
def test_temporal_dev_runs_without_the_engine_extra(start: Start, directory: Path, server: DevServer) -> None:
    write_app(directory)
    command = start("temporal", "dev", "main:app", "--server", server.address, "--app-port", "0")
    origin = command.until(r"main:app is up at (http://[\d.:]+)")[1]
    command.until("working on")
    assert place(origin, "minimal").startswith("processed minimal")
    assert command.stop() == 0


@pytest.mark.usefixtures("minimal")
def test_the_engine_is_named_where_it_is_needed(start: Start, directory: Path) -> None:
    command = start("dev", "--port", "0")
    command.until(r'pip install "durably\[engine\]"')
    assert command.wait() == 1
