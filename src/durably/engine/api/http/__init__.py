"""The engine's HTTP API, for apps, SDKs, the command line and other processes.

It is an aiohttp application over an engine. It checks access, reads and limits bodies, executes an operation of the
engine, and writes the result in the public form. It does not read the database.
"""

from durably.engine import check_packages

check_packages()
