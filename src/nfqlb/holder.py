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
- It hands over (docs/handover.md): to itself as a new program (SIGUSR2), to another holder that knocks
  (`nfqlb.handover`), or to the next start (SIGUSR1, systemd's restart). In each case a new director prepares itself
  while the old one serves; that one answers what it has and ends, and packets wait in the kernel until the new one
  takes them. What fails before that leaves the old one serving.
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

from nfqlb import handover
from nfqlb.errors import ConfigError, NfqlbError, TakenError
from nfqlb.handover import LETS_GO, PREPARED, Estate
from nfqlb.kernel.capabilities import BPF, NET_ADMIN, NET_RAW, PERFMON, SETGID, SETUID, capable, keep_only
from nfqlb.logs import Voice
from nfqlb.paths import paths

NETLINK_NETFILTER = 12
QUEUES_PER_WORKER = 4  # gso, plain, head, syn
STOPS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}  # SIGHUP where there is no file that it could read again
RENEW, LEAVE = signal.SIGUSR2, signal.SIGUSR1
EVENTS = STOPS | {signal.SIGCHLD, signal.SIGIO, RENEW, LEAVE}
DIRECTOR = (sys.executable, "-P", "-m", "nfqlb.daemon")
SPAWNER = (sys.executable, "-P", "-m", "nfqlb.spawner")
HOLDER = (sys.executable, "-P", "-m", "nfqlb.holder")
LOOK_SECONDS = 0.05  # between looks where a signal may have been for something else


