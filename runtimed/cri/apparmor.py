"""AppArmor: the default profile in our own words, and whether one is loaded."""

import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

from runtimed.errors import FailedPrecondition, InvalidArgument, NotFound

DEFAULT_NAME = "runtimed-default"
_ENABLED = Path("/sys/module/apparmor/parameters/enabled")
_PROFILES = Path("/sys/kernel/security/apparmor/profiles")
_NAME = re.compile(r"[^\x00-\x1f\x7f]{1,255}")
_LIMIT_S = 30

# What a container has no business with: other processes' memory outside it, the kernel's settings, mounts. File names
# under /proc and /sys stand here as well as in the masked paths, for containers whose paths are not masked.
_TEXT = f"""\
#include <tunables/global>

profile {DEFAULT_NAME} flags=(attach_disconnected,mediate_deleted) {{
  #include <abstractions/base>

  network,
  capability,
  file,
  umount,

  # Signals from the host's side (runc, the shim), and among containers of this profile.
  signal (receive) peer=unconfined,
  signal (receive) peer=runc,
  signal (receive) peer=crun,
  signal (send,receive) peer={DEFAULT_NAME},
  ptrace (trace,read,tracedby,readby) peer={DEFAULT_NAME},

  deny mount,

  deny @{{PROC}}/sysrq-trigger rwklx,
  deny @{{PROC}}/kcore rwklx,
  deny @{{PROC}}/kmem rwklx,
  deny @{{PROC}}/mem rwklx,
  # Of /proc a process may write to its own files, and of /proc/sys to what IPC and the network namespace have.
  deny @{{PROC}}/* wklx,
  deny @{{PROC}}/{{acpi,asound,bus,driver,dynamic_debug,fs,irq,pressure,scsi,tty}}/** wklx,
  deny @{{PROC}}/sys/{{abi,crypto,debug,dev,sunrpc,user,vm}}/** wklx,
  deny @{{PROC}}/sys/fs/[^m]** wklx,
  deny @{{PROC}}/sys/kernel/{{[^ms]**,m[^s]**,s[^eh]**}} wklx,

  deny /sys/firmware/** rwklx,
  deny /sys/devices/virtual/powercap/** rwklx,
  deny /sys/kernel/security/** rwklx,
  deny /sys/[^fdck]*/** wklx,
  deny /sys/fs/[^c]*/** wklx,
  deny /sys/fs/c[^g]*/** wklx,
}}
"""


@cache
def is_enabled() -> bool:
    """Say whether the kernel confines processes by AppArmor."""
    try:
        return _ENABLED.read_text().startswith("Y")
    except OSError:
        return False


def can_load() -> bool:
    """Say whether there is the default profile, or apparmor_parser(8), which many small systems lack, to load it."""
    return bool(shutil.which("apparmor_parser")) or DEFAULT_NAME in _loaded()


def default() -> str:
    """Return the name of the default profile, which is loaded if it is not. Blocks.

    Raises:
        FailedPrecondition: apparmor_parser(8) is missing or did not take it.
    """
    if DEFAULT_NAME not in _loaded():
        try:
            subprocess.run(
                ["apparmor_parser", "-Kr"], input=_TEXT.encode(), capture_output=True, check=True, timeout=_LIMIT_S
            )
        except FileNotFoundError:
            raise FailedPrecondition(
                "the default AppArmor profile is asked for, but apparmor_parser is not installed (package apparmor)"
            ) from None
        except subprocess.CalledProcessError as exc:
            raise FailedPrecondition(f"apparmor_parser: {exc.stderr.decode(errors='replace')[:500].strip()}") from None
        except subprocess.TimeoutExpired:
            raise FailedPrecondition(f"apparmor_parser took more than {_LIMIT_S} s") from None
    return DEFAULT_NAME


def loaded(name: str) -> str:
    """Return *name*, of a profile that somebody has loaded.

    Raises:
        InvalidArgument: not a name.
        FailedPrecondition: AppArmor is not there.
        NotFound: no such profile.
    """
    if not _NAME.fullmatch(name):
        raise InvalidArgument(f"AppArmor profile {name[:128]!r} is not a name")
    if not is_enabled():
        raise FailedPrecondition(f"AppArmor profile {name!r} is asked for, but this kernel has no AppArmor")
    if name not in _loaded():
        raise NotFound(f"AppArmor profile {name!r} is not loaded")
    return name


def _loaded() -> set[str]:
    """Return the names in lines like ``name (enforce)``."""
    try:
        return {line.rpartition(" (")[0] for line in _PROFILES.read_text().splitlines()}
    except OSError:
        return set()
