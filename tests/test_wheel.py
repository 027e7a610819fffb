"""The wheel that a release uploads: what is in it, and that it works where nothing else of the repository is."""

import subprocess
import sys
import venv
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from urllib.request import urlopen
from zipfile import ZipFile

import pytest

from .ports import free_port
from .waiting import eventually

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
MOST_BYTES = 1_500_000
FRAMEWORKS = ("aiohttp", "django", "fastapi", "flask", "starlette", "temporalio", "tornado")
USER_CODE = """
import durably

client = durably.Client(app_id="shop", is_production=False)

@client.create_function(fn_id="greet", trigger=durably.TriggerEvent(event="greeted"))
async def greet(ctx: durably.Context) -> str:
    return await ctx.step.run("name", name)

async def name() -> str:
    return "Ada"

reveal_type(greet)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    _run(sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(ROOT))
    [wheel] = folder.iterdir()
    return wheel


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter that has the wheel, with the extra ``engine``, and no framework."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=True)
    _run(folder / "bin/pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt", f"{wheel}[engine]")
    return folder / "bin/python"


def test_it_has_the_files_of_the_packages_and_no_other(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    files = (path for path in SOURCE.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    assert names == {path.relative_to(SOURCE).as_posix() for path in files}
    assert "durably/py.typed" in names
    assert wheel.stat().st_size < MOST_BYTES


def test_an_index_accepts_its_metadata(wheel: Path) -> None:
    assert "PASSED" in _run(sys.executable, "-m", "twine", "check", "--strict", str(wheel))


def test_importing_it_loads_no_framework(python: Path) -> None:
    code = f"import durably, sys; print([name for name in {FRAMEWORKS} if name in sys.modules])"
    assert _run(python, "-c", code) == "[]\n"


def test_importing_it_costs_little_more_than_its_requirements(python: Path) -> None:
    """60 ms on a machine that imports asyncio in 15 ms. asyncio is the largest of what it needs."""
    codes = ("pass", "import asyncio", "import durably")
    rounds = [[_cpu_seconds(python, code) for code in codes] for _ in range(15)]
    start, of_asyncio, of_durably = (min(seconds) for seconds in zip(*rounds, strict=True))
    assert of_durably - start < 4 * (of_asyncio - start), (start, of_asyncio, of_durably)


def test_its_types_are_seen(python: Path, tmp_path: Path) -> None:
    module = tmp_path / "app.py"
    module.write_text(USER_CODE)
    shown = _run(sys.executable, "-m", "mypy", "--strict", "--python-executable", python, module, cwd=tmp_path)
    assert "durably.functions.function.Function[str]" in shown


def test_its_engine_starts_and_shows_its_dashboard(python: Path, tmp_path: Path) -> None:
    port = free_port()
    command = [python.parent / "durably", "dev", "--port", str(port)]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            page = eventually(lambda: _get(f"http://127.0.0.1:{port}/runs"), "the dashboard")
            assert "<h1>Runs</h1>" in page
        finally:
            process.terminate()
            process.wait(timeout=10)


def _cpu_seconds(python: Path, code: str) -> float:
    before = getrusage(RUSAGE_CHILDREN)
    _run(python, "-c", code)
    after = getrusage(RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _get(url: str) -> str:
    try:
        with urlopen(url, timeout=5) as response:
            return str(response.read().decode())
    except OSError:
        return ""


def _run(*command: object, cwd: Path | None = None) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=cwd, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
