"""Importing what ``module:app`` names, and saying where the user's code went wrong."""

import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from durably.cli.app_loading import AppImportError, import_app

Write = Callable[[str], None]


@pytest.fixture
def write_module(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes the module ``usershop`` into the working directory, which is on the path as it is for ``python -m``."""
    monkeypatch.chdir(directory)
    monkeypatch.syspath_prepend(str(directory))

    def write_(source: str) -> None:
        (directory / "usershop.py").write_text(source)
        monkeypatch.delitem(sys.modules, "usershop", raising=False)
        importlib.invalidate_caches()

    return write_


def test_apps_are_found(write_module: Write) -> None:
    write_module("class x:\n    app = 1\napp = 2")
    assert import_app("usershop:app") == 2
    assert import_app("usershop") == 2
    assert import_app("usershop:x.app") == 1
    write_module("application = 3")
    assert import_app("usershop") == 3


@pytest.mark.parametrize(
    ("source", "target", "pattern"),
    [
        ("app = 1", "usershopp:app", "no module 'usershopp' in .*project"),
        ("app = 1", "usershop.sub:app", "there is no module 'usershop.sub'"),
        ("app = 1", "usershop.py:app", "there is no module 'usershop.py' in .*; did you mean 'usershop'?"),
        ("app = 1", "usershop.app", "there is no module 'usershop.app' in .*; did you mean 'usershop:app'?"),
        ("app = 1", "usershop:ap", "usershop has no 'ap'; did you mean 'app'?"),
        ("x = 1", "usershop", "usershop has no 'app'; name the app in it: module:name"),
        ("app = 1", "usershop:app.x", "usershop has no 'x'"),
        ("x = 1\nimport nothere", "usershop:x", r"No module named 'nothere'\n.*usershop\.py, line 2: import nothere"),
        (
            "def f():\n    raise ValueError('no config')\nf()",
            "usershop:x",
            r"ValueError: no config\n.*usershop\.py, line 2",
        ),
        ("app = (", "usershop:app", r"SyntaxError: .*\n.*usershop\.py, line 1"),
        ("raise SystemExit('bye')", "usershop:app", r"SystemExit: bye\n.*usershop\.py, line 1"),
        ("import json\njson.loads('{')", "usershop:app", r"JSONDecodeError: .*\n.*usershop\.py, line 2"),
        ("app = 1", "./usershop.py:app", "not the name of a module"),
        ("app = 1", ":app", "not the name of a module"),
    ],
)
def test_what_went_wrong_is_said(write_module: Write, source: str, target: str, pattern: str) -> None:
    write_module(source)
    with pytest.raises(AppImportError) as caught:
        import_app(target)
    assert re.search(pattern, str(caught.value)), str(caught.value)
