"""What a decoding child gives up before it reads hostile bytes: limits and refusals that the kernel keeps.

None of it needs privileges. The limits (setrlimit) end a decoder that runs wild. The filter of system calls
(seccomp) is for a decoder that an exploit has compromised: no socket, no other program, no process of its own
that outlives it, no signal to others, and nothing written, renamed or removed. Reading files stays possible.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import math
import os
import resource
import signal
import struct
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

MAX_OPEN_FILES: Final = 64
"""A child needs its socket, one video and, while it imports, one library."""


def limit_resources(memory_limit_bytes: int) -> None:
    """No core dumps, no writing of files, few open files, only so much memory beyond what is in use now."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (MAX_OPEN_FILES, MAX_OPEN_FILES))
    with contextlib.suppress(OSError, ValueError):  # Only Linux reports what is in use and keeps the limit.
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + memory_limit_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def allow_processor_seconds(seconds: float) -> None:
    """Allow this much processor time from now on, over all threads, rounded up; then comes SIGXCPU."""
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = math.ceil(used.ru_utime + used.ru_stime + seconds)
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    if most != resource.RLIM_INFINITY:
        limit = min(limit, most)
    resource.setrlimit(resource.RLIMIT_CPU, (limit, most))


def refuse_system_calls() -> bool:
    """Let the kernel refuse all that decoding never needs, for good.

    Returns:
        False where this system has no filter of system calls that we know.
    """
    machine = os.uname().machine
    if sys.platform != "linux" or machine not in _ARCHITECTURES:
        return False
    filter_bytes = b"".join(_filter(machine))
    code = ctypes.create_string_buffer(filter_bytes, len(filter_bytes))
    program = _Program(len(filter_bytes) // 8, ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    zero = ctypes.c_ulong(0)
    # A process that gives up gaining privileges (38: PR_SET_NO_NEW_PRIVS) may install a filter without any.
    if libc.prctl(38, ctypes.c_ulong(1), zero, zero, zero) != 0:
        return False
    set_filter, on_all_threads = ctypes.c_ulong(1), ctypes.c_ulong(1)
    number = ctypes.c_long(_ARCHITECTURES[machine][1])
    return bool(libc.syscall(number, set_filter, on_all_threads, ctypes.byref(program)) == 0)


class _Program(ctypes.Structure):
    """`struct sock_fprog`: the number of instructions, and where they are."""

    _fields_ = (("num_instructions", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


_ARCHITECTURES: Final = {"x86_64": (0xC000003E, 317), "aarch64": (0xC00000B7, 277)}
"""How the kernel names the machine (linux/audit.h), and its number for `seccomp`."""

_Numbers = tuple[int | None, int | None]
"""Of a system call, on x86_64 and aarch64: asm/unistd_64.h and asm-generic/unistd.h. None: there is none."""

_REFUSED: Final[dict[str, _Numbers]] = {
    # The network, and other processes that listen.
    "socket": (41, 198),
    "socketpair": (53, 199),
    "connect": (42, 203),
    "bind": (49, 200),
    "listen": (50, 201),
    "accept": (43, 202),
    "accept4": (288, 242),
    # Other programs and processes. Threads are made by `clone`, see below.
    "fork": (57, None),
    "vfork": (58, None),
    "execve": (59, 221),
    "execveat": (322, 281),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "pidfd_getfd": (438, 438),
    # Changing files and folders. Opening to write is refused below.
    "creat": (85, None),
    "truncate": (76, 45),
    "ftruncate": (77, 46),
    "fallocate": (285, 47),
    "memfd_create": (319, 279),
    "unlink": (87, None),
    "unlinkat": (263, 35),
    "rename": (82, None),
    "renameat": (264, 38),
    "renameat2": (316, 276),
    "mkdir": (83, None),
    "mkdirat": (258, 34),
    "rmdir": (84, None),
    "link": (86, None),
    "linkat": (265, 37),
    "symlink": (88, None),
    "symlinkat": (266, 36),
    "mknod": (133, None),
    "mknodat": (259, 33),
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "fchown": (93, 55),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
    # What a process with root's rights could do, and interfaces that kernels had vulnerabilities in.
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "setns": (308, 268),
    "unshare": (272, 97),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "mount_setattr": (442, 442),
    "open_by_handle_at": (304, 265),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),  # It would do all of the above without a system call of its own.
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
}
_ABSENT: Final[dict[str, _Numbers]] = {"clone3": (435, 435), "openat2": (437, 437)}
"""Their arguments are behind a pointer, where a filter cannot look. As if the kernel were too old to have
them, so that the C library falls back to the calls below."""

_OPEN: Final[_Numbers] = (2, None)
_OPENAT: Final[_Numbers] = (257, 56)
_CLONE: Final[_Numbers] = (56, 220)
_KILL: Final[_Numbers] = (62, 129)
_TGKILL: Final[_Numbers] = (234, 131)
_PRLIMIT: Final[_Numbers] = (302, 261)

_WRITING: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_CLONE_THREAD: Final = 0x10000

# Instructions of the filter (linux/filter.h, linux/seccomp.h).
_LOAD, _RETURN, _IF_EQUAL, _IF_AT_LEAST, _IF_ANY_BIT = 0x20, 0x06, 0x15, 0x35, 0x45
_ALLOW, _END_PROCESS, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER_OFFSET, _ARCHITECTURE_OFFSET, _ARGUMENTS_OFFSET = 0, 4, 16  # in `struct seccomp_data`


def _filter(machine: str) -> list[bytes]:
    column = 0 if machine == "x86_64" else 1
    program = [
        _instruction(_LOAD, _ARCHITECTURE_OFFSET),
        _instruction(_IF_EQUAL, _ARCHITECTURES[machine][0], skip_if_true=1),
        _instruction(_RETURN, _END_PROCESS),  # 32-bit calls have other numbers.
        _instruction(_LOAD, _NUMBER_OFFSET),
        _instruction(_IF_AT_LEAST, 0x40000000, skip_if_false=1),  # and so have those of x32
        _instruction(_RETURN, _ERROR | errno.EPERM),
    ]
    program += _answer_with(errno.EPERM, _REFUSED.values(), column)
    program += _answer_with(errno.ENOSYS, _ABSENT.values(), column)
    own_id = os.getpid()
    program += _allow_only(_OPEN[column], 1, _instruction(_IF_ANY_BIT, _WRITING, skip_if_false=1))
    program += _allow_only(_OPENAT[column], 2, _instruction(_IF_ANY_BIT, _WRITING, skip_if_false=1))
    program += _allow_only(_CLONE[column], 0, _instruction(_IF_ANY_BIT, _CLONE_THREAD, skip_if_true=1))
    program += _allow_only(_KILL[column], 0, _instruction(_IF_EQUAL, own_id, skip_if_true=1))
    program += _allow_only(_TGKILL[column], 0, _instruction(_IF_EQUAL, own_id, skip_if_true=1))
    program += _allow_only(_PRLIMIT[column], 0, _instruction(_IF_EQUAL, 0, skip_if_true=1))
    return [*program, _instruction(_RETURN, _ALLOW)]


def _answer_with(error: int, calls: Iterable[_Numbers], column: int) -> list[bytes]:
    program = []
    for numbers in calls:
        number = numbers[column]
        if number is not None:
            program.append(_instruction(_IF_EQUAL, number, skip_if_false=1))
            program.append(_instruction(_RETURN, _ERROR | error))
    return program


def _allow_only(number: int | None, argument: int, test: bytes) -> list[bytes]:
    """One call is refused unless `test` of its argument (the low 32 bits) skips the refusal."""
    if number is None:
        return []
    return [
        _instruction(_IF_EQUAL, number, skip_if_false=4),
        _instruction(_LOAD, _ARGUMENTS_OFFSET + 8 * argument),
        test,
        _instruction(_RETURN, _ERROR | errno.EPERM),
        _instruction(_RETURN, _ALLOW),
    ]


def _instruction(code: int, value: int, skip_if_true: int = 0, skip_if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, skip_if_true, skip_if_false, value)
