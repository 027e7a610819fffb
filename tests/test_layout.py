"""The folders of tests mirror those of ``src/durably``, and ``tests/README.md`` lists the others."""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "src" / "durably"
OTHERS = frozenset(re.findall(r"^\| `([\w/]+)/` \|", (TESTS / "README.md").read_text(), re.MULTILINE))
HELPERS = frozenset(re.findall(r"^\| `(\w+\.py)` \|", (TESTS / "README.md").read_text(), re.MULTILINE))
WITHOUT_TESTS = {"django/migrations", "engine/api", "engine/sqlite/tables", "web"}
"""Packages that the tests of others cover: databases, queries and frameworks."""


def folders_of_tests(tests: Path) -> list[str]:
    """The folders that have tests, as paths below ``tests``."""
    return sorted({str(file.parent.relative_to(tests)) for file in tests.rglob("test_*.py")} - {"."})


def stray_folders(tests: Path) -> list[str]:
    """Folders with tests that mirror no package and are not, or not below, one of ``OTHERS``."""
    return [
        folder
        for folder in folders_of_tests(tests)
        if not list((PACKAGE / folder).glob("*.py")) and OTHERS.isdisjoint([folder, *map(str, Path(folder).parents)])
    ]


def test_each_folder_mirrors_a_package_or_is_listed() -> None:
    assert stray_folders(TESTS) == []


@pytest.mark.parametrize("folder", ["engine/model/reports", "flow_control", "engine/temporal/gate"])
def test_stray_folder_is_found(folder: str, tmp_path: Path) -> None:
    for each in (folder, "engine/api/http", "crash"):
        (tmp_path / each).mkdir(parents=True)
        (tmp_path / each / "test_it.py").touch()
    assert stray_folders(tmp_path) == [folder]


def test_each_package_has_a_folder_of_tests() -> None:
    packages = {str(file.parent.relative_to(PACKAGE)) for file in PACKAGE.rglob("*.py")} - {"."}
    missing = packages - set(folders_of_tests(TESTS)) - WITHOUT_TESTS
    assert [each for each in sorted(missing) if not each.startswith("temporal/django/")] == []


def test_listed_folders_and_helpers_exist_and_are_no_packages() -> None:
    assert len(OTHERS) > 10
    assert [each for each in sorted(OTHERS) if not (TESTS / each).is_dir() or (PACKAGE / each).is_dir()] == []
    shared = {file.name for file in TESTS.glob("*.py") if not file.name.startswith("test_")} - {"sentry_app.py"}
    assert shared == HELPERS
