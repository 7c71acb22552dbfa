"""Seccomp: the default filter in our own words, and filters from files.

The default one lets through what ordinary programs call and answers EPERM to the rest. System calls are listed by what
they are for; those that need a capability are there if the container has it. Names that a machine's architecture does
not have are passed over by the runtime.
"""

import errno
import os
import stat
from collections.abc import Collection
from pathlib import Path

import msgspec

from runtimed.api import cri_pb2 as pb
from runtimed.errors import InvalidArgument, os_errors
from runtimed.oci.runtime_spec import Seccomp, SyscallArg, Syscalls

_MAX_FILE = 1 << 20  # bytes
_ALLOW, _ERRNO = "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO"

_FILES = """
    access chdir chmod chown chown32 close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2
    fadvise64 fadvise64_64 fallocate fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64 fdatasync
    fgetxattr flistxattr flock fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate
    ftruncate64 futimesat getcwd getdents getdents64 getxattr getxattrat inotify_add_watch inotify_init inotify_init1
    inotify_rm_watch lchown lchown32 lgetxattr link linkat listxattr listxattrat llistxattr _llseek lremovexattr lseek
    lsetxattr lstat lstat64 mkdir mkdirat mknod mknodat name_to_handle_at newfstatat open openat openat2 oldfstat
    oldlstat oldstat pread64 preadv preadv2 pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv
    removexattr removexattrat rename renameat renameat2 rmdir sendfile sendfile64 setxattr setxattrat splice stat
    stat64 statfs statfs64 statx symlink symlinkat sync sync_file_range sync_file_range2 arm_sync_file_range syncfs tee
    truncate truncate64 umask unlink unlinkat utime utimensat utimensat_time64 utimes vmsplice write writev ioctl
"""
_MEMORY = """
    brk get_mempolicy madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mlock mlock2 mlockall mmap
    mmap2 mprotect mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect process_madvise
    process_mrelease remap_file_pages cachestat
"""
_PROCESSES = """
    capget capset execve execveat exit exit_group fork getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups
    getgroups32 getpgid getpgrp getpid getppid getpriority getresgid getresgid32 getresuid getresuid32 getrlimit
    getrusage getsid gettid getuid getuid32 ioprio_get ioprio_set kill landlock_add_rule landlock_create_ruleset
    landlock_restrict_self pidfd_open pidfd_send_signal pidfd_getfd prctl prlimit64 process_vm_readv process_vm_writev
    ptrace rseq seccomp set_robust_list get_robust_list set_tid_address set_thread_area get_thread_area setfsgid
    setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setpgid setpriority setregid setregid32
    setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit setsid setuid setuid32 tgkill tkill
    ugetrlimit vfork wait4 waitid waitpid uretprobe kcmp
    sched_getaffinity sched_getattr sched_getparam sched_get_priority_max sched_get_priority_min sched_getscheduler
    sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam
    sched_setscheduler sched_yield getcpu
"""
_SIGNALS = """
    alarm pause restart_syscall rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend
    rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sigaltstack signal sigaction signalfd signalfd4 sigpending
    sigprocmask sigreturn sigsuspend
"""
_TIME = """
    adjtimex clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64
    clock_nanosleep clock_nanosleep_time64 getitimer gettimeofday nanosleep setitimer time timer_create timer_delete
    timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64 timer_getoverrun timer_gettime
    timer_gettime64 timer_settime timer_settime64 times
"""
_WAITING = """
    epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd
    eventfd2 futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake io_cancel io_destroy io_getevents
    io_pgetevents io_pgetevents_time64 io_setup io_submit poll ppoll ppoll_time64 pselect6 pselect6_time64 select
    _newselect
"""
_IPC = """
    ipc mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64
    mq_unlink msgctl msgget msgrcv msgsnd pipe pipe2 semctl semget semop semtimedop semtimedop_time64 shmat shmctl shmdt
    shmget
"""
_SOCKETS = """
    accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmmsg recvmmsg_time64
    recvmsg send sendmmsg sendmsg sendto setsockopt shutdown socketcall socketpair
"""
_SYSTEM = """
    arch_prctl getrandom modify_ldt sysinfo uname arm_fadvise64_64 breakpoint cacheflush set_tls riscv_flush_icache
    fanotify_mark statmount listmount lsm_get_self_attr lsm_set_self_attr lsm_list_modules
"""
_BASE = " ".join((_FILES, _MEMORY, _PROCESSES, _SIGNALS, _TIME, _WAITING, _IPC, _SOCKETS, _SYSTEM))

