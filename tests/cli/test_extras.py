"""Without the ``engine`` extra, the command says what to install."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("missing", "arguments"), [("click", []), ("aiohttp", ["dev"]), ("watchfiles", ["dev", "x:y"])]
)
def test_a_missing_extra_is_named(missing: str, arguments: list[str]) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; import durably.cli; durably.cli.main()"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=90)
    assert done.returncode == 1
    assert 'pip install "durably[engine]"' in done.stderr
    assert "Traceback" not in done.stderr
