"""The pure core of an engine: the run machine, flow control and expressions."""

from durably.engine import check_packages

check_packages()
