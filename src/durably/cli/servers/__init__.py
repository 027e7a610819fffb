"""The servers of ``durably dev``, ``durably start`` and ``durably temporal dev``."""
