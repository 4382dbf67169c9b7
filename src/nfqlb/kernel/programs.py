"""Running iptables, ip6tables, ipset and nft; nothing else in this folder starts a program.

Strategy: fixed argument lists, no shell, the C locale, a time limit; what goes wrong becomes one sentence with the
program's own words in it.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess

from nfqlb.errors import KernelError, MissingError

TIMEOUT = 30  # seconds; iptables may wait for its lock
APT = "apt install iptables ipset"


def run(*argv: str, stdin: str = "") -> str:
    """The program's output; KernelError with its first words where it fails."""
    try:
        done = subprocess.run(
            argv, input=stdin, capture_output=True, text=True, timeout=TIMEOUT, env={**os.environ, "LC_ALL": "C"}
        )
    except FileNotFoundError:
        raise MissingError(f"the program {argv[0]} is not there: {APT}") from None
    except subprocess.TimeoutExpired:
        raise KernelError(f"{' '.join(argv)} did not end within {TIMEOUT} s") from None
    if done.returncode:
        words = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("#")]
        raise KernelError(f"{' '.join(argv)} failed: {words[0] if words else f'exit code {done.returncode}'}")
    return done.stdout


def there(program: str) -> bool:
    return shutil.which(program) is not None


@functools.cache
def is_nft(program: str) -> bool:
    """Whether this iptables keeps its rules in nftables; the legacy one has tables of its own."""
    return "nf_tables" in run(program, "-V")
