"""The engine on Temporal: the run machine inside workflows."""

from durably.engine import check_packages

check_packages()
