"""``python -m benchmarks [ROW …]``: measure, print, and with ``--save`` write RESULTS.md."""

import argparse
import os
import sys
import tempfile
from pathlib import Path

from .results import RESULTS, save
from .rows import ROWS


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"all, or some of: {', '.join(ROWS)}")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: that the rows run, not what they come to")
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.name}")
    options = parser.parse_args()
    if unknown := set(options.rows) - set(ROWS):
        parser.error(f"no such row: {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    if options.quick and options.save:
        parser.error("--quick sizes measure nothing worth saving")
    for name in [name for name in os.environ if name.startswith("INNGEST_")]:
        del os.environ[name]  # settings of the shell, which would change what is measured
    for name in options.rows or ROWS:
        print(f"{name} …", file=sys.stderr)
        with tempfile.TemporaryDirectory(prefix="durably-benchmark-") as directory:
            section = ROWS[name](Path(directory), is_quick=options.quick)
        print(section)
        if options.save:
            save({name: section}, list(ROWS))


if __name__ == "__main__":
    main()
