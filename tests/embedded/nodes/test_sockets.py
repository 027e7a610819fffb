"""The directory of sockets: for the user alone, and found by the database's path."""

import asyncio
import logging
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import cast

import msgspec
import pytest
import urllib3

from durably import Embedded
from durably.cli.client import SocketPool
from durably.embedded.nodes import link, sockets
from durably.embedded.nodes.sockets import ProtocolDetector
from durably.engine.model.logs import SparseLog
from durably.protocol.engine_errors import DatabasePathError, EngineError


def test_sockets_are_next_to_the_database_if_the_path_is_short(tmp_path: Path) -> None:
    database = Path("/srv/app/durably.db")
    assert sockets.directory_of(database) == Path("/srv/app/durably.db.sockets")


def test_a_path_that_is_too_long_for_a_socket(tmp_path: Path) -> None:
    directory = sockets.directory_of(tmp_path / ("long" * 40) / "durably.db")
    sockets.make_directory(directory)
    path = sockets.path_of(directory, 2**63)
    with sockets.listen(path) as listener, socket.socket(socket.AF_UNIX) as connection:
        with sockets.address_of(path) as address:
            connection.connect(address)
        listener.setblocking(True)
        listener.accept()[0].close()
    assert path.stat().st_mode & 0o777 == 0o600
    sockets.remove_older(directory, 2**64)
    directory.rmdir()


@pytest.mark.skipif(sys.platform == "linux", reason="on Linux it is always beside the database")
def test_elsewhere_where_the_path_is_too_long_for_a_socket(tmp_path: Path) -> None:
    database = tmp_path / ("long" * 40) / "durably.db"
    directory = sockets.directory_of(database)
    assert directory != sockets.directory_of(database.with_name("other.db"))


def test_the_newest_is_that_of_the_highest_epoch(tmp_path: Path) -> None:
    assert sockets.newest(tmp_path / "none") is None
    assert sockets.newest(tmp_path) is None
    for name in ("9", "10", "2", "other"):
        (tmp_path / name).touch()
    assert sockets.newest(tmp_path) == tmp_path / "10"
    sockets.remove_older(tmp_path, 10)
    assert sorted(os.listdir(tmp_path)) == ["10", "other"]


def test_a_directory_that_others_can_enter_is_refused(tmp_path: Path) -> None:
    directory = tmp_path / "sockets"
    sockets.make_directory(directory)
    assert directory.stat().st_mode & 0o777 == 0o700
    directory.chmod(0o755)
    with pytest.raises(EngineError, match="mode 700"):
        sockets.make_directory(directory)


def test_symbolic_link_in_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir(mode=0o700)
    (tmp_path / "sockets").symlink_to(tmp_path / "target")
    with pytest.raises(EngineError, match="must be a directory"):
        sockets.make_directory(tmp_path / "sockets")


class Recorder(asyncio.Protocol):
    """Answers with its name and what it has received."""

    def __init__(self, name: bytes) -> None:
        self._name = name

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._transport.write(self._name + data)


async def test_first_byte_of_a_connection_chooses_frames_or_http(tmp_path: Path) -> None:
    """HTTP waits until the engine can answer."""
    loop = asyncio.get_running_loop()
    make_http: asyncio.Future[Callable[[], asyncio.Protocol]] = loop.create_future()
    path = tmp_path / "1"
    server = await loop.create_unix_server(
        lambda: ProtocolDetector(lambda: Recorder(b"frames"), make_http, set()), sock=sockets.listen(path)
    )
    async with server:
        http, link = [await asyncio.open_unix_connection(path) for _ in range(2)]
        http[1].write(b"GET /")
        link[1].write(b"\0\0\0\1")
        assert await link[0].readexactly(10) == b"frames\0\0\0\1"
        http[1].write(b"ready")
        make_http.set_result(lambda: Recorder(b"http"))
        assert (await http[0].readexactly(9)).startswith(b"httpGET /")
        for _, writer in (http, link):
            writer.close()
            await writer.wait_closed()


async def test_leader_has_one_socket(tmp_path: Path) -> None:
    engine = Embedded(tmp_path / "durably.db")
    async with engine.running():
        directory = sockets.directory_of(engine.path)
        assert [path.name for path in directory.iterdir() if path.is_socket()] == ["1"]
    assert not [path for path in directory.iterdir() if path.is_socket()]


