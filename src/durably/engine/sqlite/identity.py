"""Whether a file is a database of Durably, without opening it.

SQLite changes a database that it opens: it writes a log beside it, and applies one that is there. This module reads
the first page, from the file or from its write-ahead log, and writes nothing. The layout is SQLite's, "Database File
Format": the header of the database in section 1.3, b-tree pages in 1.6, the write-ahead log in 4.
"""

import contextlib
from pathlib import Path
from typing import BinaryIO

from durably.protocol.engine_errors import DatabaseCorruptError

APPLICATION_ID = 0x44524259
"""The ``application_id`` of the file: "DRBY". It distinguishes the file from other programs' databases."""

_MAGIC = b"SQLite format 3\0"
_LOG_MAGICS = (0x377F0682, 0x377F0683)
_APPLICATION_ID = slice(68, 72)
_CELLS = slice(103, 105)
"""The number of tables and indexes on the first page, which is the root of the schema."""
_INTERIOR_PAGE = 5
_PAGE_START = 108
"""Bytes of the first page that are read: its two headers."""
_LOG_HEADER = 32
_FRAME_HEADER = 24


def refuse_foreign(path: Path) -> None:
    """Raise ``DatabaseCorruptError`` for a file that another program wrote.

    A missing or empty file passes. So does one that cannot be read: the error of its opening says more.
    """
    try:
        page = _first_page(path)
    except OSError:
        return
    if not page:
        return
    if not page.startswith(_MAGIC):
        raise DatabaseCorruptError(
            f"the database {path} cannot be opened: file is not a database; give the engine a file of its own"
        )
    if _number(page[_APPLICATION_ID]) == APPLICATION_ID:
        return
    with contextlib.suppress(FileNotFoundError):
        page = _newest_first_page(path.with_name(f"{path.name}-wal")) or page
    if not _is_ours(page):
        raise DatabaseCorruptError(f"{path} is a SQLite database of another program; give the engine a file of its own")


def _is_ours(page: bytes) -> bool:
    """Whether the first page is that of Durably's or of an empty database."""
    application = _number(page[_APPLICATION_ID])
    has_tables = page[100:101] == bytes([_INTERIOR_PAGE]) or _number(page[_CELLS]) > 0
    return application == APPLICATION_ID or (application == 0 and not has_tables)


def _first_page(path: Path) -> bytes:
    if not path.is_file():
        return b""
    with path.open("rb") as file:
        return file.read(_PAGE_START)


def _newest_first_page(log: Path) -> bytes:
    """The newest first page in a write-ahead log; empty if it has none.

    Transactions without an end do not count.
    """
    newest = candidate = b""
    with log.open("rb") as file:
        header = file.read(_LOG_HEADER)
        if len(header) < _LOG_HEADER or _number(header[:4]) not in _LOG_MAGICS:
            return b""
        page_size, salts = _number(header[8:12]), header[16:24]
        while frame := _read_frame(file, page_size, salts):
            number, is_commit, page = frame
            candidate = page if number == 1 else candidate
            newest = candidate if is_commit else newest
    return newest


def _read_frame(file: BinaryIO, page_size: int, salts: bytes) -> tuple[int, bool, bytes] | None:
    """A page's number, whether it ends a transaction, and its start.

    ``None`` at the end of the log.
    """
    header = file.read(_FRAME_HEADER)
    if len(header) < _FRAME_HEADER or header[8:16] != salts:  # Frames of an earlier log follow the last one.
        return None
    page = file.read(_PAGE_START)
    file.seek(page_size - len(page), 1)
    return _number(header[:4]), _number(header[4:8]) > 0, page


def _number(data: bytes) -> int:
    return int.from_bytes(data, "big")