# capability -> what only makes sense with it
_WITH = {
    "CAP_BPF": "bpf",
    "CAP_DAC_READ_SEARCH": "open_by_handle_at",
    "CAP_PERFMON": "perf_event_open",
    "CAP_SYS_ADMIN": """
        bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount mount_setattr move_mount
        open_tree open_tree_attr perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog umount
        umount2 unshare
    """,
    "CAP_SYS_BOOT": "reboot",
    "CAP_SYS_CHROOT": "chroot",
    "CAP_SYS_MODULE": "delete_module init_module finit_module",
    "CAP_SYS_NICE": "get_mempolicy mbind set_mempolicy set_mempolicy_home_node move_pages migrate_pages",
    "CAP_SYS_PACCT": "acct",
    "CAP_SYS_PTRACE": "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace",
    "CAP_SYS_RAWIO": "iopl ioperm",
    "CAP_SYS_TIME": "settimeofday stime clock_settime clock_settime64",
    "CAP_SYS_TTY_CONFIG": "vhangup",
    "CAP_SYSLOG": "syslog",
}
_NEW_NAMESPACES = 0x7E020000  # CLONE_NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET
_AF_VSOCK = 40  # talks to the hypervisor
# PER_LINUX, PER_LINUX32, either with UNAME26, and "tell me".
_PERSONALITIES = (0x0, 0x0008, 0x20000, 0x20008, 0xFFFFFFFF)
_ARCHITECTURES = {
    "x86_64": ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"),
    "aarch64": ("SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"),
}


def seccomp_of(
    context: pb.LinuxContainerSecurityContext | pb.LinuxSandboxSecurityContext, capabilities: Collection[str]
) -> Seccomp | None:
    """Return the filter that is asked for; None for none, which is what a privileged container always has. Blocks.

    Raises:
        InvalidArgument: not a profile, or a file that holds none.
        NotFound: no such file.
    """
    if context.privileged:
        return None
    kinds = pb.SecurityProfile.ProfileType
    if context.HasField("seccomp"):
        kind, path = int(context.seccomp.profile_type), context.seccomp.localhost_ref
    else:
        kind, path = _old(context.seccomp_profile_path)
    if kind == kinds.Unconfined:
        return None
    if kind == kinds.Localhost:
        return _file(path.removeprefix("localhost/"))
    return default(capabilities)


def default(capabilities: Collection[str], machine: str | None = None) -> Seccomp:
    """Return the default filter for a container with *capabilities*; *machine* as uname(2) has it."""
    machine = machine or os.uname().machine
    names = set(_BASE.split())
    for capability in capabilities:
        names.update(_WITH.get(capability, "").split())
    rules = [Syscalls(names=tuple(sorted(names)), action=_ALLOW)]
    rules += [
        Syscalls(names=("personality",), action=_ALLOW, args=(SyscallArg(index=0, value=value, op="SCMP_CMP_EQ"),))
        for value in _PERSONALITIES
    ]
    not_vsock = SyscallArg(index=0, value=_AF_VSOCK, op="SCMP_CMP_NE")
    rules.append(Syscalls(names=("socket",), action=_ALLOW, args=(not_vsock,)))
    if "clone" not in names:
        no_namespace = SyscallArg(index=0, value=_NEW_NAMESPACES, value_two=0, op="SCMP_CMP_MASKED_EQ")
        rules.append(Syscalls(names=("clone",), action=_ALLOW, args=(no_namespace,)))
        # Its flags are in memory, where a filter cannot look; C libraries then take clone.
        rules.append(Syscalls(names=("clone3",), action=_ERRNO, errno_ret=errno.ENOSYS))
    return Seccomp(
        default_action=_ERRNO,
        default_errno_ret=errno.EPERM,
        architectures=_ARCHITECTURES.get(machine, ()),
        syscalls=tuple(rules),
    )


def _old(path: str) -> tuple[int, str]:
    """Return kind and file of the deprecated field."""
    kinds = pb.SecurityProfile.ProfileType
    match path:
        case "" | "unconfined":
            return kinds.Unconfined, ""
        case "runtime/default" | "docker/default":
            return kinds.RuntimeDefault, ""
    if path.startswith("localhost/"):
        return kinds.Localhost, path
    raise InvalidArgument(f"seccomp profile {path[:128]!r} is not runtime/default, unconfined or localhost/PATH")


def _file(path: str) -> Seccomp:
    if not Path(path).is_absolute() or "\0" in path:
        raise InvalidArgument(f"seccomp profile {path[:128]!r} is not an absolute path")
    with os_errors(f"seccomp profile {path}"):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise InvalidArgument(f"seccomp profile {path} is not a file")
            data = file.read(_MAX_FILE + 1)
    if len(data) > _MAX_FILE:
        raise InvalidArgument(f"seccomp profile {path} is larger than {_MAX_FILE} bytes")
    try:
        return msgspec.json.decode(data, type=Seccomp)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise InvalidArgument(f"seccomp profile {path}: {exc}") from None
