"""The examples of docs/how-to/test.md, word for word, in a pytest of their own."""

import re
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "test.md").read_text()


@pytest.mark.slow
def test_examples_of_the_page_pass(pytester: pytest.Pytester) -> None:
    files = dict(re.findall(r"```python\n# (\w+)\.py\n(.*?)```", PAGE, re.DOTALL))
    assert set(files) == {
        "onboarding",
        "test_onboarding",
        "test_with_fixtures",
        "test_unittest",
        "test_determinism",
    }
    pytester.makepyfile(**files)
    pytester.syspathinsert()
    options = ("-W", "error", "-o", "asyncio_default_fixture_loop_scope=function")
    pytester.runpytest_subprocess(*options).assert_outcomes(passed=6)
