"""The adapters that users write themselves: the documentation shows or links the files that the tests serve."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "how-to" / "temporal" / "other-frameworks.md").read_text()
ADAPTERS = ROOT / "examples" / "other_frameworks"


def test_the_documentation_shows_the_example() -> None:
    code = (ADAPTERS / "litestar_gateway.py").read_text().partition('"""\n\n')[2]
    assert code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_the_documentation_links_each_adapter() -> None:
    assert [file.name for file in ADAPTERS.glob("*.py") if f"]({_link(file)})" not in PAGE] == []


def _link(file: Path) -> str:
    return f"../../../{file.relative_to(ROOT)}"
