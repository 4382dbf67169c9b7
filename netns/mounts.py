"""Machines with mounts of their own, and files that go from one to the other over the network: sshd and sshfs.

Strategy: the first program of such a machine makes its mounts in the mount namespace that `ip netns exec` gave it, and
stays; every later program enters that namespace. What is mounted there is seen nowhere else, and goes with the last
process that is in it, so nothing is left to unmount at the end or after a crash. Programs find what they want where
Debian has it: each machine has a /run and users of its own and, if it asks for that, an /etc/postfix.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from netns.host import PROJECT, CommandError, Host, Process, until
from netns.web import Storage

SHARED = Path("/srv")  # the same on the storage and on all who mount it
USER, PASSWORD, UID = "reader", "secret", 5000  # who has an account on every such machine
# openssl passwd -6 -salt nfqlb secret
CRYPTED = "$6$nfqlb$Qz48MAlnIkBl45nQNfOHJwFf4XeXeUY9pi4ReYwiUGdZK5HpJcAS6Owubunfj8r7xVVVWB08hOKvvKQoOIV6M."
SSHD = """
Port 22
HostKey {keys}/host
AuthorizedKeysFile {keys}/client.pub
PidFile none
StrictModes no
UsePAM no
PermitRootLogin prohibit-password
Subsystem sftp internal-sftp
ForceCommand internal-sftp
"""
SSH = """
Host *
    User root
    IdentityFile {keys}/client
    IdentitiesOnly yes
    UserKnownHostsFile {keys}/known_hosts
    GlobalKnownHostsFile none
    StrictHostKeyChecking yes
    HostKeyAlias storage
    Ciphers aes128-gcm@openssh.com
    ServerAliveInterval 5
"""
# Nothing is remembered, so that what one machine writes the others see at once. Owners are not asked for.
SSHFS = "dir_cache=no,attr_timeout=0,entry_timeout=0,negative_timeout=0,allow_other"


class Mounting(Host):
    """A machine with a host name, whose programs share a mount namespace."""

    root: Process | None = None  # the program that holds the mounts

    def own(self, name: str) -> Path:
        """A directory of this machine, to be mounted where only its programs see it."""
        path = self.folder / "own" / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def mount(self, mounts: Mapping[str, Path], argv: Sequence[str], ready: Callable[[Process], bool]) -> None:
        """Bind each path of ours over one of the system's, start the program that holds them, wait for it."""
        files = {
            "hosts": f"127.0.0.1 localhost {self.name}\n",  # nobody here knows more names
            "passwd": f"{Path('/etc/passwd').read_text()}{USER}:x:{UID}:{UID}::{SHARED}:/bin/sh\n",
            "shadow": f"root:*:19000::::::\n{USER}:{CRYPTED}:19000::::::\n",
        }
        mounts = {"/run": self.own("run"), **mounts}
        for name, text in files.items():
            mounts[f"/etc/{name}"] = self.own("etc") / name
            mounts[f"/etc/{name}"].write_text(text)
        binds = [f"mount --bind {shlex.quote(str(path))} {target}" for target, path in mounts.items()]
        script = " && ".join([f"hostname {self.name}", *binds, f"exec {shlex.join(argv)}"])
        program = self.spawn(["unshare", "--uts", "sh", "-c", script], log="mounts.log")
        until(
            lambda: not program.running or ready(program),
            10,
            lambda: f"{self.name}: {argv[0]} is late:\n{program.text}",
        )
        if not program.running:
            raise CommandError(f"{self.name}: {shlex.join(argv)} ended:\n{program.text}")
        self.root = program

    def argv(self, argv: Sequence[str]) -> list[str]:
        if self.root is None:
            return super().argv(argv)
        return ["nsenter", f"--target={self.root.pid}", "--net", "--mount", "--uts", f"--wd={PROJECT}", "--", *argv]


class StorageHost(Mounting, Storage):
    """The storage of the real servers on a machine of its own, whose /srv they mount."""

    FILES = "srv/www"

    @property
    def shared(self) -> Path:
        """Its /srv as it is seen from outside."""
        return self.folder / "srv"

    def start(self) -> None:
        """Start sshd, with keys made for this run."""
        keys = self.own("keys")
        for key in ("host", "client"):
            self.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(keys / key)])
        (keys / "known_hosts").write_text("storage " + (keys / "host.pub").read_text())
        (keys / "ssh_config").write_text(SSH.format(keys=keys))
        (keys / "sshd_config").write_text(SSHD.format(keys=keys))
        (self.own("run") / "sshd").mkdir()
        argv = ["/usr/sbin/sshd", "-D", "-e", "-f", str(keys / "sshd_config")]
        self.mount({str(SHARED): self.shared}, argv, lambda _: 22 in self.listening())

    def mounted_by(self, host: Mounting, mounts: Mapping[str, Path]) -> None:
        """Mount the files there as /srv, together with what else that machine has for itself."""
        host.mount(mounts, self.sshfs, is_mounted)

    def mounted_again(self, host: Mounting) -> None:
        """The same for programs that run, whose mount is dead."""
        program = host.spawn(["sh", "-c", f"umount -l {SHARED} && exec {shlex.join(self.sshfs)}"], log="mounts.log")
        until(lambda: is_mounted(program), 10, lambda: f"{host.name}: sshfs is late:\n{program.text}")
        host.root = program

    @property
    def sshfs(self) -> list[str]:
        ssh = f"ssh -F {self.own('keys') / 'ssh_config'}"
        return ["sshfs", "-f", "-o", f"{SSHFS},ssh_command={ssh}", f"{self.v4}:{SHARED}", str(SHARED)]


def is_mounted(program: Process) -> bool:
    """Whether a program sees files that come over the network."""
    return " fuse.sshfs " in Path(f"/proc/{program.pid}/mountinfo").read_text()
