"""The disk of test_cut.py, spoken to by hand: what is flushed stays, and of the rest a cut takes a part."""

import random
import socket
import struct
from pathlib import Path

import pytest

from tests.vm.volatile import SECTOR, VolatileDisk, served

_GO = struct.pack(">QIIIH", 0x49484156454F5054, 7, 6, 0, 0)
_READ, _WRITE, _DISCONNECT, _FLUSH, _FUA = 0, 1, 2, 3, 1


class Client:
    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        assert self._receive(18).startswith(b"NBDMAGICIHAVEOPT")
        self._socket.sendall(struct.pack(">I", 1) + _GO)
        info, ack = self._receive(20 + 12), self._receive(20)
        assert struct.unpack(">HQH", info[20:])[1] == 100 * SECTOR
        assert struct.unpack(">QIII", ack)[2] == 1

    def ask(self, kind: int, sector: int = 0, data: bytes = b"", length: int = 0, flags: int = 0) -> bytes:
        size = len(data) or length
        self._socket.sendall(struct.pack(">IHHQQI", 0x25609513, flags, kind, 7, sector * SECTOR, size) + data)
        assert struct.unpack(">IIQ", self._receive(16)) == (0x67446698, 0, 7)
        return self._receive(length)

    def close(self) -> None:
        self._socket.close()

    def _receive(self, length: int) -> bytes:
        return self._socket.recv(length, socket.MSG_WAITALL) if length else b""


@pytest.fixture
def medium(tmp_path: Path) -> Path:
    path = tmp_path / "medium"
    path.write_bytes(bytes(100 * SECTOR))
    return path


def test_what_was_flushed_stays_and_a_cut_takes_some_of_the_rest(medium: Path, tmp_path: Path):
    disk = VolatileDisk(medium, random.Random(1))
    with served(disk, tmp_path / "s"):
        client = Client(tmp_path / "s")
        client.ask(_WRITE, 0, b"a" * 10 * SECTOR)
        assert client.ask(_READ, 8, length=4 * SECTOR) == b"a" * 2 * SECTOR + bytes(2 * SECTOR)
        assert medium.read_bytes() == bytes(100 * SECTOR)
        client.ask(_FLUSH)
        client.ask(_WRITE, 20, b"b" * SECTOR, flags=_FUA)
        client.ask(_WRITE, 40, b"c" * 50 * SECTOR)
        client.close()
    disk.close()
    found = medium.read_bytes()
    assert found[: 10 * SECTOR] == b"a" * 10 * SECTOR
    assert found[20 * SECTOR : 21 * SECTOR] == b"b" * SECTOR
    sectors = {found[at : at + SECTOR] for at in range(40 * SECTOR, 90 * SECTOR, SECTOR)}
    assert sectors == {b"c" * SECTOR, bytes(SECTOR)}
    assert 0 < disk.lost < 50
