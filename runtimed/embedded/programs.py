"""The two programs of the embedded images, as commented tables of machine code.

Each row is an optional label, the bytes in hex, and what they mean. ``{kind label}`` in the bytes is a distance to a
label, filled in by :func:`assemble`: ``rel8`` and ``rel32`` are x86-64's (from the end of the instruction), ``b19``,
``b26`` and ``adr`` are arm64's, for which a row is one 32-bit instruction word. Data rows are plain bytes on both.

At entry the stack holds argc, argv[0], argv[1], ... (System V ABI, "Process Initialization"). Numbers of system calls:
x86-64 from ``arch/x86/entry/syscalls/syscall_64.tbl``, arm64 from ``include/uapi/asm-generic/unistd.h``.
"""

import re
import struct
from collections.abc import Sequence

Row = tuple[str, str, str]  # label or "", bytes in hex, meaning

GREETING = b"hello from a runtimed container\n"

# write(1, greeting, length); exit_group(argc < 2 ? 0 : decimal(argv[1]))
_HELLO_AMD64: list[Row] = [
    ("", "b8 01000000", "mov eax, 1                write"),
    ("", "89 c7", "mov edi, eax              standard output"),
    ("", "48 8d 35 {rel32 text}", "lea rsi, [text]"),
    ("", f"ba {len(GREETING).to_bytes(4, 'little').hex()}", "mov edx, length"),
    ("", "0f 05", "syscall"),
    ("", "31 ff", "xor edi, edi              the status, so far"),
    ("", "48 83 3c 24 02", "cmp qword [rsp], 2        argc"),
    ("", "7c {rel8 exit}", "jl exit"),
    ("", "48 8b 74 24 10", "mov rsi, [rsp + 16]       argv[1]"),
    ("digit", "0f b6 06", "movzx eax, byte [rsi]"),
    ("", "83 e8 30", "sub eax, '0'"),
    ("", "83 f8 09", "cmp eax, 9"),
    ("", "77 {rel8 exit}", "ja exit                   no digit: the number ends"),
    ("", "6b ff 0a", "imul edi, edi, 10"),
    ("", "01 c7", "add edi, eax"),
    ("", "48 ff c6", "inc rsi"),
    ("", "eb {rel8 digit}", "jmp digit"),
    ("exit", "b8 e7000000", "mov eax, 231              exit_group"),
    ("", "0f 05", "syscall"),
    ("text", GREETING.hex(), "the greeting"),
]

_HELLO_ARM64: list[Row] = [
    ("", "d2800808", "mov x8, #64               write"),
    ("", "d2800020", "mov x0, #1                standard output"),
    ("", "10000001 {adr text}", "adr x1, text"),
    ("", f"{0xD2800002 | len(GREETING) << 5:08x}", "mov x2, #length"),
    ("", "d4000001", "svc #0"),
    ("", "d2800000", "mov x0, #0                the status, so far"),
    ("", "f94003e9", "ldr x9, [sp]              argc"),
    ("", "f100093f", "cmp x9, #2"),
    ("", "5400000b {b19 exit}", "b.lt exit"),
    ("", "f9400be1", "ldr x1, [sp, #16]         argv[1]"),
    ("", "52800143", "mov w3, #10"),
    ("digit", "38401422", "ldrb w2, [x1], #1"),
    ("", "5100c042", "sub w2, w2, #'0'"),
    ("", "7100245f", "cmp w2, #9"),
    ("", "54000008 {b19 exit}", "b.hi exit                 no digit: the number ends"),
    ("", "1b030800", "madd w0, w0, w3, w2"),
    ("", "14000000 {b26 digit}", "b digit"),
    ("exit", "d2800bc8", "mov x8, #94               exit_group"),
    ("", "d4000001", "svc #0"),
    ("text", GREETING.hex(), "the greeting"),
]

# Block TERM, INT and CHLD, so that they queue up also for a PID 1 with no handlers (signal(7), "pid_namespaces"), and
# take them one by one: TERM and INT end it, CHLD (or anything else) reaps every child that has ended.
_SIGNALS = (1 << (15 - 1) | 1 << (2 - 1) | 1 << (17 - 1)).to_bytes(8, "little").hex()

_PAUSE_AMD64: list[Row] = [
    ("", "b8 0e000000", "mov eax, 14               rt_sigprocmask"),
    ("", "31 ff", "xor edi, edi              SIG_BLOCK"),
    ("", "48 8d 35 {rel32 signals}", "lea rsi, [signals]"),
    ("", "31 d2", "xor edx, edx              no old set"),
    ("", "41 ba 08000000", "mov r10d, 8               bytes in a set"),
    ("", "0f 05", "syscall"),
    ("wait", "b8 80000000", "mov eax, 128              rt_sigtimedwait"),
    ("", "48 8d 3d {rel32 signals}", "lea rdi, [signals]"),
    ("", "31 f6", "xor esi, esi              no siginfo"),
    ("", "31 d2", "xor edx, edx              no time limit"),
    ("", "41 ba 08000000", "mov r10d, 8"),
    ("", "0f 05", "syscall"),
    ("", "83 f8 02", "cmp eax, SIGINT"),
    ("", "74 {rel8 end}", "je end"),
    ("", "83 f8 0f", "cmp eax, SIGTERM"),
    ("", "74 {rel8 end}", "je end"),
    ("reap", "b8 3d000000", "mov eax, 61               wait4"),
    ("", "bf ffffffff", "mov edi, -1               any child"),
    ("", "31 f6", "xor esi, esi              no status"),
    ("", "ba 01000000", "mov edx, WNOHANG"),
    ("", "45 31 d2", "xor r10d, r10d            no rusage"),
    ("", "0f 05", "syscall"),
    ("", "85 c0", "test eax, eax"),
    ("", "7f {rel8 reap}", "jg reap                   one was reaped: is there another?"),
    ("", "eb {rel8 wait}", "jmp wait"),
    ("end", "b8 e7000000", "mov eax, 231              exit_group"),
    ("", "31 ff", "xor edi, edi"),
    ("", "0f 05", "syscall"),
    ("signals", _SIGNALS, "sigset_t: INT, TERM, CHLD"),
]

