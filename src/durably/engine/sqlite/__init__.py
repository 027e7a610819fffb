"""Storage in one SQLite file.

Schema, tables, queries, the writer's thread, backup and check.
"""

from durably.engine import check_packages

check_packages()
