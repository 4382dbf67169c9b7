"""The README's own commands, run as they stand there, on the network that it talks of."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

from netns import load
from netns.host import PROJECT
from netns.topology import Net

README = (PROJECT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
COMMANDS = [line for kind, text in BLOCKS if kind == "sh" for line in text.splitlines()]
EQUIVALENTS = re.findall(r"^\| `ipvsadm [^`]*` \| `(nfqlb [^`]*)` \|$", README, re.MULTILINE)


def block(kind: str) -> str:
    return next(text for found, text in BLOCKS if found == kind)


def shape(text: str) -> list[str]:
    """The lines without what differs from run to run: figures, digests, spaces."""
    return [re.sub(r"[0-9a-f]{16}|[\d.,]+", "N", " ".join(line.split())) for line in text.splitlines() if line.strip()]


def environment(instance: str) -> dict[str, str]:
    """The program within reach, and a name that no other director on this machine has."""
    return {"NFQLB_NAME": instance, "PATH": f"{PROJECT / '.venv/bin'}:{os.environ['PATH']}"}


def test_make_demo_prints_what_the_readme_shows() -> None:
    done = subprocess.run(["make", "demo"], cwd=PROJECT, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
    expected = shape(block("text"))
    assert shape(done.stdout)[-len(expected) :] == expected


def test_every_make_target_of_the_readme_is_there() -> None:
    targets = [line.split()[1] for line in COMMANDS if line.startswith("make ")]
    assert targets == ["demo", "test"]
    for target in targets:
        subprocess.run(["make", "-n", target], cwd=PROJECT, check=True, capture_output=True, timeout=60)


def test_every_nfqlb_command_of_the_readme_works(make_net: Callable[..., Net]) -> None:
    net = make_net(servers=3, vip="free")
    folder: Path = net.director.folder
    (folder / "nfqlb.toml").write_text(block("toml"))
    commands = [line for line in COMMANDS if line.startswith("nfqlb ")] + EQUIVALENTS
    assert len(EQUIVALENTS) == 11
    running = None
    for line in commands:
        if line.endswith("&"):
            if running:
                assert running.end() == 0
            if "--vip-dev" not in line:
                net.director.ip(f"address add {net.vip()}/32 dev eth0")
            argv = ["bash", "-c", f"cd {folder}; exec {line.removesuffix('&')}"]
            running = net.director.spawn(argv, log="readme.log", env=environment(net.director.instance))
            running.says("ready", 20)
            assert {name for name, _ in load.whoami(net.client, net.url(), 8)} == {"s1", "s2"}
        else:
            net.director.run(["bash", "-c", line], env=environment(net.director.instance))
    assert running
    assert running.end() == 0
