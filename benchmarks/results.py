"""RESULTS.md: a section for each row, which can be measured and replaced alone."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

RESULTS = Path(__file__).parent / "RESULTS.md"

PREFACE = """\
# Results

`make bench` writes this page. [README.md](README.md) describes the measurements, and [PROFILE.md](PROFILE.md) has
profiles. `make bench` measures all sections in one run. `python -m benchmarks ROW --save` measures one section again.
"""

_MARK = re.compile(r"^<!-- row: ([\w-]+) -->$", re.MULTILINE)


def save(sections: Mapping[str, str], order: Sequence[str], path: Path = RESULTS) -> None:
    """Replace these sections, and keep the others, in the given order."""
    known = _read(path) | dict(sections)
    parts = [f"<!-- row: {name} -->\n{known[name].strip()}\n" for name in order if name in known]
    path.write_text("\n".join([PREFACE, *parts]))


def _read(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    _, *rest = _MARK.split(path.read_text())
    return dict(zip(rest[::2], rest[1::2], strict=True))
