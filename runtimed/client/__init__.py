"""A typed, asynchronous client of the API of runtimed and containerd: docs/client.md.

async with runtimed.client.connect("/run/runtimed/runtimed.sock", namespace="default") as client:
    await client.images.pull("busybox")
    done = await client.containers.run("busybox", ["echo", "hello"])

What it returns are the dataclasses of :mod:`runtimed.client.records`, what it raises the errors of
:mod:`runtimed.errors`. Nothing else is imported here: what is not asked for is not loaded.
"""

from runtimed.client.client import Client, connect
from runtimed.client.connection import DaemonLost

__all__ = ["Client", "DaemonLost", "connect"]
