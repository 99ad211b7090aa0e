"""What the student's process may do: little, and nothing that reaches another process. Standard library only.

Called once, by the worker, before it imports anything that starts a thread. None of it can be taken back.
- rlimits: processor seconds, memory, the size of a file, open files.
- Linux capabilities: all given up, so being root helps nobody.
- Landlock (Linux 5.13 and later): reads what a Python program needs, writes plain files into its own folder only.
- seccomp: no new process, no socket, no signal to another process, no look into one, no say in how it runs.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import signal
import struct
import sys
from typing import Iterable, Optional, Sequence

_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 22, 24, 38
_OPEN_FILES = 256
"""MindSpore needs few. What lies in pipes and sockets is in no limit of memory."""
_LIBC = ctypes.CDLL(None, use_errno=True)


def limit(memory: int, cpu_seconds: int, file_size: int) -> None:
    """Bytes of private memory, seconds of processor time, bytes of a file; few open files, no core dumps."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_OPEN_FILES, _OPEN_FILES))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 1))
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    # Shared memory is no data. Libraries are mapped too, so twice as much of everything.
    resource.setrlimit(resource.RLIMIT_AS, (2 * memory, 2 * memory))


def confine(readable: Iterable[str], writable: Sequence[str]) -> list[str]:
    """Give up what the system can take away; returns the names of the protections that it has not."""
    if sys.platform != "linux":
        return ["Landlock", "seccomp"]
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _drop_capabilities()
    missing = []
    if not _restrict_files(readable, writable):
        missing.append("Landlock")
    if not _filter_calls():
        missing.append("seccomp")
    return missing


def _prctl(option: int, argument: int) -> None:
    if _LIBC.prctl(option, ctypes.c_ulong(argument), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl {option}")


def _drop_capabilities() -> None:
    for capability in range(64):  # the kernel refuses numbers that it does not know, and a process that has none
        _LIBC.prctl(_PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0)
    header = struct.pack("=Ii", 0x20080522, 0)  # version 3, this process
    if _LIBC.capset(header, bytes(24)) != 0:
        raise OSError(ctypes.get_errno(), "capset")


# ---- Files: Landlock ----

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every architecture
_READ = 1 << 0 | 1 << 2 | 1 << 3  # execute a file (shared libraries), read a file, read a folder
_WRITE_FILE = 1 << 1
_PLAIN_FILES = _WRITE_FILE | 1 << 5 | 1 << 8 | 1 << 14  # write, remove, make and truncate; no folders, links or pipes
_RIGHTS_OF_VERSION = (0, 13, 14, 15, 15, 16)  # how many rights of files each version of Landlock knows


def _restrict_files(readable: Iterable[str], writable: Sequence[str]) -> bool:
    version = _LIBC.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    if version <= 0:
        return False
    everything = (1 << _RIGHTS_OF_VERSION[min(version, 5)]) - 1
    network = 0b11 if version >= 4 else 0  # bind and connect by TCP
    scopes = 0b11 if version >= 6 else 0  # abstract sockets and signals outside
    attributes = struct.pack("=QQQ", everything, network, scopes)[: 8 if version < 4 else 16 if version < 6 else 24]
    ruleset = _LIBC.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    if ruleset < 0:
        raise OSError(ctypes.get_errno(), "landlock_create_ruleset")
    rules = [(path, _READ) for path in readable]
    rules += [(path, _READ | _PLAIN_FILES) for path in writable]
    rules += [("/dev/null", _WRITE_FILE | _READ)]
    for path, rights in rules:
        _allow(ruleset, path, rights & everything)
    if _LIBC.syscall(_RESTRICT_SELF, ruleset, 0) != 0:
        raise OSError(ctypes.get_errno(), "landlock_restrict_self")
    os.close(ruleset)
    return True


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # not on this system
    if not os.path.isdir(path):
        rights &= 0b111 | 1 << 14 | 1 << 15
    try:
        if _LIBC.syscall(_ADD_RULE, ruleset, 1, struct.pack("=Qi", rights, handle), 0) != 0:
            raise OSError(ctypes.get_errno(), f"landlock_add_rule {path}")
    finally:
        os.close(handle)


# ---- System calls: seccomp ----

_LOAD, _EQUAL, _ANY_BIT, _AT_LEAST, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x06  # of the classic Berkeley packet filter
_ALLOW, _REFUSE, _UNKNOWN = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
_ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
_CLONE_THREAD = 0x00010000
# Numbers on x86-64 and on ARM64; -1 where there is no such call.
_REFUSED = {
    "fork": (57, -1), "vfork": (58, -1), "execve": (59, 221), "execveat": (322, 281),
    "setsid": (112, 157), "setpgid": (109, 154),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "tkill": (200, 130), "pidfd_open": (434, 434), "pidfd_send_signal": (424, 424), "pidfd_getfd": (438, 438),
    "socket": (41, 198), "connect": (42, 203), "io_uring_setup": (425, 425),
    "sched_setaffinity": (203, 122), "setpriority": (141, 140), "ioprio_set": (251, 30),
    "sched_setparam": (142, 118), "sched_setscheduler": (144, 119), "sched_setattr": (314, 274),
    "unshare": (272, 97), "setns": (308, 268), "bpf": (321, 280), "perf_event_open": (298, 241),
    # They would outlive the process.
    "shmget": (29, 194), "semget": (64, 190), "msgget": (68, 186), "mq_open": (240, 180),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    "memfd_create": (319, 279), "memfd_secret": (447, 447),  # files in memory, in no limit of it
    # Landlock knows writing, not these; its first versions did not know truncate.
    "truncate": (76, 45),
    "chmod": (90, -1), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, -1), "fchown": (93, 55), "lchown": (94, -1), "fchownat": (260, 54),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "setxattrat": (463, 463),
    "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16), "removexattrat": (466, 466),
    "utime": (132, -1), "utimes": (235, -1), "futimesat": (261, -1), "utimensat": (280, 88),
}
_OWN_PROCESS = {  # refused unless the first argument is this process
    "kill": (62, 129), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    "prlimit64": (302, 261),
}
_FIRST, _SECOND = 16, 24  # where a call's arguments lie, their low halves
_VALUES = {  # refused for these values of that argument
    (72, 25): (_SECOND, (8, 15)),  # fcntl: F_SETOWN, F_SETOWN_EX: who is told of an event by a signal
    (16, 29): (_SECOND, (0x8901, 0x8902)),  # ioctl: FIOSETOWN, SIOCSPGRP: the same
    (157, 167): (_FIRST, (_PR_SET_PDEATHSIG,)),  # prctl: it ends with the grader
}
_CLONE, _CLONE3 = (56, 220), (435, 435)


