"""The kernel facade alone, without packets: what it makes, finds changed, repairs, and takes back."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from netns import kernelstate
from netns.host import Host
from netns.topology import Net
from nfqlb.errors import KernelError
from nfqlb.kernel.plan import Plan
from tests.netns.kernelproxy import KernelProxy
from tests.plans import reals_of, services_of, serving

NAME = "kernel-test-abc"  # as long as a name can be

PLAN = serving(
    Plan(NAME, gso=(10,), plain=(11,), vip_dev="eth0"),
    services={(6, "10.2.0.100", 80), (17, "10.2.0.100", 53), (6, "2001:db8:2::100", 80)},
    reals={(6, "10.2.0.11", 8080), (17, "10.2.0.11", 53), (6, "2001:db8:2::b", 8080)},
)
BREAKS = {
    "nft flush ruleset": "nft flush ruleset",
    "iptables flushed": "for p in iptables ip6tables; do for t in raw mangle filter; do $p -t $t -F; done; done",
    "sets destroyed": "nft flush ruleset; ipset destroy",
    "sets emptied": "ipset flush; nft flush set ip nfqlb-kernel-test-abc services || true",
    "chain emptied": "iptables -F nfqlb-kernel-test-abc; nft flush chain ip6 nfqlb-kernel-test-abc requests || true",
    "jumps deleted": "iptables -D FORWARD 1; ip6tables -t raw -D PREROUTING 1 || true",
    "overtaken": "iptables -I FORWARD -j DROP",
    "forwarding off": "sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0",
    "redirects on": "sysctl -qw net.ipv4.conf.all.send_redirects=1 net.ipv4.conf.eth0.send_redirects=1",
    "vip deleted": "ip address delete 10.2.0.100/32 dev eth0; ip address delete 2001:db8:2::100/128 dev eth0",
    "new interface": "ip link add more type bridge; ip link set more up",
}


@pytest.fixture(params=["nft", "iptables"])
def plan(request: pytest.FixtureRequest) -> Plan:
    return replace(PLAN, diverter=request.param)


@pytest.fixture
def host(make_net: Callable[..., Net]) -> Host:
    return make_net(servers=0, vip="free", web=False).director


@pytest.fixture
def kernel(host: Host) -> Iterator[KernelProxy]:
    proxy = KernelProxy(host.namespace, NAME, host.folder / "kernel.json")
    yield proxy
    proxy.crash()


def state(host: Host) -> dict[str, str]:
    return kernelstate.take(host, NAME, {})


def changed(host: Host, found: dict[str, str]) -> str:
    return kernelstate.difference(found, state(host))


def close_forward(host: Host) -> None:
    """Have a firewall that would drop what is forwarded."""
    for program in ("iptables", "ip6tables"):
        host.run([program, "-P", "FORWARD", "DROP"])


def rules(host: Host) -> list[str]:
    """Every rule with its handle or its place, without the members of sets."""
    listed = json.loads(host.run(["nft", "-j", "-s", "-a", "list", "ruleset"]).stdout)["nftables"]
    return [json.dumps(entry) for entry in listed if "rule" in entry or "chain" in entry]


def test_withdraw_leaves_an_empty_machine_empty(host: Host, kernel: KernelProxy, plan: Plan) -> None:
    found = state(host)
    kernel.apply(plan)
    assert kernel.check() == []
    assert changed(host, found)
    kernel.withdraw()
    assert changed(host, found) == ""
    kernel.withdraw()
    assert not (host.folder / "kernel.json").exists()


def test_withdraw_leaves_what_others_have(host: Host, kernel: KernelProxy, plan: Plan) -> None:
    for line in [
        "sysctl -qw net.ipv4.conf.eth0.forwarding=1 net.ipv4.conf.all.send_redirects=0 net.ipv6.conf.eth0.accept_ra=1",
        "iptables -P FORWARD DROP",
        "iptables -A FORWARD -p tcp --dport 22 -j ACCEPT",
        "ip6tables -t mangle -A PREROUTING -j MARK --set-mark 7",
        "iptables -N nfqlb-kernel-test",
        "ipset create nfqlb-kernel-test hash:ip",
        "nft add table ip nfqlb-kernel-test",
        "ip address add 10.2.0.100/32 dev eth0",
    ]:
        host.run(line.split())
    found = state(host)
    kernel.apply(plan)
    kernel.withdraw()
    assert changed(host, found) == ""


def test_forwarding_that_was_on_is_left_alone(host: Host, kernel: KernelProxy, plan: Plan) -> None:
    host.sysctl("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1", "net.ipv4.conf.all.send_redirects=0")
    host.sysctl("net.ipv4.conf.eth0.send_redirects=0", "net.ipv4.conf.lo.send_redirects=0")
    found = state(host)["sysctls"]
    kernel.apply(plan)
    assert state(host)["sysctls"] == found
    assert json.loads((host.folder / "kernel.json").read_text())["sysctls"] == {}


def test_routers_are_still_listened_to(host: Host, kernel: KernelProxy, plan: Plan) -> None:
    host.sysctl("net.ipv6.conf.eth0.accept_ra=1")
    kernel.apply(plan)
    assert host.run(["sysctl", "-n", "net.ipv6.conf.eth0.accept_ra"]).stdout == "2\n"


def test_repair(host: Host, kernel: KernelProxy, plan: Plan) -> None:
    kernel.apply(plan)
    for what, how in BREAKS.items():
        close_forward(host)
        kernel.repair()
        host.run(["sh", "-c", how])
        assert kernel.check(), what
        assert kernel.repair(), what
        assert kernel.check() == [], what
        assert kernel.repair() == [], what
    kernel.withdraw()
    left = state(host)
    assert "nfqlb" not in left["iptables"] + left["ip6tables"] + left["nft"] + left["ipset"]
    assert "10.2.0.100" not in left["addresses"]


def test_forward_is_opened_only_while_it_filters(host: Host, kernel: KernelProxy, plan: Plan) -> None:
    """A chain that accepts what passes anyway would only cost."""
    kernel.apply(plan)
    found = state(host)
    for close, undo in (
        ("iptables -P FORWARD DROP", "iptables -P FORWARD ACCEPT"),
        ("ip6tables -A FORWARD -p udp -j DROP", "ip6tables -F FORWARD"),
    ):
        host.run(close.split())
        assert kernel.repair() == ["the chain FORWARD filters now"]
        for program in ("iptables", "ip6tables"):
            assert f"-A FORWARD -j nfqlb-{NAME}" in host.run([program, "-S"]).stdout
        assert kernel.check() == []
        host.run(undo.split())
        assert kernel.repair() == ["the chain FORWARD filters no more"]
        assert kernel.check() == []
        assert "nfqlb" not in host.run(["iptables-save", "-t", "filter"]).stdout
    assert unordered(state(host))["ipset"] == unordered(found)["ipset"]


def test_crash_then_withdraw(host: Host, kernel: KernelProxy, plan: Plan) -> None:
    close_forward(host)
    found = state(host)
    kernel.apply(plan)
    kernel.crash()
    successor = KernelProxy(host.namespace, NAME, host.folder / "kernel.json")
    successor.withdraw()
    assert changed(host, found) == ""


def test_crash_then_apply_then_withdraw(host: Host, kernel: KernelProxy, plan: Plan) -> None:
    close_forward(host)
    found = state(host)
    kernel.apply(plan)
    kernel.crash()
    host.sysctl("net.ipv4.ip_forward=0")
    successor = KernelProxy(host.namespace, NAME, host.folder / "kernel.json")
    successor.apply(replace(plan, gso=(20,), plain=(21,), diverter="nft"))  # maybe by another diverter than before
    assert successor.check() == []
    assert "NFQUEUE" not in host.run(["iptables-save"]).stdout
    successor.withdraw()
    assert changed(host, found) == ""


def test_saved_originals_of_another_namespace_are_not_used(
    host: Host, kernel: KernelProxy, plan: Plan, make_net: Callable[..., Net]
) -> None:
    kernel.apply(plan)
    other = make_net(servers=0, web=False).router
    found = state(other)
    KernelProxy(other.namespace, NAME, host.folder / "kernel.json").withdraw()
    assert changed(other, found) == ""


def test_one_more_server_touches_no_rule(host: Host, kernel: KernelProxy, plan: Plan) -> None:
    close_forward(host)
    kernel.apply(plan)
    before = rules(host)
    more = serving(
        plan,
        services_of(plan) | {(17, "10.2.0.101", 53)},
        reals_of(plan) - {(6, "10.2.0.11", 8080)} | {(6, "10.2.0.12", 80)},
    )
    kernel.apply(more)
    assert kernel.check() == []
    assert rules(host) == before
    sets = host.run(["nft", "list", "ruleset"]).stdout + host.run(["ipset", "save"]).stdout
    assert "10.2.0.12" in sets
    assert "8080" not in sets.replace("2001:db8:2::b . 8080", "").replace("2001:db8:2::b,tcp:8080", "")
    assert "10.2.0.101/32" in host.run(["ip", "address"]).stdout


def test_a_family_comes_and_goes(host: Host, kernel: KernelProxy, plan: Plan) -> None:
    nothing = serving(plan, (), ())
    close_forward(host)
    found = state(host)
    kernel.apply(nothing)
    assert changed(host, found) == ""
    kernel.apply(plan)
    assert "nfqlb" in host.run(["ip6tables-save"]).stdout
    kernel.apply(serving(plan, {(6, "10.2.0.100", 80)}))
    assert kernel.check() == []
    assert "nfqlb" not in host.run(["ip6tables-save"]).stdout
    assert "2001:db8:2::100" not in host.run(["ip", "address"]).stdout
    assert host.run(["sysctl", "-n", "net.ipv6.conf.all.forwarding"]).stdout == "0\n"
    kernel.apply(nothing)
    assert changed(host, found) == ""


def unordered(state: dict[str, str]) -> dict[str, list[str]]:
    """Without the order in which tables and sets were made, which an undo need not restore."""
    return {kind: sorted(text.splitlines()) for kind, text in state.items()}


def test_a_failure_undoes_what_was_done(host: Host, kernel: KernelProxy, plan: Plan) -> None:
    found = state(host)
    with pytest.raises(KernelError, match="nosuch"):
        kernel.apply(replace(plan, vip_dev="nosuch"))
    assert changed(host, found) == ""
    kernel.apply(plan)
    with_plan = state(host)
    with pytest.raises(KernelError):
        kernel.apply(serving(replace(plan, vip_dev="nosuch"), {(6, "10.2.0.105", 81)}))
    assert kernel.check() == []
    assert unordered(state(host)) == unordered(with_plan)
    kernel.withdraw()
    assert changed(host, found) == ""


def test_queues_are_those_of_the_plan(host: Host, kernel: KernelProxy, plan: Plan) -> None:
    kernel.apply(replace(plan, gso=(10, 11, 12), plain=(20, 21, 22), syn=(30, 31, 32)))
    if plan.diverter == "nft":
        for family in ("ip", "ip6"):
            for kind, first in (("gso", 10), ("plain", 20), ("syn", 30)):
                for i in range(3):
                    chain = host.run(["nft", "list", "chain", family, f"nfqlb-{NAME}", f"{kind}-{i}"]).stdout
                    assert f"queue num {first + i}\n" in chain
                    assert "bypass" not in chain
    else:
        for program in ("iptables", "ip6tables"):
            for chain, firsts in (("in", ["30", "31", "32"]), ("back", [])):
                rules = host.run([program, "-t", "mangle", "-S", f"nfqlb-{NAME}.{chain}"]).stdout.splitlines()[1:]
                queues = [rule.partition("--queue-num ")[2] for rule in rules]
                assert queues == [*firsts, "10", "11", "12", "20", "21", "22"]
                assert ["-p tcp" in rule for rule in rules] == [True] * (3 + len(firsts)) + [False] * 3
                assert ["FIN,SYN,RST,ACK SYN" in rule for rule in rules] == [True] * len(firsts) + [False] * 6
    kernel.apply(replace(plan, gso=(10,), plain=(30,)))
    assert kernel.check() == []


def test_two_directors_of_similar_names(host: Host, plan: Plan) -> None:
    """The first changes what both need; when it goes, the other keeps it, and the last one puts it back."""
    found = state(host)
    plans = [replace(plan, name="a"), serving(replace(plan, name="a-b"), {(6, "10.2.0.100", 81)})]
    kernels = [KernelProxy(host.namespace, its.name, host.folder / its.name / "kernel.json") for its in plans]
    for kernel, its in zip(kernels, plans, strict=True):
        kernel.apply(its)
    assert [kernel.repair() for kernel in kernels] == [[], []]
    kernels[0].withdraw()
    assert kernels[1].check() == []
    kernels[1].withdraw()
    assert changed(host, found) == ""


def test_more_services_than_an_ipset_holds_by_default(host: Host, kernel: KernelProxy) -> None:
    many = frozenset((6, f"10.{100 + i // 65536}.{i // 256 % 256}.{i % 256}", 80) for i in range(70_000))
    close_forward(host)
    small = replace(PLAN, diverter="nft", vip_dev=None)  # fills nft's sets and, for the firewall, ipsets
    for plan in (small, serving(small, services_of(small) | many), small):
        kernel.apply(plan)
        assert kernel.check() == []


def test_firewall_leave_touches_no_firewall(host: Host, kernel: KernelProxy, plan: Plan) -> None:
    close_forward(host)
    kernel.apply(replace(plan, firewall="leave"))
    assert kernel.check() == []
    for program in ("iptables", "ip6tables"):
        assert "nfqlb" not in host.run([program, "-t", "filter", "-S"]).stdout
    kernel.apply(plan)
    assert f"-A FORWARD -j nfqlb-{NAME}" in host.run(["iptables", "-S"]).stdout


@pytest.mark.parametrize(
    "use", ["iptables -A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT", ":"], ids=["conntrack", "no conntrack"]
)
def test_connection_tracking_is_used_only_where_it_is_in_use(
    host: Host, kernel: KernelProxy, plan: Plan, use: str
) -> None:
    host.run(["sh", "-c", use])
    close_forward(host)
    kernel.apply(plan)
    assert ("UNTRACKED" in host.run(["iptables", "-S", f"nfqlb-{NAME}"]).stdout) == ("conntrack" in use)


def test_legacy_firewall_is_opened_too(host: Host, kernel: KernelProxy, plan: Plan) -> None:
    host.run(["iptables-legacy", "-P", "FORWARD", "DROP"])
    found = host.run(["iptables-legacy-save"]).stdout.splitlines()[1:-1]
    kernel.apply(plan)
    assert f"-A FORWARD -j nfqlb-{NAME}" in host.run(["iptables-legacy", "-S"]).stdout
    host.run(["iptables-legacy", "-F"])
    assert kernel.repair()
    assert kernel.check() == []
    kernel.withdraw()
    assert host.run(["iptables-legacy-save"]).stdout.splitlines()[1:-1] == found


def test_warnings(host: Host, kernel: KernelProxy, plan: Plan) -> None:
    kernel.apply(plan)
    assert kernel.warnings() == []
    far = serving(replace(plan, vip_dev=None), reals=reals_of(plan) | {(6, "192.0.2.1", 80)})
    host.ip("route delete default", "route add unreachable 192.0.2.0/24")
    host.run(["nft", "add table inet mine"])
    host.run(["nft", "add chain inet mine fwds { type filter hook forward priority 10; policy drop; }"])
    kernel.apply(far)
    said = kernel.warnings()
    assert [word for word in ("10.2.0.100", "2001:db8:2::100", "192.0.2.1", "inet mine") if word not in str(said)] == []
    assert len(said) == 4


def run_require(host: Host, wrapper: list[str], plan: Plan, *, verb: str = "require") -> str:
    """Call a verb in a process of its own, started through `wrapper`; what it raised."""
    code = (
        "from pathlib import Path\nfrom nfqlb.kernel.kernel import Kernel\n"
        "from nfqlb.kernel.plan import Members, Plan\nfrom nfqlb.kernel.pool import Pool\n"
        f"kernel = Kernel('{NAME}', Path('{host.folder}/other.json'))\n"
        f"try: kernel.{verb}({plan!r})\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    return host.run([*wrapper, sys.executable, "-c", code]).stdout.strip()


def test_require(host: Host, plan: Plan, tmp_path: Path) -> None:
    assert run_require(host, [], plan) == ""
    said = run_require(host, ["setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin"], plan)
    assert said == "MissingError nfqlb needs CAP_NET_ADMIN to divert packets: run it as root"
    for name in ("iptables", "ipset"):
        folder = tmp_path / name
        folder.mkdir()
        for program in ("iptables", "ip6tables"):
            for suffix in ("", "-save", "-restore"):
                (folder / f"{program}{suffix}").symlink_to(f"/usr/sbin/{program}{suffix}")
        (folder / "ipset").symlink_to("/usr/sbin/ipset")
        (folder / name).unlink()
        said = run_require(host, ["env", f"PATH={folder}"], plan)
        assert said == f"MissingError the program {name} is not there: apt install iptables ipset"
    said = run_require(host, [], replace(plan, vip_dev="nosuch"))
    assert said.startswith("ConfigError vip_dev 'nosuch': is not an interface")


def test_read_only_sysctls_are_named(host: Host, plan: Plan) -> None:
    found = state(host)
    read_only = 'mount -o bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys && exec "$@"'
    said = run_require(host, ["unshare", "-m", "sh", "-c", read_only, "sh"], plan, verb="apply")
    reason = "cannot be changed from here (Read-only file system)"
    assert said.startswith(f"MissingError sysctls {reason}: set them by `sysctl -w net.ipv4.ip_forward=1 ")
    assert said.endswith(" net.ipv6.conf.all.forwarding=1`")
    assert changed(host, found) == ""


def test_vip_is_announced(make_net: Callable[..., Net], plan: Plan) -> None:
    net = make_net(servers=0, vip="free", web=False)
    kernel = KernelProxy(net.director.namespace, NAME, net.director.folder / "kernel.json")
    with net.router.capture("arp or icmp6", "eth0") as path:
        kernel.apply(plan)
    seen = subprocess.run(["tcpdump", "-n", "-vv", "-r", str(path)], capture_output=True, text=True).stdout
    assert seen.count("Request who-has 10.2.0.100 tell 10.2.0.100") == 3
    assert seen.count("Reply 10.2.0.100 is-at") == 3
    assert seen.count("[icmp6 sum ok] ICMP6, neighbor advertisement, length 32, tgt is 2001:db8:2::100") == 3
    kernel.crash()
