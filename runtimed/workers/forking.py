"""What worker processes are forked from: it has loaded what they need, which takes longer than a small layer.

Its arguments are the directory of the code, the fd of a ``SOCK_SEQPACKET`` socket and the daemon's pid; see
:mod:`runtimed.workers.nursery`. A request is a packet with one descriptor, the socket that a new worker takes its jobs
from. What comes back are two numbers each, a pid and a status::

    (pid, 0)        with a pidfd: the new worker; or
    (0, errno)      there is none; requests are answered in their order
    (pid, status)   without: that worker has ended and is reaped

Workers end with this process, and this one with the daemon or when the socket closes.
"""

import gc
import os
import select
import signal
import socket
import struct
import sys
import traceback
from typing import NoReturn

from runtimed.workers import confinement, layer

MESSAGE = struct.Struct("<ii")


def main() -> None:
    """Fork workers until the daemon closes the socket."""
    _, _, fd, parent = sys.argv[:4]
    confinement.end_with_parent(int(parent))
    confinement.drop_privileges()
    os.umask(0o022)
    gc.disable()  # a job makes no cycles to speak of, but hundreds of thousands of objects
    gc.freeze()  # what is loaded stays shared
    with socket.socket(fileno=int(fd)) as requests:
        requests.set_inheritable(False)
        _serve(requests)


def _serve(requests: socket.socket) -> None:
    reaping, ended = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(ended, warn_on_full_buffer=False)
    own = (requests.fileno(), reaping, ended)
    try:
        while True:
            readable, _, _ = select.select(own[:2], [], [])
            if reaping in readable:
                os.read(reaping, select.PIPE_BUF)
                _reap(requests)
            if requests.fileno() in readable:
                data, given, _, _ = socket.recv_fds(requests, 1, 1)
                if not data:
                    return
                for control in given:
                    _fork(requests, control, own)
                    os.close(control)
    except ConnectionError:
        return


def _fork(requests: socket.socket, control: int, own: tuple[int, ...]) -> None:
    parent = os.getpid()
    try:
        pid = os.fork()
    except OSError as exc:
        requests.send(MESSAGE.pack(0, exc.errno or 0))
        return
    if pid == 0:
        _work(control, own, parent)
    pidfd = os.pidfd_open(pid)  # not reaped yet, so it is no other process
    try:
        socket.send_fds(requests, [MESSAGE.pack(pid, 0)], [pidfd])
    finally:
        os.close(pidfd)


def _work(control: int, own: tuple[int, ...], parent: int) -> NoReturn:
    """Be a worker, and never come back to the loop of the parent."""
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for fd in own:
            os.close(fd)
        confinement.end_with_parent(parent)
        with socket.socket(fileno=control) as jobs:
            jobs.set_inheritable(False)
            layer.serve(jobs)
        status = 0
    except ConnectionError:  # the daemon has closed the socket before the answer
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _reap(requests: socket.socket) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        requests.send(MESSAGE.pack(pid, os.waitstatus_to_exitcode(status)))