class Holder:
    """`run` holds until the director ends on purpose and returns the exit code; times are seconds."""

    def __init__(
        self,
        config_fd: int,
        *,
        takeover: bool = False,  # from the holder that runs, if there is one
        resume_fd: int = -1,  # what this process knew as the program before
        director: Sequence[str] = DIRECTOR,
        program: Sequence[str] = HOLDER,
        patience: float = 1.0,  # for a predecessor that is just dying
        grace: float = 10.0,  # from a stop to SIGKILL
        preparing: float = 15.0,  # that a successor may take to be prepared
        first_pause: float = 0.1,  # before the second start in a row; the first is at once
        longest_pause: float = 5.0,
        sound_life: float = 60.0,  # a director that lived that long is restarted at once again
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
        self.config_fd, self.director, self.program = config_fd, director, program
        self.takeover, self.resume_fd = takeover, resume_fd
        self.about = {name: config.get(name) for name in (*handover.KEPT, "queue", "api")}
        self.patience, self.grace, self.preparing = patience, grace, preparing
        self.first_pause, self.longest_pause, self.sound_life = first_pause, longest_pause, sound_life
        self.lock_fd = self.table_fd = self.ready_fd = -1
        self.queues: list[socket.socket] = []
        self.scripts: socket.socket | None = None
        self.spawner = 0
        self.stopping = self.ready = self.made_table = False
        self.starts = self.refusal = 0
        self.deadline: float | None = None  # when a director that is to end is killed
        self.door: socket.socket | None = None
        self.heir: socket.socket | None = None  # the holder that takes over from us
        self.predecessor: socket.socket | None = None  # the one that we take over from
        self.elder = 0  # the director that serves while its successor prepares itself
        self.elder_fd = -1
        self.leaving = False  # the director is to let go
        self.handed = False  # nothing of all this is ours any more

    def run(self) -> int:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # an inherited SIG_IGN would reap the director unseen
        signal.pthread_sigmask(signal.SIG_BLOCK, EVENTS)
        kept = handover.stored(os.environ, os.getpid())
        for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
            os.environ.pop(name, None)
        if self.resume_fd >= 0:
            self._resume()
        elif not (self.takeover and self._inherit()):
            self._take_name(kept)
        try:
            if self.resume_fd < 0:
                if not self.predecessor:
                    self._make(kept)
                self._start_spawner()
                self._store(kept)
            if not self.predecessor:  # else the door is still another's
                self._open_door()
            keep_only(*self.capabilities)
            code = self._keep_running()
        finally:
            self._clean()
        return code if code >= 0 else 128 - code

    def _take_name(self, kept: dict[str, int]) -> None:
        """Lock the name; a holder that was killed may have left a director that dies this very moment. The lock of the
        last start may have been `kept`.
        """
        path = self.paths.lock
        if "lock" in kept and path.exists() and os.path.samestat(os.fstat(kept["lock"]), path.stat()):
            self.lock_fd = kept.pop("lock")
            self._sign()
            return
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
        self.lock_fd = fd
        self._sign()

    def _sign(self) -> None:
        os.ftruncate(self.lock_fd, 0)
        os.pwrite(self.lock_fd, f"{os.getpid()}\n".encode(), 0)

    def _make(self, kept: dict[str, int]) -> None:
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
        table = kept.get("table", -1)
        if table >= 0 and os.path.samestat(os.fstat(table), os.fstat(self.table_fd)):
            os.close(self.table_fd)  # the one that was kept has the lock
            self.table_fd = kept.pop("table")
        try:
            fcntl.flock(self.table_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the same name may live in another run folder
        except BlockingIOError:
            raise TakenError(f"{self.paths.table} is in use; choose another --name") from None
        count = self.workers * QUEUES_PER_WORKER
        names = _queue_names(count)
        if {name for name in kept if name.startswith("queue-")} == set(names):  # else of another number of workers
            self.queues = [socket.socket(fileno=kept.pop(name)) for name in names]
            return
        self.queues = [socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) for _ in range(count)]

    def _store(self, kept: dict[str, int]) -> None:
        """Have systemd keep what a start after this process finds again; what it kept for nothing goes."""
        path = os.environ.get("NOTIFY_SOCKET", "")
        try:
            if path and kept:
                handover.drop(path, sorted(kept))
            if path:
                names = _queue_names(len(self.queues))
                queues = {name: queue.fileno() for name, queue in zip(names, self.queues, strict=True)}
                handover.store(path, {"lock": self.lock_fd, "table": self.table_fd, **queues})
        except OSError as error:
            self.voice.say(f"systemd keeps no descriptors: {error.strerror or error}", "warning")
        for fd in kept.values():
            os.close(fd)

    def _open_door(self) -> None:
        try:
            self.door = handover.open_door(self.paths.door)
            _signalled(self.door.fileno())
        except OSError as error:
            self.voice.say(f"nobody can take over: {self.paths.door}: {error.strerror}", "warning")

    def _inherit(self) -> bool:
        """Be given what the holder of this name has; whether there is one."""
        found = handover.knock(self.paths.door, self.grace)
        if not found:
            return False
        self.predecessor, estate = found
        if other := handover.hindrance(self.about, estate.about):
            field, wanted, running = other
            fix = "a takeover keeps that; give the same, or stop and start"
            raise ConfigError(field, wanted, f"is {running} in the director that runs", fix)
        self.lock_fd, self.table_fd, self.starts = estate.lock, estate.table, int(estate.about["starts"])
        self.queues = [socket.socket(fileno=fd) for fd in estate.queues]
        if self.about["api"] != estate.about["api"]:
            self._check_api()
        return True

    def _resume(self) -> None:
        """Go on with what the program before had."""
        known = json.loads(os.pread(self.resume_fd, 1 << 20, 0))
        os.close(self.resume_fd)
        self.lock_fd, self.table_fd, self.elder_fd = known["lock"], known["table"], known["ready"]
        self.queues = [socket.socket(fileno=fd) for fd in known["queues"]]
        self.scripts = None if known["scripts"] is None else socket.socket(fileno=known["scripts"])
        self.spawner, self.starts, self.elder = known["spawner"], known["starts"], known["director"]
        self.ready = known["was_ready"]
        for fd in (self.config_fd, self.lock_fd, self.table_fd, self.elder_fd, *known["queues"]):
            os.set_inheritable(fd, False)
        if self.scripts:
            self.scripts.set_inheritable(False)

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
        pause = 0.0
        while True:
            born = time.monotonic()
            try:
                pid = self._succeed() if self.elder or self.predecessor else self._start("--start", str(self.starts))
                self.starts += 1
            except OSError as error:  # the program is not there, or the machine is short of something
                if not self.ready:
                    raise
                unborn, self.refusal = f"no director can be started ({error.strerror})", 1
                pid = self._keep_elder(unborn)
            code = self._wait(pid) if pid else self.refusal
            if self.leaving:
                if self._bequeath():
                    return 0
                if self.stopping:
                    return self._withdraw()
                continue
            if self.predecessor:
                if code and not self.stopping:
                    return code  # it goes on
                self._succeeded(self.predecessor)
            if code == 0 or not self.ready or self.stopping:
                if code < 0 or (code > 0 and self.stopping):
                    self.voice.say(f"director {pid} {_ended(code)} before it cleaned up; doing that for it", "error")
                    self._withdraw()
                return code
            if time.monotonic() - born >= self.sound_life:
                pause = 0.0
            ended = f"director {pid} {_ended(code)}" if pid else unborn
            self.voice.say(f"{ended}; starting it again in {pause:g} s", "error")
            self._alive()
            if self._stopped_within(pause):
                return 0 if self.handed else self._withdraw()
            pause = min(max(2 * pause, self.first_pause), self.longest_pause)

    def _start(self, *arguments: str, fds: Sequence[int] = ()) -> int:
        """Start the director (or its --withdraw) with all we hold; returns its pid."""
        self.ready_fd, child_end = os.pipe()
        _signalled(self.ready_fd)
        queues = [queue.fileno() for queue in self.queues]
        scripts = [self.scripts.fileno()] if self.scripts else []
        inherited = [self.config_fd, self.lock_fd, self.table_fd, child_end, *queues, *scripts, *fds]
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
        except OSError:
            os.close(self.ready_fd)
            raise
        finally:
            os.close(child_end)

    def _wait(self, pid: int) -> int:
        """Wait for the end of a child, pass signals on to it, and see that it heeds a stop, or that it is to let go."""
        if not self.leaving:
            self.deadline = None
        left = 0.0  # whoever waited before may have taken the signals of this one: look at once
        while True:
            event = signal.sigtimedwait(EVENTS, left)
            number = event.si_signo if event else 0
            if number in self.stops:
                self._stop()
                self.deadline = self.deadline or time.monotonic() + self.grace
            ended, status = os.waitpid(pid, os.WNOHANG)
            self._listen()
            if ended:
                os.close(self.ready_fd)
                return os.waitstatus_to_exitcode(status)
            self._attend(pid)
            if number in STOPS:
                os.kill(pid, number)
            elif number == LEAVE:
                self._let_go(pid)
            elif number == RENEW:
                self._renew(pid)
            elif self.deadline and time.monotonic() >= self.deadline:
                self.voice.say(f"director {pid} did not end within {self.grace:g} s: killed", "error")
                os.kill(pid, signal.SIGKILL)
                self.deadline = None
            left = 3600 if self.deadline is None else max(0, self.deadline - time.monotonic())

    def _listen(self) -> None:
        """Hear the director: its first byte says ready, each further one that it is well."""
        try:
            heard = os.read(self.ready_fd, 64).replace(PREPARED, b"")
        except BlockingIOError:
            return
        if heard and self.predecessor:
            self._succeeded(self.predecessor)
        if heard and not self.ready:
            self.ready = True
            self._notify("READY=1")
        elif heard:
            self._alive()

    # --- handing over ---------------------------------------------------------------------------------------------

    def _let_go(self, pid: int) -> None:
        """Have the director answer what it has taken, and end; packets wait from then on."""
        if not self.leaving and not self.stopping:
            self.leaving = True
            self.deadline = time.monotonic() + self.grace
            os.kill(pid, LETS_GO)

    def _attend(self, pid: int) -> None:
        """See to whoever wants to take over from us."""
        guest = handover.admit(self.door) if self.door else None
        if guest and (self.heir or self.leaving or self.stopping or not self.ready or self.predecessor):
            guest.close()
        elif guest:
            _signalled(guest.fileno())
            queues = tuple(queue.fileno() for queue in self.queues)
            about = {**self.about, "starts": self.starts, "holder": os.getpid(), "director": pid}
            with contextlib.suppress(OSError):
                handover.give(guest, Estate(self.lock_fd, self.table_fd, queues, about))
            self.heir = guest
        if not self.heir:
            return
        word = _word(self.heir)
        if word == handover.LET_GO:
            self._let_go(pid)
        elif word == b"" and not self.leaving:
            self.heir.close()
            self.heir = None
            self.voice.say("the one that wanted to take over has given up: everything stays", "warning")

    def _bequeath(self) -> bool:
        """The director has let go: have whoever takes over do so. False where nobody did, and we go on."""
        self.leaving = False
        if not self.heir:  # for the next start
            self.handed = True
            return True
        with contextlib.suppress(OSError):
            self.heir.send(handover.GONE)
        while (word := _word(self.heir)) not in (handover.DONE, b""):
            event = signal.sigtimedwait(EVENTS, LOOK_SECONDS)
            if event and event.si_signo in self.stops:
                self._stop()
        self.heir.close()
        self.heir = None
        self.handed = word == handover.DONE
        if self.handed:
            self.voice.say("everything is handed over")
        else:
            self.voice.say("the one that took over has failed: starting a director again", "error")
        return self.handed

    def _succeed(self) -> int:
        """Have a new director take the place of the one that serves, ours or our predecessor's; the pid of the one that
        serves then, or 0 where that is none of ours (`refusal` is the exit code).
        """
        reader, writer = os.pipe()
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, writer)
            try:
                pid = self._start("--start", str(self.starts), "--go-fd", str(reader), fds=(reader,))
            finally:
                os.close(reader)
            if not self._prepared(pid):
                self.refusal = self._give_up(pid)
                self.starts -= 1
                return self._keep_elder("the new director is not prepared")
            if self.elder:
                fresh, self.ready_fd = self.ready_fd, self.elder_fd
                self._let_go(self.elder)
                self._wait(self.elder)
                self._alive()
                self.elder, self.elder_fd, self.leaving, self.ready_fd = 0, -1, False, fresh
                if self.stopping:
                    self._give_up(pid)
                    self.refusal = self._withdraw()
                    return 0
            elif not self._is_free():
                self.refusal = self._give_up(pid)
                return 0
            with contextlib.suppress(BrokenPipeError):  # its end is seen where it is waited for
                os.write(writer, b"go")
        return pid

    def _keep_elder(self, why: str) -> int:
        """Have the director that serves go on without a successor; its pid, 0 where there is none of ours."""
        elder, self.elder = self.elder, 0
        self.ready_fd, self.elder_fd = self.elder_fd, -1
        if elder:
            self.voice.say(f"{why}: director {elder} goes on", "error")
        return elder

    def _prepared(self, pid: int) -> bool:
        """Whether a successor says in time that it could take packets now."""
        end = time.monotonic() + self.preparing
        while time.monotonic() < end:
            self._alive()
            with contextlib.suppress(BlockingIOError):
                word = os.read(self.ready_fd, 1)
                return word == PREPARED
            event = signal.sigtimedwait(EVENTS, LOOK_SECONDS)
            if event and event.si_signo in STOPS | {LEAVE}:
                os.kill(os.getpid(), event.si_signo)  # for the loop that waits for the one that serves
                return False
        return False

    def _give_up(self, pid: int) -> int:
        """End a successor that will not be one, and has touched nothing; its exit code."""
        os.kill(pid, signal.SIGKILL)
        os.close(self.ready_fd)
        code = _bury(pid, self.grace)
        return code or 1

    def _is_free(self) -> bool:
        """Have our predecessor's director let go."""
        assert self.predecessor
        self.predecessor.settimeout(self.grace + 5)
        try:
            self.predecessor.send(handover.LET_GO)
            return self.predecessor.recv(64) == handover.GONE
        except OSError:
            return False

    def _succeeded(self, predecessor: socket.socket) -> None:
        """All is ours from now on."""
        with contextlib.suppress(OSError):
            predecessor.send(handover.DONE)
        predecessor.close()
        self.predecessor = None
        self._sign()
        self._open_door()

    def _renew(self, pid: int) -> None:
        """Become the program that is installed now, which then renews the director; what fails changes nothing."""
        if self.stopping or self.leaving or self.heir or not self.ready:
            return
        try:
            self._become(pid)
        except OSError as error:
            self.voice.say(f"the new program cannot be run ({error.strerror}): everything stays", "error")

    def _become(self, pid: int) -> None:
        """OSError where it cannot be run."""
        check = os.posix_spawn(self.program[0], [*self.program, "--check"], os.environ)
        if os.waitstatus_to_exitcode(os.waitpid(check, 0)[1]):
            self.voice.say("the new program does not even load: everything stays", "error")
            return
        queues = [queue.fileno() for queue in self.queues]
        scripts = self.scripts.fileno() if self.scripts else None
        known = {"lock": self.lock_fd, "table": self.table_fd, "ready": self.ready_fd, "queues": queues}
        known |= {"scripts": scripts, "spawner": self.spawner, "starts": self.starts, "director": pid}
        known |= {"was_ready": self.ready}
        with open(os.memfd_create("nfqlb-resume", 0), "wb", buffering=0) as resume:
            resume.write(json.dumps(known).encode())
            for one in (
                self.config_fd,
                self.lock_fd,
                self.table_fd,
                self.ready_fd,
                *queues,
                *([scripts] if scripts else []),
            ):
                os.set_inheritable(one, True)
            self.voice.say("becoming the program that is installed now")
            fds = ["--config-fd", str(self.config_fd), "--resume-fd", str(resume.fileno())]
            os.execv(self.program[0], [*self.program, *fds])

    # --- what systemd and the end want ----------------------------------------------------------------------------

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
            elif event and event.si_signo == LEAVE:
                self.handed = True
                return True
        return self.stopping

    def _withdraw(self) -> int:
        self._stop()
        code = self._wait(self._start("--withdraw"))
        if code:
            rest = f"what is left of {self.name!r} goes with the next start under that name"
            self.voice.say(f"the clean-up {_ended(code)}: {rest}", "error")
        return code

    def _clean(self) -> None:
        """Remove what was made here; the lock last, and its folder if nobody else put anything there. What was handed
        over, or was not yet, stays.
        """
        if self.predecessor or self.handed:
            return  # the end of this process closes all of it
        if self.door:
            self.door.close()
            self.paths.door.unlink(missing_ok=True)
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