def _filter_calls() -> bool:
    architecture, column = _ARCHITECTURES.get(platform.machine(), (None, 0))
    if architecture is None:
        return False
    program = _program(architecture, column)
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code, len(code))

    class Filter(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("program", ctypes.c_void_p))

    argument = Filter(len(program), ctypes.addressof(buffer))
    return _LIBC.prctl(_PR_SET_SECCOMP, 2, ctypes.byref(argument), 0, 0) == 0


def _program(architecture: int, column: int) -> list[tuple[int, int, int, int]]:
    """Each instruction is (code, skip if true, skip if false, constant)."""
    number, machine = 0, 4  # where they lie
    program = [
        (_LOAD, 0, 0, machine), (_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _REFUSE),
        (_LOAD, 0, 0, number), (_AT_LEAST, 0, 1, 0x40000000), (_RETURN, 0, 0, _REFUSE),  # the x32 twins of the calls
        (_EQUAL, 0, 1, _CLONE3[column]), (_RETURN, 0, 0, _UNKNOWN),  # the C library then takes clone
        (_EQUAL, 0, 4, _CLONE[column]), (_LOAD, 0, 0, _FIRST), (_ANY_BIT, 1, 0, _CLONE_THREAD),
        (_RETURN, 0, 0, _REFUSE), (_RETURN, 0, 0, _ALLOW),
    ]
    for numbers in _OWN_PROCESS.values():
        own = [os.getpid()] + ([0] if numbers == _OWN_PROCESS["prlimit64"] else [])
        checks = [(_EQUAL, len(own) - index, 0, process) for index, process in enumerate(own)]
        program += [
            (_EQUAL, 0, len(checks) + 3, numbers[column]), (_LOAD, 0, 0, _FIRST), *checks,
            (_RETURN, 0, 0, _REFUSE), (_RETURN, 0, 0, _ALLOW),
        ]
    for numbers, (argument, values) in _VALUES.items():
        checks = [(_EQUAL, len(values) - 1 - index, 0, value) for index, value in enumerate(values[:-1])]
        program += [
            (_EQUAL, 0, len(values) + 3, numbers[column]), (_LOAD, 0, 0, argument), *checks,
            (_EQUAL, 0, 1, values[-1]), (_RETURN, 0, 0, _REFUSE), (_RETURN, 0, 0, _ALLOW),
        ]
    for numbers in _REFUSED.values():
        if numbers[column] >= 0:
            program += [(_EQUAL, 0, 1, numbers[column]), (_RETURN, 0, 0, _REFUSE)]
    return [*program, (_RETURN, 0, 0, _ALLOW)]


def protections(missing: Sequence[str]) -> Optional[str]:
    """One line that names the protections `missing` here; None where there are all."""
    if not missing:
        return None
    return f"note: this system lacks {' and '.join(missing)}; grade strangers' work in a container of its own"
