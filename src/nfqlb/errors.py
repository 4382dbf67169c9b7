"""Every error that nfqlb raises on purpose.

    NfqlbError
    |-- ConfigError       what the user asked for is not valid: names the field, the value and the fix
    |-- ConfigErrors      several of them: all that is wrong with one file
    |-- ConflictError     somebody else changed the configuration meanwhile
    |-- MissingError      a program, capability or kernel feature is not there: names it and how to get it
    |-- TakenError        a name, queue or socket belongs to another process: names its pid where known
    |-- NotFoundError     a service or real server that does not exist
    |-- ExistsError       a service or real server that exists already
    |-- KernelError       the kernel refused a change: says which
    `-- UnreachableError  no director answers on the API socket

The text of each is one sentence that a user can act on; `exit_code` is what the command line ends with.
"""

from collections.abc import Collection, Iterable

OURS = {  # what ipvsadm, keepalived, HAProxy and Envoy call it
    "nat": "masq masquerading",
    "dr": "gate gatewaying",
    "tun": "ipip tunneling",
    "rr": "roundrobin round_robin",
    "lc": "leastconn least_request",
    "sh": "source ring_hash",
    "p2c": "random",
    "mh": "maglev",
    "tcp": "tcp_check",
    "http": "http_get",
    "https": "ssl_get",
    "ping": "ping_check",
    "script": "misc_check",
    "service": "virtual_server",
    "mode": "lb_kind lvs_method",
    "scheduler": "lb_algo lvs_sched balance",
    "persistence": "persistence_timeout",
    "real": "real_server server",
    "interval": "delay_loop inter advert_int",
    "timeout": "connect_timeout",
    "fall": "retry",
    "sorry": "sorry_server",
    "address": "ip host port",
    "upper": "u_threshold maxconn",
    "lower": "l_threshold",
    "slow_start": "slowstart",
    "vrid": "virtual_router_id",
}
ELSEWHERE = {word: ours for ours, words in OURS.items() for word in words.split()}


class NfqlbError(Exception):
    """Base of the tree; never raised itself."""

    exit_code = 1


class ConfigError(NfqlbError):
    """A value that cannot be taken. `field` names where it stands, `fix` what to write instead."""

    exit_code = 2

    def __init__(self, field: str, value: object, problem: str, fix: str = "") -> None:
        self.field, self.value, self.problem, self.fix = field, value, problem, fix
        super().__init__(f"{field} {str(value)!r}: {problem}" + (f"; {fix}" if fix else ""))


def meant(word: str, known: Collection[str]) -> str:
    """A question that goes before a fix: what of the known words somebody meant; empty where none is like it."""
    from difflib import get_close_matches  # few make mistakes, and all would pay

    asked = word.lower()[:40]
    found = [ELSEWHERE[asked]] if ELSEWHERE.get(asked) in known else get_close_matches(asked, known, 1)
    return f"did you mean {found[0]}? " if found else ""


class ConfigErrors(NfqlbError):
    """All that is wrong with one file, in the order of its lines; a line of text each, of the first TOLD."""

    TOLD = 100
    exit_code = 2

    def __init__(self, errors: Iterable[ConfigError]) -> None:
        self.errors = tuple(errors)
        more = len(self.errors) - self.TOLD
        super().__init__("\n".join([*map(str, self.errors[: self.TOLD]), *([f"and {more} more"] if more > 0 else [])]))


class ConflictError(NfqlbError):
    """The change was asked of another revision than the one there is: of two writers, this one came second."""

    exit_code = 7


class MissingError(NfqlbError):
    """Something that nfqlb needs from the machine is not there."""

    exit_code = 3


class TakenError(NfqlbError):
    """Somebody else holds what was asked for."""

    exit_code = 4


class NotFoundError(NfqlbError):
    """No such service or real server."""


class ExistsError(NfqlbError):
    """The service or real server exists already."""


class KernelError(NfqlbError):
    """The kernel refused a change."""

    exit_code = 5


class UnreachableError(NfqlbError):
    """No director listens on the API socket."""

    exit_code = 6
