"""The two capabilities that a director needs, two more for the offload, and how it lives with no other.

CAP_NET_ADMIN: rules, sets, queues, addresses, and the sysctls of a network namespace, which it may write whoever owns
them (net/sysctl_net.c, net_ctl_permissions). CAP_NET_RAW: packet sockets, for frames to real servers and for announcing
VIPs. CAP_BPF and CAP_PERFMON: maps and program of the offload; without the latter the kernel refuses what it cannot
prove to keep its addresses to itself. CAP_SETUID and CAP_SETGID: what runs scripts becomes another user once, before
it gives them up. The standard library alone: the holder uses this.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

SETGID, SETUID, NET_ADMIN, NET_RAW, PERFMON, BPF = 6, 7, 12, 13, 38, 39
PR_CAPBSET_READ, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 23, 24, 38
VERSION_3 = 0x20080522  # _LINUX_CAPABILITY_VERSION_3: two times 32 bits


def capable(bit: int) -> bool:
    """Whether this process has the capability now."""
    return bool(_mask("CapEff") >> bit & 1)


def keep_only(*kept: int) -> None:
    """Give up every other capability, for good and for all that this process starts; OSError if that fails.

    uid 0 gets all of its bounding set back when it starts a program, so that set goes as well; who may not change it
    is held by no_new_privs all the same (security/commoncap.c, cap_bprm_creds_from_file).
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
    bit = 0
    while (there := libc.prctl(PR_CAPBSET_READ, bit, 0, 0, 0)) >= 0:
        if there and bit not in kept:
            libc.prctl(PR_CAPBSET_DROP, bit, 0, 0, 0)
        bit += 1
    _done(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    mask = sum(1 << bit for bit in kept)
    permitted, inheritable = _mask("CapPrm") & mask, _mask("CapInh") & mask
    header = (ctypes.c_uint32 * 2)(VERSION_3, 0)
    halves = [word for shift in (0, 32) for word in (permitted >> shift, permitted >> shift, inheritable >> shift)]
    _done(libc.capset(header, (ctypes.c_uint32 * 6)(*(word & 0xFFFFFFFF for word in halves))))


def _mask(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith(f"{field}:"))


def _done(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"cannot give up capabilities: {os.strerror(number)}")
