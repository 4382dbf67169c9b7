"""The sysctls without which nothing is forwarded, or forwarded past the director.

Strategy: a value that is as it should be is neither saved nor touched. Turning forwarding on changes others behind our
back (every interface's own switch, accept_redirects), so these are saved with it, and putting back takes two passes:
the switch first, then what it changed again. accept_ra goes to 2 before IPv6 forwarding goes on, else the kernel
drops the routes it learned from routers (net/ipv6/addrconf.c, addrconf_fixup_forwarding).
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

from nfqlb.errors import MissingError
from nfqlb.kernel.plan import Plan
from nfqlb.kernel.saved import Saved

ROOT = Path("/proc/sys")
SWITCH = {4: "net/ipv4/ip_forward", 6: "net/ipv6/conf/all/forwarding"}


class Sysctls:
    """net.ipv4.ip_forward, net.ipv6.conf.all.forwarding, send_redirects, accept_ra."""

    def __init__(self, saved: Saved) -> None:
        self._saved = saved
        self._families: tuple[int, ...] = ()

    def apply(self, plan: Plan, *, afresh: bool = False) -> None:
        if plan.families == self._families and not afresh:
            return
        shared = self._saved.others().sysctls.items()
        prefixes = tuple(f"net/ipv{family}/" for family in plan.families)
        new = {name: value for name, value in shared if name.startswith(prefixes) and name not in self._saved.sysctls}
        if new:
            self._saved.sysctls |= new
            self._saved.write()
        for name, value in self._wanted(plan):
            if read(name) != value:
                self._keep(name)
                try:
                    write(name, value)
                except MissingError as error:
                    raise self._all_missing(plan, error) from error
        self._families = plan.families

    def prune(self, plan: Plan) -> None:
        prefixes = tuple(f"net/ipv{family}/" for family in (4, 6) if family not in plan.families)
        names = [name for name in self._saved.sysctls if name.startswith(prefixes)] if prefixes else []
        shared = self._saved.others().sysctls if names else {}
        for _ in range(2):
            for name in reversed([name for name in names if name not in shared]):
                if read(name) not in (None, self._saved.sysctls[name]):
                    write(name, self._saved.sysctls[name])
        if names:
            for name in names:
                del self._saved.sysctls[name]
            self._saved.write()
        self._families = tuple(family for family in self._families if family in plan.families)

    def check(self, plan: Plan) -> list[str]:
        wanted = ((name, value, read(name)) for name, value in self._wanted(plan))
        return [f"sysctl {title(name)} was {now}, not {value}" for name, value, now in wanted if now != value]

    def _all_missing(self, plan: Plan, error: MissingError) -> MissingError:
        """The same sentence, with all that is still to be set where that is more."""
        missing = [f"{title(name)}={value}" for name, value in self._wanted(plan) if read(name) != value]
        if len(missing) < 2:
            return error
        why = f"cannot be changed from here ({getattr(error.__cause__, 'strerror', error)})"
        return MissingError(f"sysctls {why}: set them by `sysctl -w {' '.join(missing)}`")

    def _wanted(self, plan: Plan) -> Iterator[tuple[str, str]]:
        """Names and values in the order in which they are to be set; what is not there is not wanted."""
        if 4 in plan.families:
            yield SWITCH[4], "1"
            yield "net/ipv4/conf/all/send_redirects", "0"
            for name in _each("ipv4", "send_redirects"):
                if read(name) == "1" or name in self._saved.sysctls:
                    yield name, "0"
        if 6 in plan.families:
            off = read(SWITCH[6]) == "0"
            for name in _each("ipv6", "accept_ra"):
                if name in self._saved.sysctls or (off and SWITCH[6] not in self._saved.sysctls and read(name) == "1"):
                    yield name, "2"
            yield SWITCH[6], "1"

    def _keep(self, name: str) -> None:
        """Save the value of `name`, and of all that the kernel changes together with it."""
        names = [name]
        if name == SWITCH[4]:
            names += [
                "net/ipv4/conf/all/accept_redirects",
                "net/ipv4/conf/default/forwarding",
                *_each("ipv4", "forwarding"),
            ]
        elif name == SWITCH[6]:
            names += ["net/ipv6/conf/default/forwarding", *_each("ipv6", "forwarding")]
        new = {name: value for name in names if name not in self._saved.sysctls and (value := read(name)) is not None}
        if new:
            self._saved.sysctls |= new
            self._saved.write()


def _each(family: str, leaf: str) -> list[str]:
    """That sysctl of every interface."""
    folder = ROOT / "net" / family / "conf"
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return [f"net/{family}/conf/{name}/{leaf}" for name in names if name not in ("all", "default")]


def read(name: str) -> str | None:
    """The value; None where it does not exist, any more or at all."""
    try:
        return (ROOT / name).read_text().strip()
    except OSError:
        return None


def write(name: str, value: str) -> None:
    now = read(name)
    try:
        (ROOT / name).write_text(value)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV) and now is not None:
            return  # the interface went this moment
        raise MissingError(
            f"sysctl {title(name)} is {now} and cannot be changed from here ({error.strerror}): set it to {value}"
        ) from error


def title(name: str) -> str:
    return name if "." in name else name.replace("/", ".")
