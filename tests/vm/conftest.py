"""Tests that need a kernel with modules of its own: `make oracle-vm` runs them in a machine that has them (ipvs-vm)."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from netns.topology import Net

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents and "IPVS_VM" not in os.environ:
            item.add_marker(pytest.mark.skip(reason="of `make oracle-vm`"))


@pytest.fixture(scope="session", autouse=True)
def machine() -> None:
    """Modules are loaded before the first network is made: each namespace then has from its beginning what they put
    there. iptables is the one that needs no nf_tables; what is written here is gone with the machine.
    """
    modules = ["ipip", "ip6_tunnel", "ip_vs", "ip_vs_rr", "cls_bpf", "ip_tables", "ip6_tables", "xt_set"]
    subprocess.run(["modprobe", "-a", *modules], check=True, timeout=30)
    for program in ("iptables", "ip6tables"):
        legacy = f"/usr/sbin/{program}-legacy"
        subprocess.run(["update-alternatives", "--set", program, legacy], check=True, timeout=30, capture_output=True)


@pytest.fixture
def make_net() -> Iterator[Callable[..., Net]]:
    """make_net(servers=2): a topology that goes when the test ends."""
    with ExitStack() as stack:
        yield lambda **shape: stack.enter_context(Net(**shape))
