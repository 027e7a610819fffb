"""The number of random examples that tests of properties try: few in ``make test``, many others in ``make soak``."""

import os

FACTOR = int(os.environ.get("DURABLY_EXAMPLES", "1"))
"""With another factor than 1, the examples are other ones in each run."""


def examples(number: int) -> int:
    return number * FACTOR
