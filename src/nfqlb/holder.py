"""Owns what must outlive a crash of the director: the name, the table's memory and the queues' sockets.

Strategy: one process, no threads, standard library only, so that there is next to nothing in it that could fail. It
makes the things above, starts the director with them and waits; a director that crashes is started again with the
same things, and packets wait in the kernel meanwhile, because a queue belongs to its socket.

- Every signal it cares for is blocked and fetched by `sigtimedwait`: no handlers, no races. The ready pipe speaks the
  same language (O_ASYNC makes it SIGIO). The director starts with them blocked too, so a stop is never lost.
- The director inherits the lock: the name is free again when both are gone.
- What tells a restarted director which queue a socket is bound to is the kernel (its port id in
  /proc/net/netfilter/nfnetlink_queue), so the holder has nothing to remember.
- It speaks to systemd: ready, stopping, and the watchdog's signs of life, which the director gives and it passes on.
- It forks what runs scripts as another user (`nfqlb.spawner`) while it may, and holds the socket to it; that becomes
  another program when the first script is to run, so a start does not wait for it.
- It gives up all capabilities but two (four with the offload) before it starts the director; uid 0 stays, for files
  that are root's alone (/proc/net/ip_tables_names, xtables.lock, the table and the state of a director that was
  started by hand).
- Where a director could not clean up (killed before `ready`, or while it stopped, or not running because of the
  back-off), `nfqlb.daemon --withdraw` does that part of its work.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pwd
import signal
import socket
import stat
import struct
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from nfqlb.errors import ConfigError, NfqlbError, TakenError
from nfqlb.kernel.capabilities import BPF, NET_ADMIN, NET_RAW, PERFMON, SETGID, SETUID, capable, keep_only
from nfqlb.logs import Voice
from nfqlb.paths import paths

NETLINK_NETFILTER = 12
QUEUES_PER_WORKER = 4  # gso, plain, head, syn
STOPS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}  # SIGHUP where there is no file that it could read again
EVENTS = STOPS | {signal.SIGCHLD, signal.SIGIO}
DIRECTOR = (sys.executable, "-P", "-m", "nfqlb.daemon")
SPAWNER = (sys.executable, "-P", "-m", "nfqlb.spawner")


class Holder:
    """`run` holds until the director ends on purpose and returns the exit code; times are seconds."""

    def __init__(
        self,
        config_fd: int,
        *,
        director: Sequence[str] = DIRECTOR,
        patience: float = 1.0,  # for a predecessor that is just dying
        grace: float = 10.0,  # from a stop to SIGKILL
        first_pause: float = 0.1,
        longest_pause: float = 5.0,
        sound_life: float = 60.0,  # a director that lived that long is restarted after first_pause again
    ) -> None:
        config = _read_config(config_fd)
        self.name = str(config["name"])
        self.api = Path(config["api"])
        self.workers = int(config.get("workers", 1))
        self.stops = STOPS - {signal.SIGHUP} if os.path.isabs(config.get("origin", "")) else STOPS
        self.capabilities = [NET_ADMIN, NET_RAW]
        if config.get("offload", "off") != "off":
            self.capabilities += [BPF, PERFMON]
        self.script_user = str(config.get("script_user", "nobody"))
        self.voice = Voice(config.get("log_format", "console"), self.name)
        self.paths = paths(self.name)
        self.config_fd, self.director = config_fd, director
        self.patience, self.grace = patience, grace
        self.first_pause, self.longest_pause, self.sound_life = first_pause, longest_pause, sound_life
        self.lock_fd = self.table_fd = self.ready_fd = -1
        self.queues: list[socket.socket] = []
        self.scripts: socket.socket | None = None
        self.spawner = 0
        self.stopping = self.ready = self.made_table = False
        self.starts = 0

    def run(self) -> int:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # an inherited SIG_IGN would reap the director unseen
        signal.pthread_sigmask(signal.SIG_BLOCK, EVENTS)
        self._take_name()
        try:
            self._make()
            self._start_spawner()
            keep_only(*self.capabilities)
            code = self._keep_running()
        finally:
            self._clean()
        return code if code >= 0 else 128 - code

    def _take_name(self) -> None:
        """Lock the name; a holder that was killed may have left a director that dies this very moment."""
        path = self.paths.lock
        deadline = time.monotonic() + self.patience
        while True:
            path.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if path.exists() and os.path.samestat(os.fstat(fd), path.stat()):
                    break  # else its last owner has unlinked it just now
            except BlockingIOError:
                if time.monotonic() > deadline:
                    pid = os.pread(fd, 20, 0).decode().strip() or "unknown"
                    os.close(fd)
                    raise TakenError(
                        f"a director named {self.name!r} is running (pid {pid}); stop it or choose another --name"
                    ) from None
                time.sleep(0.02)
            os.close(fd)
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        self.lock_fd = fd

    def _make(self) -> None:
        self._check_api()
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self.table_fd = os.open(self.paths.table, flags | os.O_CREAT | os.O_EXCL, 0o600)
            self.made_table = True
        except FileExistsError:  # of a director that crashed: its connections are in there
            self.table_fd = os.open(self.paths.table, flags)
            status = os.fstat(self.table_fd)
            if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
                raise TakenError(f"{self.paths.table} is not our table; remove it or choose another --name") from None
        try:
            fcntl.flock(self.table_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the same name may live in another run folder
        except BlockingIOError:
            raise TakenError(f"{self.paths.table} is in use; choose another --name") from None
        self.queues = [
            socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
            for _ in range(self.workers * QUEUES_PER_WORKER)
        ]

    def _start_spawner(self) -> None:
        """Start what runs scripts; without the right to become another user, or with no user to become, none can."""
        if not (self.script_user and capable(SETUID) and capable(SETGID)):
            return
        try:
            pwd.getpwnam(self.script_user)
        except KeyError:
            fix = "name one that is, or none ('') to run no scripts"
            raise ConfigError("script_user", self.script_user, "is no user here", fix) from None
        self.scripts, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.spawner = os.fork()
        if not self.spawner:
            _become_spawner(theirs.fileno(), self.script_user)
        theirs.close()

    def _check_api(self) -> None:
        if self.api.exists() and not self.api.is_socket():
            raise TakenError(f"{self.api} is there and is not a socket; name another path by --api")
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(self.api))
            except OSError:
                return  # nobody there, or the leftover of a crash
            peer = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        raise TakenError(
            f"the API socket {self.api} is answered by another process (pid {struct.unpack('3i', peer)[0]}); "
            "name another by --api"
        )

    def _keep_running(self) -> int:
        """Start and restart the director; its exit code in the end, negative for a signal."""
        pause = self.first_pause
        while True:
            born = time.monotonic()
            pid = self._start("--start", str(self.starts))
            self.starts += 1
            code = self._wait(pid)
            if code == 0 or not self.ready or self.stopping:
                if code < 0 or (code > 0 and self.stopping):
                    self.voice.say(f"director {pid} {_ended(code)} before it cleaned up; doing that for it", "error")
                    self._withdraw()
                return code
            if time.monotonic() - born >= self.sound_life:
                pause = self.first_pause
            self.voice.say(f"director {pid} {_ended(code)}; starting it again in {pause:g} s", "error")
            self._alive()
            if self._stopped_within(pause):
                return self._withdraw()
            pause = min(2 * pause, self.longest_pause)

    def _start(self, *arguments: str) -> int:
        """Start the director (or its --withdraw) with all we hold; returns its pid."""
        self.ready_fd, child_end = os.pipe()
        fcntl.fcntl(self.ready_fd, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(self.ready_fd, fcntl.F_SETFL, os.O_NONBLOCK | os.O_ASYNC)
        queues = [queue.fileno() for queue in self.queues]
        scripts = [self.scripts.fileno()] if self.scripts else []
        inherited = [self.config_fd, self.lock_fd, self.table_fd, child_end, *queues, *scripts]
        for fd in inherited:
            os.set_inheritable(fd, True)
        command = [
            *self.director,
            *("--holder", str(os.getpid())),
            *("--config-fd", str(self.config_fd)),
            *("--table-fd", str(self.table_fd)),
            *("--ready-fd", str(child_end)),
            *("--queue-fds", ",".join(map(str, queues))),
            *(("--scripts-fd", str(scripts[0])) if scripts else ()),
            *arguments,
        ]
        try:
            return os.posix_spawn(command[0], command, os.environ, setsigmask=STOPS)
        finally:
            os.close(child_end)

    def _wait(self, pid: int) -> int:
        """Wait for the end of a child, pass signals on to it, and see that it heeds a stop."""
        deadline: float | None = None
        while True:
            event = signal.sigtimedwait(EVENTS, 3600 if deadline is None else max(0, deadline - time.monotonic()))
            if event and event.si_signo in self.stops:
                self._stop()
                deadline = deadline or time.monotonic() + self.grace
            ended, status = os.waitpid(pid, os.WNOHANG)
            self._listen()
            if ended:
                os.close(self.ready_fd)
                return os.waitstatus_to_exitcode(status)
            if event and event.si_signo in STOPS:
                os.kill(pid, event.si_signo)
            elif deadline and time.monotonic() >= deadline:
                self.voice.say(f"director {pid} did not end within {self.grace:g} s: killed", "error")
                os.kill(pid, signal.SIGKILL)
                deadline = None

    def _listen(self) -> None:
        """Hear the director: its first byte says ready, each further one that it is well."""
        try:
            heard = os.read(self.ready_fd, 64)
        except BlockingIOError:
            return
        if heard and not self.ready:
            self.ready = True
            self._notify("READY=1")
        elif heard:
            self._alive()

    def _alive(self) -> None:
        if "WATCHDOG_USEC" in os.environ:
            self._notify("WATCHDOG=1")

    def _stop(self) -> None:
        if not self.stopping:
            self.stopping = True
            self._notify("STOPPING=1")

    def _notify(self, state: str) -> None:
        """Tell systemd, where it asked for that (sd_notify(3)); it listens to its main process only, this one."""
        path = os.environ.get("NOTIFY_SOCKET", "")
        if path:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
                try:
                    out.sendto(state.encode(), "\0" + path[1:] if path[0] == "@" else path)
                except OSError as error:
                    self.voice.say(f"cannot notify {path}: {error.strerror}", "warning")

    def _stopped_within(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while not self.stopping and (left := deadline - time.monotonic()) > 0:
            event = signal.sigtimedwait(EVENTS, left)
            if event and event.si_signo in self.stops:
                self._stop()
        return self.stopping

    def _withdraw(self) -> int:
        self._stop()
        code = self._wait(self._start("--withdraw"))
        if code:
            rest = f"what is left of {self.name!r} goes with the next start under that name"
            self.voice.say(f"the clean-up {_ended(code)}: {rest}", "error")
        return code

    def _clean(self) -> None:
        """Remove what was made here; the lock last, and its folder if nobody else put anything there."""
        for queue in self.queues:
            queue.close()
        if self.scripts:
            self.scripts.close()  # the spawner kills what still runs, and ends
            _bury(self.spawner, self.grace)
        if self.queues and self.api.is_socket():
            self.api.unlink()
        if self.ready or self.made_table:  # else it is a predecessor's, and the next start may want it
            self.paths.table.unlink(missing_ok=True)
        self.paths.lock.unlink(missing_ok=True)
        os.close(self.lock_fd)
        with contextlib.suppress(OSError):
            self.paths.run.rmdir()


def _read_config(fd: int) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads(os.pread(fd, os.fstat(fd).st_size, 0))
    except (OSError, ValueError) as error:
        raise ConfigError("--config-fd", fd, f"has no configuration ({error})", "start nfqlb by `nfqlb run`") from None
    return config


def _become_spawner(fd: int, user: str) -> NoReturn:
    """In a child of the holder: be nothing but two capabilities until there is a script to run, then the spawner."""
    try:
        os.setpgid(0, 0)
        os.closerange(3, fd)
        os.closerange(fd + 1, 0x7FFFFFFF)
        signal.pthread_sigmask(signal.SIG_SETMASK, STOPS)
        keep_only(SETUID, SETGID)
        with socket.socket(fileno=fd) as asked:
            if asked.recv(1, socket.MSG_PEEK):
                os.set_inheritable(fd, True)
                os.execv(SPAWNER[0], [*SPAWNER, str(fd), user])
    finally:
        os._exit(1)


def _bury(pid: int, seconds: float) -> None:
    """Wait for a child that is about to end; kill it when it does not."""
    deadline = time.monotonic() + seconds
    while not os.waitpid(pid, os.WNOHANG)[0]:
        if not signal.sigtimedwait({signal.SIGCHLD}, max(0, deadline - time.monotonic())):
            os.kill(pid, signal.SIGKILL)
            deadline = time.monotonic() + seconds


def _ended(code: int) -> str:
    if code < 0:
        return f"was killed by signal {-code} ({signal.strsignal(-code)})"
    return f"exited with code {code}"


def main() -> NoReturn:
    voice = Voice()
    try:
        arguments = sys.argv[1:]
        if len(arguments) != 2 or arguments[0] != "--config-fd" or not arguments[1].isdigit():
            raise ConfigError("arguments", " ".join(arguments), "are not --config-fd N", "start nfqlb by `nfqlb run`")
        holder = Holder(int(arguments[1]))
        voice = holder.voice
        code = holder.run()
    except NfqlbError as error:
        voice.say(str(error), "error")
        code = error.exit_code
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        fix = "; NFQLB_RUN_DIR, NFQLB_STATE_DIR and NFQLB_TABLE_DIR name other folders" if where else ""
        voice.say(f"{where}{error.strerror or error}{fix}", "error")
        code = 1
    sys.exit(code)


if __name__ == "__main__":
    main()
