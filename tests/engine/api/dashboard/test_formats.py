import pytest

from durably.engine.api.dashboard.formats import format_duration, format_share, format_size


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ms"),
        (0.0124, "12 ms"),
        (0.9996, "1.00 s"),
        (1.239, "1.24 s"),
        (9.996, "10.0 s"),
        (59.94, "59.9 s"),
        (59.96, "1m"),
        (250, "4m 10s"),
        (3600, "1h"),
        (90_061, "1d 1h"),
        (-2, "-2.00 s"),
    ],
)
def test_a_duration_has_two_or_three_digits(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (4200, "4.2 kB"), (4_000_000, "4.0 MB"), (123_456_789, "123 MB")]
)
def test_sizes_are_in_decimal_units(size: int, text: str) -> None:
    assert format_size(size) == text


@pytest.mark.parametrize(
    ("part", "whole", "text"), [(0, 0, "–"), (0, 5, "0 %"), (1, 40, "2.5 %"), (1, 3, "33 %"), (3, 3, "100 %")]
)
def test_shares_are_percentages(part: int, whole: int, text: str) -> None:
    assert format_share(part, whole) == text
