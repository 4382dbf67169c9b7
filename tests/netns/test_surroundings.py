"""Where a director runs with less than all of a machine: it works, or one sentence names what is missing."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from netns import kernelstate, load
from netns.director import NFQLB
from netns.host import CommandError
from netns.topology import Net
from tests.netns.test_nat_refusals import check_refusal

TWO = 1 << 12 | 1 << 13  # CAP_NET_ADMIN, CAP_NET_RAW
CAPABILITIES = ["setpriv", "--bounding-set=-all,+net_admin,+net_raw", "--inh-caps=-all"]
FROZEN = "mount -o bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys"
# every mount but the folder $ONE is read-only; namespaces of tests beside this one come and go, and hold no files
READ_ONLY = """
mount --make-rprivate / && mount --bind $ONE $ONE
for place in $(awk -v one=$ONE '$5 != one && $5 !~ "^/run/netns/" { print $5 }' /proc/self/mountinfo | sort -u); do
    mount -o remount,bind,ro $place
done
for place in /usr /run /tmp /var/lib /dev/shm /proc/sys/net; do ! test -w $place || exit 99; done
"""


def inside(script: str) -> list[str]:
    """Run what follows with mounts of its own, after `script`."""
    return ["unshare", "--mount", "sh", "-ec", f'{script}\nexec "$@"', "sh"]


@pytest.fixture(scope="module")
def shared() -> Iterator[Net]:
    with Net(servers=2) as net:
        yield net


def argv(net: Net, *args: str, wrapper: Sequence[str] = ()) -> list[str]:
    vips = ["--vip", net.service(), *net.reals(), "--scheduler", "rr"]
    return [*wrapper, NFQLB, "run", "--name", net.director.instance, *vips, *args]


def start(net: Net, *args: str, wrapper: Sequence[str] = (), **env: str) -> None:
    net.director.process = net.director.spawn(argv(net, *args, wrapper=wrapper), env=env)
    net.director.process.says("ready", 20)


def check_traffic(net: Net) -> None:
    """Soon: a neighbour that was not there is asked for again when the last question has failed."""
    expected, seen = [(name, "10.1.1.2") for name in ("s1", "s1", "s2", "s2")], list[tuple[str, str]]()
    end = time.monotonic() + 20
    while seen != expected and time.monotonic() < end:
        with suppress(CommandError):
            seen = sorted(load.whoami(net.client, net.url(), 4))
    assert seen == expected


def masks(pid: int) -> dict[str, int]:
    lines = (line.split(":\t") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {line[0]: int(line[1], 16) for line in lines if line[0] in ("CapPrm", "CapEff", "CapBnd", "CapAmb")}


def test_two_capabilities_are_enough(shared: Net, diverter: list[str]) -> None:
    found = shared.director.state()
    start(shared, "--vip-dev", "eth0", *diverter, wrapper=CAPABILITIES)
    check_traffic(shared)
    assert shared.director.stop() == 0
    assert kernelstate.difference(found, shared.director.state()) == ""


def test_all_others_are_given_up(shared: Net) -> None:
    start(shared)
    check_traffic(shared)
    kept = {"CapPrm": TWO, "CapEff": TWO, "CapBnd": TWO, "CapAmb": 0}
    assert shared.director.process
    assert masks(shared.director.process.pid) == masks(shared.director.director_pid()) == kept
    shared.director.kill_director()  # the next one, too, can do all it needs
    check_traffic(shared)
    shared.director.cli("show", "daemon")
    assert masks(shared.director.director_pid()) == kept
    assert shared.director.stop() == 0


def test_read_only_sysctls_are_named_and_once_set_do(shared: Net) -> None:
    found = shared.director.state()
    command = argv(shared, wrapper=inside(FROZEN))
    done = shared.director.run(command, check=False)
    check_refusal(done, "net.ipv4.ip_forward=1", "net.ipv4.conf.all.send_redirects=0")
    assert kernelstate.difference(found, shared.director.state()) == ""
    _, _, settings = done.stderr.partition("`sysctl -w ")
    shared.director.sysctl(*settings.partition("`")[0].split())
    start(shared, wrapper=inside(FROZEN))
    check_traffic(shared)
    assert shared.director.stop() == 0


def test_a_read_only_root_and_one_folder_that_is_not(shared: Net, tmp_path: Path) -> None:
    wrapper = inside(f"ONE={tmp_path}\n{READ_ONLY}")
    folders = {f"NFQLB_{what}_DIR": str(tmp_path / what.lower()) for what in ("RUN", "STATE")}
    done = shared.director.run(argv(shared, wrapper=wrapper), check=False, env=folders)
    check_refusal(done, "/dev/shm", "Read-only", "NFQLB_TABLE_DIR")
    start(shared, wrapper=wrapper, **folders, NFQLB_TABLE_DIR=str(tmp_path))
    check_traffic(shared)
    shared.director.kill_director()
    check_traffic(shared)
    assert shared.director.stop() == 0
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"state.toml", "state.clock"}


def test_a_user_and_network_namespace_of_its_own(make_net: Callable[..., Net]) -> None:
    """Root there has no right outside, so not over the machine's limits of socket buffers either."""
    net = make_net(servers=2)
    director = net.director
    outside = net.switch.spawn(
        ["unshare", "--user", "--map-root-user", "--net", "sh", "-c", "echo ready; exec sleep 99"]
    )
    outside.says("ready")
    director.ip("link delete eth0")  # the other end goes with it
    director.namespace += "-u"
    subprocess.run(["ip", "netns", "attach", director.namespace, str(outside.pid)], check=True)
    net.switch.ip(f"link add p-d type veth peer name eth0 netns {director.namespace}", "link set p-d up master br0")
    director.ip("link set lo up", "link set eth0 up", "address add 10.2.0.1/24 dev eth0")
    director.ip("address add 10.2.0.100/32 dev eth0", "route add default via 10.2.0.254")
    start(net, wrapper=["nsenter", "--user", "--target", str(outside.pid)])
    check_traffic(net)
    assert director.process
    assert "sysctl -w net.core.rmem_max=" in director.process.text
    assert director.stop() == 0


def state(systemd: socket.socket) -> bytes:
    """The next word on how the service is; the descriptors that it has kept are another matter (test_handover.py)."""
    while (word := systemd.recv(99)).startswith(b"FDSTORE"):
        pass
    return word


def test_what_is_said_and_counted_can_be_processed(shared: Net, tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(path)
        systemd.settimeout(10)
        args = ["--log-format", "json", "--metrics", "127.0.0.1:9105"]
        shared.director.process = process = shared.director.spawn(
            argv(shared, *args), env={"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "20000000"}
        )
        assert [state(systemd) for _ in range(3)] == [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1"]
        check_traffic(shared)
        scraped = shared.director.run(["curl", "-fsS", "http://127.0.0.1:9105/metrics"]).stdout
        assert shared.director.stop() == 0
        while (heard := state(systemd)) == b"WATCHDOG=1":
            pass
        assert heard == b"STOPPING=1"
    assert [json.loads(line)["message"] for line in process.text.splitlines()] == ["ready"]
    samples = [one for family in text_string_to_metric_families(scraped) for one in family.samples]
    gained = {one.labels["real"]: one.value for one in samples if one.name == "nfqlb_connections_total"}
    assert gained == {"10.2.0.11:80": 2, "10.2.0.12:80": 2}
