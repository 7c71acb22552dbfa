"""What programs that the daemon starts see of its environment."""

import os

# These speak to the daemon itself: a child that has them could speak in its name, or listen on its descriptors.
_OURS = ("NOTIFY_SOCKET", "WATCHDOG_", "LISTEN_", "INVOCATION_ID", "JOURNAL_STREAM", "GRPC_")


def for_children(**added: str) -> dict[str, str]:
    """Return the daemon's environment without what a service manager gave to it alone, and with *added*."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_OURS)} | added
