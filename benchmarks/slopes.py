"""Whether something grows: a line fitted to what was measured, and how sure that is."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import linear_regression, mean


@dataclass(frozen=True)
class Slope:
    """Growth per unit, and its standard error."""

    value: float
    error: float

    def __str__(self) -> str:
        return f"{self.value:,.1f} ± {self.error:,.1f}"

    @property
    def is_flat(self) -> bool:
        """No growth that two standard errors could not explain."""
        return self.value <= 2 * self.error


def fit(at: Sequence[float], measured: Sequence[float]) -> Slope:
    """Of the second half of at least six measurements: in the first, caches and pools fill."""
    at, measured = at[len(at) // 2 :], measured[len(measured) // 2 :]
    line = linear_regression(at, measured)
    middle = mean(at)
    spread = sum((x - middle) ** 2 for x in at)
    residue = sum((y - line.slope * x - line.intercept) ** 2 for x, y in zip(at, measured, strict=True))
    return Slope(line.slope, (residue / (len(at) - 2) / spread) ** 0.5)
