"""The adapters that users write themselves: the documentation links the files that the tests serve."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "how-to" / "temporal" / "other-frameworks.md").read_text()


def test_the_documentation_links_each_adapter() -> None:
    links = [f"../../../{file.relative_to(ROOT)}" for file in (ROOT / "examples" / "other_frameworks").glob("*.py")]
    assert [link for link in links if f"]({link})" not in PAGE] == []
