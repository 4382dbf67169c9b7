"""What floods find: first packets in queues of their own, and where packets go that nobody takes."""

from __future__ import annotations

import pytest

from netns.topology import Net

REFUSED, TIMED_OUT = 7, 28  # curl's exit codes


def test_first_packets_come_through_queues_of_their_own(net: Net, diverter: list[str]) -> None:
    for family in (4, 6):
        services = ["--vip", net.service(family=family)]
        net.director.nfqlb(*services, *net.reals(family=family), "--workers", "2", *diverter)
        for _ in range(8):
            net.client.run(["curl", "-sSf", "-o", "/dev/null", net.url(family=family)])
        packets = dict.fromkeys(("gso", "syn", "plain", "head"), 0)
        for queue in net.director.show("daemon")["queues"]:
            packets[queue["class"]] += queue["packets"]
        assert packets["syn"] == 8
        assert packets["gso"] >= 8 * 6, "all the others, and the replies"
        assert net.director.stop() == 0


@pytest.mark.parametrize(("word", "code"), [("drop", TIMED_OUT), ("bypass", REFUSED)])
def test_what_nobody_takes(net: Net, diverter: list[str], word: str, code: int) -> None:
    """The VIP is the director's: what gets past nfqlb meets its own stack, where nobody listens."""
    net.director.nfqlb("--vip", net.service(), *net.reals(), "--on-failure", word, *diverter)
    ask = [
        "curl",
        "-s",
        "-o",
        "/dev/null",
        "--max-time",
        "2.5",
        net.url(),
    ]  # a SYN that met the dying goes again after 1 s
    assert net.client.run(ask, check=False).returncode == 0
    net.director.kill_both()
    assert net.client.run(ask, check=False).returncode == code
