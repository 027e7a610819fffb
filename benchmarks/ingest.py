"""Events taken in per second, in batches of a hundred of which none triggers or wakes anything, against bare SQLite
inserts of the same rows, as durable, in the same table with the same indexes."""

import json
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from .children import Child
from .tables import describe_machine, table

BATCH = 100
