"""The kernel's IPsec policies: whether there are any, and hearing that they change.

Formats: include/uapi/linux/xfrm.h; net/xfrm/xfrm_user.c (xfrm_get_spdinfo).
"""

from __future__ import annotations

import errno
import socket
import struct

from nfqlb.kernel import netlink

GET_SPD_INFO, SPD_INFO, GET_DEFAULT, BLOCK = 0x25, 1, 0x28, 1
POLICY_GROUP = 1 << 3  # XFRMNLGRP_POLICY


def policies() -> bool:
    """Whether a policy of this network namespace is about packets that are forwarded or sent, or they are blocked where
    none is; policies of single sockets are not. OSError where this process may not ask.
    """
    try:
        sock = _open(0)
    except OSError:  # a kernel without IPsec
        return False
    with sock:
        about = dict(netlink.attributes(_asked(sock, GET_SPD_INFO)[4:]))
        _, sent, forwarded = struct.unpack_from("=3I", about[SPD_INFO])
        if sent or forwarded:
            return True
        try:
            _, *defaults = _asked(sock, GET_DEFAULT)[:3]  # in, fwd, out
        except OSError:  # Linux before 5.14
            return False
        return BLOCK in defaults


def _asked(sock: socket.socket, question: int) -> bytes:
    sock.send(netlink.pack(question, netlink.REQUEST, 1, bytes(4)))
    for kind, _, _, payload in netlink.received(sock):
        if kind == netlink.NLMSG_ERROR:
            raise OSError(-int(struct.unpack_from("=i", payload)[0]), "cannot ask for IPsec policies")
        return payload
    raise OSError(errno.EIO, "no answer about IPsec policies")


class Events:
    """Readable when somebody changed a policy; OSError without CAP_NET_ADMIN, or in a kernel without IPsec."""

    def __init__(self) -> None:
        self._socket = _open(POLICY_GROUP)

    def fileno(self) -> int:
        return self._socket.fileno()

    def others(self) -> bool:
        """Whether there was something: nfqlb itself has no policies."""
        try:
            return any([*netlink.received(self._socket)])
        except OSError:  # more than could be kept
            return True

    def close(self) -> None:
        self._socket.close()


def _open(groups: int) -> socket.socket:
    sock = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, socket.NETLINK_XFRM
    )
    try:
        sock.bind((0, groups))
    except OSError:
        sock.close()
        raise
    return sock
