"""A TCP proxy before the server. It counts the connections of an app, and can cut them in the middle of data."""

import contextlib
import socket
import threading

from ..ports import free_port


class Proxy:
    def __init__(self, target: int) -> None:
        self.opened = 0
        self._is_unreachable = False
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self._target = target
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Cut all connections, even in the middle of a message. New ones are accepted."""
        cut, self._open = self._open, []
        for end in cut:
            shut(end)

    def leave(self) -> None:
        """Cut all connections, including new ones, until ``come_back``."""
        self._is_unreachable = True
        self.cut()

    def come_back(self) -> None:
        self._is_unreachable = False

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self._is_unreachable:
                near.close()
                continue
            self.opened += 1
            far = socket.create_connection(("127.0.0.1", self._target))
            self._open += [near, far]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=pump, args=(source, sink), daemon=True).start()


def pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    shut(source)
    shut(sink)


def shut(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
