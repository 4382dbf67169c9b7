"""A director under watch: what leaves it, on every device, is accounted for (see decode.py)."""

from __future__ import annotations

import json
from collections import Counter
from typing import Self

from netns.director import OFFLOAD
from netns.host import Host
from netns.tap import Tap
from netns.topology import Net
from tests.netns.decode import PROTOCOL_TCP, PROTOCOL_UDP, Account, Scene


class Watch:
    """From its making on, with the services that run then; `total` counts the packets of all watches."""

    def __init__(self, net: Net, total: Counter[str]) -> None:
        self.total, self.account, self.tap = total, Account(scene(net)), Tap(net.director)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.tap.close()

    def check(self) -> Account:
        """Account for all that left since the last time; fails with what is wrong. The account is of that time only."""
        account = self.account
        account.checked = account.unfinished = account.errors = account.long = 0
        account.feed(self.tap.take())
        account.close()
        self.total["checked"] += account.checked
        self.total["unfinished"] += account.unfinished
        faults, account.faults = account.faults, []
        assert not faults, "\n".join(faults[:10])
        return account


def scene(net: Net) -> Scene:
    macs = {}
    for host in (net.router, net.storage, *net.servers):
        macs |= {address: mac for device, (mac, addresses) in links(host).items() for address in addresses}
    own = links(net.director)
    uplink = next(mac for mac, addresses in links(net.router).values() if net.outside.at(254).v4 in addresses)
    return Scene(
        mode=net.mode,
        offload=OFFLOAD == "auto",
        own=frozenset(address for _, addresses in own.values() for address in addresses),
        devices={device: mac for device, (mac, _) in own.items()},
        macs=macs,
        router=uplink,
        services={
            (
                {"tcp": PROTOCOL_TCP, "udp": PROTOCOL_UDP}[service["protocol"]],
                service["address"],
                port,
            ): frozenset((real["address"], real["port"] or port) for real in service["reals"])
            for service in net.director.show("services")["services"]
            for port in range(service["port"], (service["last"] or service["port"]) + 1)
        },
    )


def links(host: Host) -> dict[str, tuple[str, list[str]]]:
    """The devices of a machine: MAC and addresses."""
    listed = json.loads(host.run(["ip", "-json", "address"]).stdout)
    return {
        link["ifname"]: (link["address"], [address["local"] for address in link["addr_info"]])
        for link in listed
        if link["link_type"] == "ether"
    }
