"""The stubs of the core say what the compiled modules are: mypy's stubtest imports both and compares."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_compiled_module_has_a_stub() -> None:
    sources = {path.stem for path in (ROOT / "ext/nfqlb/_core").glob("*.pyx")}
    assert {path.stem for path in (ROOT / "src/nfqlb/_core").glob("*.pyi")} == sources


def test_the_stubs_tell_the_truth() -> None:
    # to CPython every compiled class is a disjoint base; nobody here inherits from two
    command = [sys.executable, "-m", "mypy.stubtest", "nfqlb._core", "--ignore-disjoint-bases"]
    command += ["--mypy-config-file", "pyproject.toml", "--allowlist", "tests/house/stubtest.allow"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