_PAUSE_ARM64: list[Row] = [
    ("", "d28010e8", "mov x8, #135              rt_sigprocmask"),
    ("", "d2800000", "mov x0, #0                SIG_BLOCK"),
    ("", "10000001 {adr signals}", "adr x1, signals"),
    ("", "d2800002", "mov x2, #0                no old set"),
    ("", "d2800103", "mov x3, #8                bytes in a set"),
    ("", "d4000001", "svc #0"),
    ("wait", "d2801128", "mov x8, #137              rt_sigtimedwait"),
    ("", "10000000 {adr signals}", "adr x0, signals"),
    ("", "d2800001", "mov x1, #0                no siginfo"),
    ("", "d2800002", "mov x2, #0                no time limit"),
    ("", "d2800103", "mov x3, #8"),
    ("", "d4000001", "svc #0"),
    ("", "7100081f", "cmp w0, #SIGINT"),
    ("", "54000000 {b19 end}", "b.eq end"),
    ("", "71003c1f", "cmp w0, #SIGTERM"),
    ("", "54000000 {b19 end}", "b.eq end"),
    ("reap", "d2802088", "mov x8, #260              wait4"),
    ("", "92800000", "mov x0, #-1               any child"),
    ("", "d2800001", "mov x1, #0                no status"),
    ("", "d2800022", "mov x2, #WNOHANG"),
    ("", "d2800003", "mov x3, #0                no rusage"),
    ("", "d4000001", "svc #0"),
    ("", "7100001f", "cmp w0, #0"),
    ("", "5400000c {b19 reap}", "b.gt reap                 one was reaped: is there another?"),
    ("", "14000000 {b26 wait}", "b wait"),
    ("end", "d2800bc8", "mov x8, #94               exit_group"),
    ("", "d2800000", "mov x0, #0"),
    ("", "d4000001", "svc #0"),
    ("signals", _SIGNALS, "sigset_t: INT, TERM, CHLD"),
]

_TABLES = {
    ("hello", "amd64"): _HELLO_AMD64,
    ("hello", "arm64"): _HELLO_ARM64,
    ("pause", "amd64"): _PAUSE_AMD64,
    ("pause", "arm64"): _PAUSE_ARM64,
}
_MACHINE = {"amd64": 62, "arm64": 183}  # e_machine
_BASE = 0x400000  # where the one segment is loaded
_HEADERS = 64 + 56  # ELF header and one program header

_DISTANCE = re.compile(r"\{(\w+) (\w+)\}")
_WIDTH = {"rel8": 1, "rel32": 4}


def program(name: str, architecture: str) -> bytes:
    """Return the static ELF executable of ``hello`` or ``pause`` for ``amd64`` or ``arm64``."""
    code = assemble(_TABLES[name, architecture], words=architecture == "arm64")
    size = _HEADERS + len(code)
    elf = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01",  # 64 bits, little endian, version 1
        2, _MACHINE[architecture], 1,  # an executable
        _BASE + _HEADERS, 64, 0,  # entry, program headers, no section headers
        0, 64, 56, 1, 0, 0, 0,
    )  # fmt: skip
    # One readable, executable segment: the whole file. Aligned for kernels with 64 KiB pages.
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 0x10000)
    return elf + segment + code


def assemble(table: Sequence[Row], *, words: bool) -> bytes:
    """Return the machine code of *table*; with *words*, rows of 8 hex digits are little-endian instruction words."""
    labels: dict[str, int] = {}
    offset = 0
    for label, text, _ in table:
        if label:
            labels[label] = offset
        offset += _length(text, words)

    code = b""
    for _, text, _ in table:
        code += _word(text, len(code), labels) if words and _is_word(text) else _bytes(text, len(code), labels)
    return code


def _is_word(text: str) -> bool:
    return len(_DISTANCE.sub("", text).strip()) == 8


def _length(text: str, words: bool) -> int:
    plain = len(bytes.fromhex(_DISTANCE.sub("", text)))
    if words and _is_word(text):
        return 4
    return plain + sum(_WIDTH[kind] for kind, _ in _DISTANCE.findall(text))


def _bytes(text: str, offset: int, labels: dict[str, int]) -> bytes:
    end = offset + _length(text, words=False)

    def distance(match: re.Match[str]) -> str:
        return (labels[match[2]] - end).to_bytes(_WIDTH[match[1]], "little", signed=True).hex()

    return bytes.fromhex(_DISTANCE.sub(distance, text))


def _word(text: str, offset: int, labels: dict[str, int]) -> bytes:
    word = int(text[:8], 16)
    for kind, label in _DISTANCE.findall(text):
        distance = labels[label] - offset
        match kind:
            case "b19":  # conditional branch: in instructions, bits 5-23
                word |= (distance // 4 & 0x7FFFF) << 5
            case "b26":  # branch: in instructions, bits 0-25
                word |= distance // 4 & 0x3FFFFFF
            case "adr":  # in bytes: low two bits at 29, the rest at 5
                word |= (distance & 3) << 29 | (distance >> 2 & 0x7FFFF) << 5
    return struct.pack("<I", word)
