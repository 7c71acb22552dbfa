"""A disk with a volatile cache: an NBD server that keeps what is written in memory until it is told to flush.

A real disk does so, and at a power cut has brought any part of it to the medium and not the rest, in sectors of 512
bytes. The protocol is NBD's fixed newstyle (doc/proto.md of its project), as much of it as qemu asks for.
"""

import random
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

SECTOR = 512

_HELLO = struct.pack(">QQH", 0x4E42444D41474943, 0x49484156454F5054, 1)  # NBDMAGIC, IHAVEOPT, fixed newstyle
_OPTION = struct.Struct(">QII")
_OPTION_REPLY = struct.Struct(">QIII")
_OPTION_REPLY_MAGIC = 0x3E889045565A9
_REQUEST = struct.Struct(">IHHQQI")
_REPLY = struct.Struct(">IIQ")
_REPLY_MAGIC = 0x67446698
_GO, _ABORT = 7, 2
_ACK, _INFO, _UNSUPPORTED = 1, 3, 1 << 31 | 1
_READ, _WRITE, _DISCONNECT, _FLUSH = range(4)
_FUA = 1  # of a request: on the medium before the answer
_FLAGS = 1 | 4 | 8  # flags are there, flush and FUA are understood
_INVALID = 22


class VolatileDisk:
    """The file *path* as a disk; one client at a time."""

    def __init__(self, path: Path, chance: random.Random) -> None:
        self._file = path.open("r+b", buffering=0)
        self._size = path.stat().st_size
        self._chance = chance
        self._cached: dict[int, bytes] = {}  # by sector: written and not flushed
        self.lost = 0  # sectors that cuts have taken

    def close(self) -> None:
        self._file.close()

    def cut(self) -> None:
        """The power goes: any part of what is cached has reached the medium, and the rest is lost."""
        kept = [sector for sector in self._cached if self._chance.random() < 0.5]
        self.lost += len(self._cached) - len(kept)
        self._flush(kept)
        self._cached.clear()

    def serve(self, connection: socket.socket) -> None:
        """Answer one client until it goes. Raises OSError, EOFError when it breaks off."""
        connection.sendall(_HELLO)
        _receive(connection, 4)
        while True:
            _, option, length = _OPTION.unpack(_receive(connection, _OPTION.size))
            _receive(connection, length)
            if option == _GO:
                export = struct.pack(">HQH", 0, self._size, _FLAGS)
                connection.sendall(_OPTION_REPLY.pack(_OPTION_REPLY_MAGIC, option, _INFO, len(export)) + export)
                connection.sendall(_OPTION_REPLY.pack(_OPTION_REPLY_MAGIC, option, _ACK, 0))
                break
            connection.sendall(_OPTION_REPLY.pack(_OPTION_REPLY_MAGIC, option, _UNSUPPORTED, 0))
            if option == _ABORT:
                return
        while True:
            _, flags, kind, handle, offset, length = _REQUEST.unpack(_receive(connection, _REQUEST.size))
            data, error = b"", 0
            if kind == _READ:
                data = self._read(offset, length)
            elif kind == _WRITE:
                self._write(offset, _receive(connection, length))
                if flags & _FUA:
                    self._flush(range(offset // SECTOR, -(-(offset + length) // SECTOR)))
            elif kind == _FLUSH:
                self._flush([*self._cached])
            elif kind == _DISCONNECT:
                self._flush([*self._cached])
                return
            else:
                error = _INVALID
            connection.sendall(_REPLY.pack(_REPLY_MAGIC, error, handle) + data)

    def _read(self, offset: int, length: int) -> bytes:
        self._file.seek(offset)
        data = bytearray(self._file.read(length).ljust(length, b"\0"))
        for sector in range(offset // SECTOR, (offset + length) // SECTOR):
            if (cached := self._cached.get(sector)) is not None:
                at = sector * SECTOR - offset
                data[at : at + SECTOR] = cached
        return bytes(data)

    def _write(self, offset: int, data: bytes) -> None:
        assert offset % SECTOR == len(data) % SECTOR == 0, "a disk takes whole sectors"
        for at in range(0, len(data), SECTOR):
            self._cached[(offset + at) // SECTOR] = data[at : at + SECTOR]

    def _flush(self, sectors: "list[int] | range") -> None:
        for sector in sectors:
            if (data := self._cached.pop(sector, None)) is not None:
                self._file.seek(sector * SECTOR)
                self._file.write(data)


@contextmanager
def served(disk: VolatileDisk, path: Path) -> Iterator[str]:
    """Hold the server of *disk* on the unix socket *path*; yield what qemu calls it. At the end the power is cut."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()

        def run() -> None:
            with suppress(OSError, EOFError):
                while True:
                    connection, _ = listener.accept()
                    with connection, suppress(EOFError, ConnectionError):
                        disk.serve(connection)

        thread = threading.Thread(target=run, name="disk")
        thread.start()
        try:
            yield f"nbd:unix:{path}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            disk.cut()
            path.unlink()


def _receive(connection: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        piece = connection.recv(length - len(data))
        if not piece:
            raise EOFError("the client has gone")
        data += piece
    return data