def test_command_line_refuses_a_directory_that_others_can_enter(tmp_path: Path) -> None:
    database = tmp_path / "durably.db"
    database.touch()
    directory = sockets.directory_of(database)
    sockets.make_directory(directory)
    with sockets.listen(sockets.path_of(directory, 1)):
        SocketPool(database, urllib3.Timeout(1)).close()
        directory.chmod(0o777)
        with pytest.raises(EngineError, match="mode 700"):
            SocketPool(database, urllib3.Timeout(1))


async def test_connections_that_send_nothing_end_with_the_leader(tmp_path: Path) -> None:
    engine = Embedded(tmp_path / "durably.db")
    async with engine.running():
        path = sockets.path_of(sockets.directory_of(engine.path), 1)
        reader, writer = await asyncio.open_unix_connection(path)
        with socket.socket(
            socket.AF_UNIX
        ) as probe:  # The leader has accepted the previous connection when this one is answered.
            probe.connect(str(path))
            probe.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            await asyncio.get_running_loop().run_in_executor(None, probe.recv, 1)
    assert await reader.read() == b""
    writer.close()


async def test_silent_connections_are_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "SILENT_SECONDS", 0.01)
    async with Embedded(tmp_path / "durably.db").running():
        reader, writer = await asyncio.open_unix_connection(
            sockets.path_of(sockets.directory_of(tmp_path / "durably.db"), 1)
        )
        assert await reader.read() == b""
        writer.close()


_frame = msgspec.msgpack.encode
GARBAGE = [
    b"\0\0\0\4\xc1\xc1\xc1\xc1",
    b"\0\0\0\1\x93",
    b"\0\0\0\0",
    (lambda frame: len(frame).to_bytes(4) + frame)(_frame([99, 0, "", b""])),
    (lambda frame: len(frame).to_bytes(4) + frame)(_frame({"kind": 0})),
    b"\0\xff\xff\xff\xff\xff\xff",
]


@pytest.mark.parametrize("garbage", GARBAGE)
async def test_garbage_closes_its_connection_alone(
    tmp_path: Path, garbage: bytes, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "_log", SparseLog(logging.getLogger("durably.engine")))
    engine = Embedded(tmp_path / "durably.db")
    async with engine.running():
        reader, writer = await asyncio.open_unix_connection(sockets.path_of(sockets.directory_of(engine.path), 1))
        writer.write(garbage)
        writer.write_eof()
        while await reader.read(1024):
            pass
        writer.close()
        assert await engine.list_functions() == []
    assert [record.name for record in caplog.records if record.exc_info or record.levelno >= logging.ERROR] == []


async def test_garbage_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "_log", SparseLog(logging.getLogger("durably.engine")))
    engine = Embedded(tmp_path / "durably.db")
    async with engine.running():
        for _ in range(3):
            reader, writer = await asyncio.open_unix_connection(sockets.path_of(sockets.directory_of(engine.path), 1))
            writer.write(GARBAGE[0])
            while await reader.read(1024):
                pass
            writer.close()
    [line] = [record.getMessage() for record in caplog.records if "invalid frame" in record.getMessage()]
    assert line.startswith("a connection was closed")


AS_NOBODY = """
import os, socket, sys
os.setgid(65534)
os.setuid(65534)
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect(sys.argv[1])
    try:
        connection.sendall(bytes.fromhex(sys.argv[2]))
        print("answered" if connection.recv(1) else "closed")
    except OSError:
        print("closed")
"""


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize(
    "sent", [b"GET /v1/runs HTTP/1.1\r\nHost: localhost\r\n\r\n", b"\0\0\0\6\x94\x04\x00\xa0\xc4\x00"]
)
async def test_other_user_gets_no_answer_even_if_modes_permit_it(sent: bytes) -> None:
    with tempfile.TemporaryDirectory() as made:
        engine = Embedded(Path(made) / "durably.db")
        async with engine.running():
            directory = sockets.directory_of(engine.path)
            path = sockets.path_of(directory, 1)
            for opened in (Path(made), directory, path):
                opened.chmod(0o777)
            program = [sys.executable, "-S", "-c", AS_NOBODY, str(path), sent.hex()]
            result = await asyncio.to_thread(subprocess.run, program, capture_output=True, text=True, check=False)
            directory.chmod(0o700)
    assert result.stdout == "closed\n", result.stderr


def test_a_directory_that_cannot_be_made_is_named_with_the_remedy(tmp_path: Path) -> None:
    directory = Path("/proc/nowhere/durably.db.sockets")
    with pytest.raises(DatabasePathError, match=r"durably\.db\.sockets .* give the user of this process the right"):
        sockets.make_directory(directory)
