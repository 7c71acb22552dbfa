"""Telling a service manager how we are (sd_notify(3))."""

import os
import socket
from contextlib import suppress


def notify(*assignments: str) -> None:
    """Send *assignments* (``READY=1``) to ``$NOTIFY_SOCKET``; without one, or without a listener, do nothing."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):  # an abstract socket
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock, suppress(OSError):
        sock.connect(address)
        sock.send("\n".join(assignments).encode())
