"""The compiled core has the sanitizers that NFQLB_BUILD asks for; a read where it may not ends the process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import nfqlb._core

BUILD = os.environ.get("NFQLB_BUILD", "release")
MODULES = sorted(Path(nfqlb._core.__path__[0]).glob("*.so"))
# The table of 64 connections has 1024 slots: the core trusts a configuration, and looks at a load that is not there.
WRONG_SLOT = """
from nfqlb._core.snapshot import Service, Snapshot
from nfqlb.testing import endpoint, tcp
from tests.core.lab import CLIENT, REAL, VIP, Lab

lab = Lab(capacity=64)
lab.datapath.publish(Snapshot([Service(6, *endpoint(VIP), "lc", [(1024, *endpoint(REAL), 1, "nat")])]))
lab.send(tcp(CLIENT, VIP))
"""


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name.partition(".")[0])
def test_a_module_is_compiled_as_asked(module: Path) -> None:
    """With calls for what AddressSanitizer finds, and for undefined behaviour that ends the process; or without any."""
    code = module.read_bytes()
    for mark in (b"__asan_report_load", b"__ubsan_handle_type_mismatch_v1_abort"):
        assert (mark in code) == (BUILD == "sanitize")


@pytest.mark.skipif(BUILD != "sanitize", reason="of `make sanitize`")
def test_a_read_behind_the_loads_ends_the_process() -> None:
    environ = os.environ | {"ASAN_OPTIONS": os.environ["ASAN_OPTIONS"] + ":log_path=stderr"}
    ran = subprocess.run([sys.executable, "-c", WRONG_SLOT], env=environ, capture_output=True, text=True, check=False)
    assert ran.returncode != 0
    assert "heap-buffer-overflow" in ran.stderr
    assert "least_connection" in ran.stderr
