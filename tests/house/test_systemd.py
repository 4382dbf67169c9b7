"""The systemd unit, judged by systemd's own tools; no systemd has to run."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nfqlb.holder import LEAVE
from nfqlb.runconfig import QUEUES_PER_WORKER, WORKERS_MAX

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "systemd" / "nfqlb@.service"


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit as an instance, with the program where it is here: systemd looks in /usr and /usr/local."""
    program = Path(sys.executable).with_name("nfqlb")
    path = tmp_path / "nfqlb@web.service"
    path.write_text(re.sub(r"(?m)^(Exec\w+=)nfqlb ", rf"\1{program} ", UNIT.read_text()))
    return path


def test_systemd_understands_every_line(unit: Path) -> None:
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""


def test_the_service_is_exposed_to_little(unit: Path) -> None:
    """Of 10, as systemd counts: it must have the network, packet sockets and CAP_NET_ADMIN."""
    subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=30", unit], capture_output=True, check=True
    )


def test_it_is_told_of_ready_and_of_life() -> None:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(UNIT.read_text())
    service = parser["Service"]
    assert service["Type"] == "notify"
    assert int(service["WatchdogSec"]) > 0
    assert service["RestartKillSignal"] == LEAVE.name
    assert int(service["FileDescriptorStoreMax"]) >= 2 + WORKERS_MAX * QUEUES_PER_WORKER
    assert service["LimitNOFILE"] == "1024:524288"
    assert service["CapabilityBoundingSet"].split() == [
        f"CAP_{name}" for name in ("NET_ADMIN", "NET_RAW", "BPF", "PERFMON", "SETUID", "SETGID")
    ]
    assert service.get("ProtectKernelTunables", "no") == "no"  # it would take forwarding away
