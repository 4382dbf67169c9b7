"""Web, mail, files and names through the VIP: real servers, real clients, and one storage that all of them serve.

docs/three-tiers.toml is what the director runs here, for both families at once. Its weights are 3, 2 and 1, so six
connections in a row go to every server, in any order.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from netns import claim, dns, ftp, load, mail
from netns.host import alive
from netns.tiers import Tiers
from netns.topology import Net
from tests import sizes
from tests.netns.test_topology import crashed
from tests.netns.watch import Watch

ROUND = {"s1": 3, "s2": 2, "s3": 1}
ROUNDS = sum(ROUND.values())

CRASH = """
import signal
from netns.tiers import Tiers
net = Tiers(servers=1).__enter__()
print(net.claim.tag, net.claim.folder, *(p.pid for host in net.hosts for p in host.processes), flush=True)
signal.pause()
"""


@pytest.fixture(scope="module", params=["nat", "dr", "tun"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def tiers(mode: str) -> Iterator[Tiers]:
    with Tiers(mode=mode) as net:
        yield net


@pytest.fixture(scope="module", params=["fast", "reference"])
def engine(request: pytest.FixtureRequest, tiers: Tiers) -> Iterator[str]:
    """The director runs with it."""
    file = tiers.director.folder / "nfqlb.toml"
    file.write_text(tiers.configuration(4, 6))
    tiers.director.nfqlb("--config", str(file), "--engine", request.param)
    yield request.param
    assert tiers.director.stop() == 0


@pytest.fixture(scope="module")
def watched(tiers: Tiers, engine: str, watch: Callable[[Net], Watch]) -> Iterator[Watch]:
    """All that leaves the director is accounted for."""
    with watch(tiers) as watched:
        yield watched


def web(net: Tiers, family: int, text: str) -> None:
    answers = load.whoami(net.client, net.url(family=family), ROUNDS)
    assert load.split(answers) == ROUND
    assert {seen for _, seen in answers} == {net.client.address(family)}
    net.storage.write("page.html", text)
    assert Counter(load.pages(net.client, net.url("/page.html", family), ROUNDS)) == {
        (server, text): count for server, count in ROUND.items()
    }


def mails(net: Tiers, family: int, text: str) -> None:
    subjects = [f"{text} {number}" for number in range(ROUNDS)]
    assert Counter(mail.send(net.client, net.vip(family), subjects)) == ROUND
    net.delivered(subjects, family)
    boxes = mail.read(net.client, net.vip(family), ROUNDS)
    assert Counter(server for server, _ in boxes) == ROUND
    assert all(set(subjects) <= set(box) for _, box in boxes)


def files(net: Tiers, family: int, text: str) -> None:
    stored = net.storage.fill("../ftp/file", sizes.MIB)
    assert Counter(ftp.fetch(net.client, net.vip(family), "file", ROUNDS)) == {
        (server, stored): count for server, count in ROUND.items()
    }
    server, sent = ftp.store(net.client, net.vip(family), f"incoming/{text}", sizes.MIB)
    assert sent == net.storage.sha256(f"../ftp/incoming/{text}"), f"what {server} took is not what is on the storage"


def names(net: Tiers, family: int, text: str) -> None:
    net.name_says(text)
    for tcp, protocol in ((False, "udp"), (True, "tcp")):
        answers = dns.ask(net.client, net.vip(family), "text", ROUNDS, tcp=tcp)
        assert Counter(answer.server for answer in answers) == ROUND
        assert {(answer.text, answer.protocol) for answer in answers} == {(text, protocol)}
        wide = dns.ask(net.client, net.vip(family), "wide", ROUNDS, tcp=tcp)
        assert Counter(answer.server for answer in wide) == ROUND
        assert {(answer.text, answer.protocol) for answer in wide} == {("w" * dns.WIDE, protocol)}
        assert all(answer.size > 1500 for answer in wide)


KINDS: dict[str, Callable[[Tiers, int, str], None]] = {"web": web, "mail": mails, "ftp": files, "dns": names}


@pytest.mark.cell
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("kind", KINDS)
def test_all_servers_serve_what_is_on_the_storage(
    tiers: Tiers, watched: Watch, mode: str, engine: str, family: int, kind: str
) -> None:
    KINDS[kind](tiers, family, f"{mode}-{engine}-{family}")
    assert watched.check().checked > 0


def test_a_crash_leaves_no_mount_and_no_process() -> None:
    with crashed(CRASH) as (tag, folder, *pids):
        assert all(alive(int(pid)) for pid in pids)
    with Net(servers=1, web=False):
        pass
    assert not any(alive(int(pid)) for pid in pids)
    assert not Path(folder).exists()
    assert not any(name.startswith(f"{tag}-") for name in claim.namespaces())
    assert not re.search(f"{folder}|fuse.sshfs", Path("/proc/self/mounts").read_text())