def _bury(pid: int, seconds: float) -> int:
    """Wait for a child that is about to end; kill it when it does not. Its exit code, 0 where it is nobody's."""
    deadline = time.monotonic() + seconds
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if not signal.sigtimedwait({signal.SIGCHLD}, max(0, deadline - time.monotonic())):
            os.kill(pid, signal.SIGKILL)
            deadline = time.monotonic() + seconds


def _queue_names(count: int) -> list[str]:
    return [f"queue-{number}" for number in range(count)]


def _signalled(fd: int) -> None:
    """Have the kernel send SIGIO when there is something to read."""
    fcntl.fcntl(fd, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(fd, fcntl.F_SETFL, os.O_RDWR | os.O_NONBLOCK | os.O_ASYNC)


def _word(connection: socket.socket) -> bytes | None:
    """What the other side says: nothing at all where it is gone, None where it is silent."""
    try:
        return connection.recv(64)
    except BlockingIOError:
        return None
    except OSError:
        return b""


def _ended(code: int) -> str:
    if code < 0:
        return f"was killed by signal {-code} ({signal.strsignal(-code)})"
    return f"exited with code {code}"


def parse(arguments: Sequence[str]) -> dict[str, Any]:
    """The words after the program's name, as Holder takes them."""
    found: dict[str, Any] = {}
    words = list(arguments)
    while words:
        word = words.pop(0)
        if word == "--takeover":
            found["takeover"] = True
        elif word in ("--config-fd", "--resume-fd") and words and words[0].isdigit():
            found[word[2:].replace("-", "_")] = int(words.pop(0))
        else:
            found.clear()
            break
    if "config_fd" not in found:
        raise ConfigError("arguments", " ".join(arguments), "are not --config-fd N", "start nfqlb by `nfqlb run`")
    return found


def main() -> NoReturn:
    voice = Voice()
    if sys.argv[1:] == ["--check"]:  # whether this program can be loaded
        sys.exit(0)
    try:
        holder = Holder(**parse(sys.argv[1:]))
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
