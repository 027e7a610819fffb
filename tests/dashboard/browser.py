"""Chromium for the tests, and axe, which checks accessibility.

Chromium is the machine's, or else one from npm. npm's packages are installed once per machine, into
``~/.cache/durably/browser`` (``XDG_CACHE_HOME``). To use another Chromium, set ``DURABLY_CHROMIUM`` to its path.
"""

import contextlib
import fcntl
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeVar

from playwright.sync_api import Browser, sync_playwright

from ..peers.node import INSTALL_SECONDS, node, npm

T = TypeVar("T")

CHROMIUM_PACKAGE = "@sparticuz/chromium@147.0.0"
AXE_PACKAGE = "axe-core@4.14.1"
NAMES = ("chromium", "chromium-browser", "google-chrome")
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "durably" / "browser"

# The package unpacks the libraries that it needs only if it believes to be in AWS Lambda.
_UNPACK = 'import chromium from "@sparticuz/chromium"; console.log(await chromium.executablePath())'
_LAMBDA = {"AWS_EXECUTION_ENV": "AWS_Lambda_nodejs22.x"}


# Fonts of the package beside the machine's, which may have none.
_FONTS = """<?xml version="1.0"?>
<fontconfig>
  <include ignore_missing="yes">/etc/fonts/fonts.conf</include>
  <dir>{folder}/unpacked/fonts</dir>
  <cachedir>{folder}/fonts-cache</cachedir>
</fontconfig>
"""


class Chromium(NamedTuple):
    """A Chromium to start, and the environment variables that it needs."""

    path: str
    variables: Mapping[str, str] = {}


def find_chromium() -> Chromium:
    """The Chromium of ``DURABLY_CHROMIUM``, the machine's, or npm's.

    Raises ``RuntimeError`` if npm fails.
    """
    if named := os.environ.get("DURABLY_CHROMIUM"):
        return Chromium(named)
    if found := next(filter(None, map(shutil.which, NAMES)), None):
        return Chromium(found)
    return install_chromium()


def install_chromium() -> Chromium:
    """Chromium from npm."""
    folder = _install(CHROMIUM_PACKAGE)
    unpacked = folder / "unpacked"
    program = unpacked / "chromium"
    with _locked(folder):
        if not program.exists():
            partial = folder / "partial"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            environment = {**os.environ, **_LAMBDA, "TMPDIR": str(partial)}
            _run([*node(), "--input-type=module", "--eval", _UNPACK], folder, environment)
            (partial / "fonts.conf").write_text(_FONTS.format(folder=folder))
            partial.rename(unpacked)
    variables = {"LD_LIBRARY_PATH": str(unpacked / "al2023" / "lib"), "FONTCONFIG_FILE": str(unpacked / "fonts.conf")}
    return Chromium(str(program), variables)


def axe_source() -> str:
    """axe's script, which a page evaluates."""
    return (_install(AXE_PACKAGE) / "node_modules" / "axe-core" / "axe.min.js").read_text()


def _install(package: str) -> Path:
    """The folder of an npm package. Raises ``RuntimeError`` with npm's message."""
    folder = CACHE / package.replace("/", "-")
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        if not (folder / ".installed").exists():
            options = ["--no-audit", "--no-fund", "--no-save", "--ignore-scripts", "--loglevel=error"]
            _run([*npm(), "install", *options, "--prefix", str(folder), package], folder, dict(os.environ))
            (folder / ".installed").touch()
    return folder


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One of several test processes at a time."""
    with open(folder / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _run(command: list[str], folder: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=INSTALL_SECONDS)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed in {folder}:\n{done.stderr or done.stdout}")


class BrowserThread:
    """A thread that owns Playwright and one browser.

    Playwright's blocking API keeps an event loop running in its thread, in which tests with asyncio could not run.
    """

    def __init__(self) -> None:
        self._work: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="browser", daemon=True)
        self._thread.start()
        self._playwright = self.run(lambda: sync_playwright().start())
        try:
            self.browser: Browser = self.run(self._launch)
        except BaseException:
            self._stop()
            raise

    def run(self, function: Callable[[], T]) -> T:
        """Run a function in the thread, and return its result or raise its error."""
        future: Future[T] = Future()
        self._work.put((future, function))
        return future.result()

    def close(self) -> None:
        self.run(self.browser.close)
        self._stop()

    def _stop(self) -> None:
        self.run(self._playwright.stop)
        self._work.put(None)
        self._thread.join()

    def _launch(self) -> Browser:
        chromium = find_chromium()
        environment: dict[str, str | float | bool] = {**os.environ, **chromium.variables}
        return self._playwright.chromium.launch(executable_path=chromium.path, args=["--disable-gpu"], env=environment)

    def _serve(self) -> None:
        while (work := self._work.get()) is not None:
            future, function = work
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)
