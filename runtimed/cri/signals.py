"""Stop signals: of a request, of an image, as numbers and as CRI's names."""

import re
import signal

from runtimed.api import cri_pb2 as pb
from runtimed.errors import InvalidArgument
from runtimed.oci.manifest import Execution

_REALTIME = re.compile(r"SIG(RTMIN|RTMAX)(?:([+-])([0-9]{1,2}))?")


def stop_signal(config: pb.ContainerConfig, image: Execution) -> int:
    """Return what a container is to be stopped with: the request's signal, the image's, else SIGTERM.

    Raises:
        InvalidArgument: not a signal.
    """
    if config.stop_signal:
        name = pb.Signal.Name(config.stop_signal)
        return number(name.replace("PLUS", "+").replace("MINUS", "-"))
    return number(image.stop_signal) if image.stop_signal else signal.SIGTERM


def number(text: str) -> int:
    """Return the number of a signal like ``SIGTERM``, ``TERM``, ``15`` or ``SIGRTMIN+3``. Raises InvalidArgument."""
    name = text.upper()
    if name.isascii() and name.isdigit() and len(name) <= 2:
        found = int(name)
    else:
        name = name if name.startswith("SIG") else f"SIG{name}"
        realtime = _REALTIME.fullmatch(name)
        if realtime:
            base, sign, offset = realtime.groups()
            found = signal.SIGRTMIN if base == "RTMIN" else signal.SIGRTMAX
            found += int(offset or 0) * (-1 if sign == "-" else 1)
            if not signal.SIGRTMIN <= found <= signal.SIGRTMAX:
                found = 0
        else:
            found = int(getattr(signal.Signals, name, 0) or {"SIGSTKFLT": 16, "SIGIOT": 6}.get(name, 0))
    if not 1 <= found <= signal.SIGRTMAX:
        raise InvalidArgument(f"stop signal {text[:32]!r} is not a signal")
    return found


def cri_signal(text: str) -> int:
    """Return the value of CRI's enumeration Signal for a signal's name or number. Raises InvalidArgument."""
    value = number(text)
    if value < signal.SIGRTMIN:
        return int(pb.Signal.Value(signal.Signals(value).name)) if value != 16 else int(pb.Signal.Value("SIGSTKFLT"))
    above, below = value - signal.SIGRTMIN, signal.SIGRTMAX - value
    if above <= 15:
        return int(pb.Signal.Value("SIGRTMIN" + (f"PLUS{above}" if above else "")))
    return int(pb.Signal.Value("SIGRTMAX" + (f"MINUS{below}" if below else "")))
