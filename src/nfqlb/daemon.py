"""A director as a process: what the holder starts, and starts again.

It is given the queues, the table's memory and the configuration as file descriptors. One that takes over prepares
itself (`rehearse`) while its predecessor serves, and waits for that one to let go. Any end but a stop leaves everything
to the next one, so this process must not run destructors that unbind queues: `os._exit`.
"""

from __future__ import annotations

import gc

if __name__ == "__main__":
    gc.disable()  # what is loaded stays: until the director is ready, there is nothing to find

import argparse
import asyncio
import contextlib
import ctypes
import faulthandler
import itertools
import logging
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from nfqlb import clock, runconfig, state
from nfqlb._core.connection import Table, unfit
from nfqlb._core.datapath import Datapath
from nfqlb.advising import Advisors
from nfqlb.control.compile import Compiler, packed
from nfqlb.director import CRASHED, Director, Kernel, crash
from nfqlb.errors import ConfigError, KernelError, NfqlbError
from nfqlb.handover import PREPARED, READY
from nfqlb.health.scripts import Scripts
from nfqlb.kernel.plan import Plan, marks
from nfqlb.kernel.queues import queues as listeners
from nfqlb.kernel.saved import numbers
from nfqlb.logs import Voice
from nfqlb.model import PROTOCOLS, Real, Service
from nfqlb.notices import Notices
from nfqlb.paths import paths
from nfqlb.runconfig import RunConfig
from nfqlb.serving import Serving
from nfqlb.state import State, Store
from nfqlb.worker import assign, inherited

STATE_TRIES = 5  # to read the state that another one writes
PR_SET_PDEATHSIG = 1

log = logging.getLogger("nfqlb")


def build(config: RunConfig, arguments: argparse.Namespace) -> Director:
    """A director on what the holder handed over."""
    try:
        table = Table(arguments.table_fd, config.connections, clock.boottime())
    except (OSError, ValueError) as error:
        raise ConfigError("connections", config.connections, f"make no table ({error})") from error

    def slot(service: Service, real: Real) -> int:
        key = service.key
        protocol, vip, server = PROTOCOLS.get(key.protocol, 0), packed(key.address), packed(real.address)
        try:
            return table.slot(protocol, vip, key.port, server, real.port, key.last, key.mark)
        except ValueError:
            raise ConfigError("real", real, "finds no room in the table", "raise --connections") from None

    advisors = Advisors()
    return Director(
        config,
        state_file=paths(config.name).state,
        table=table,
        datapath=Datapath(table),
        compiler=Compiler(slot, advise=advisors.advisor),
        advisors=advisors,
        kernel=lambda: load_kernel(config.name),
        queues=assign(inherited(arguments.queue_fds), config.queue, listeners()),
        holder=arguments.holder,
        starts=arguments.start,
        takeover=arguments.go_fd is not None,
        marks=marks(numbers(paths(config.name).kernel), config.dr_mask),
        scripts=None if arguments.scripts_fd is None else socket.socket(fileno=arguments.scripts_fd),
    )


def rehearse(config: RunConfig, arguments: argparse.Namespace) -> None:
    """Refuse what can be refused, and load what loads slowly, while the predecessor takes the packets."""
    from nfqlb.api import server  # noqa: F401

    if why := unfit(arguments.table_fd, config.connections):
        fix = "stop it, and start this one; its connections end"
        raise ConfigError("table", paths(config.name).table, f"cannot be taken over: {why}", fix)
    if config.engine != "fast":
        raise ConfigError("engine", config.engine, "loses what waits in its queues", "stop it, and start anew")
    lanes = assign(inherited([os.dup(fd) for fd in arguments.queue_fds]), config.queue, listeners())
    if not all(queue.bound for lane in lanes for queue in lane):
        raise KernelError("the queues of the director that runs are not bound: there is nothing to take over")
    kept = state.choose(
        load_state(paths(config.name).state), config.intent, config.vip_dev or "", restore=config.restore, takeover=True
    ).state
    scripts = Scripts(socket.socket(fileno=os.dup(arguments.scripts_fd)) if arguments.scripts_fd is not None else None)
    serving = Serving(kept, lambda: None, scripts)
    serving.health.require(kept.intent)
    Notices(config, scripts).require(kept.intent)
    advisors, numbered = Advisors(), itertools.count(1)
    advisors.load(kept.intent, frozenset(kept.intent.by_key))
    Compiler(lambda *_: next(numbered), advise=advisors.advisor).snapshot(*serving.look(kept.intent).asks)
    load_kernel(config.name).require(
        Plan(config.name, diverter=config.diverter, firewall=config.firewall, vip_dev=kept.vip_dev or None)
    )


def load_state(path: Path) -> State | None:
    """The state that a director writes at this moment, perhaps: between its two files a reader may see what does not
    fit together.
    """
    for _ in range(STATE_TRIES - 1):
        with contextlib.suppress(ConfigError):
            return state.load(path)
        time.sleep(0.01)
    return state.load(path)


def load_kernel(name: str) -> Kernel:
    from nfqlb.kernel.kernel import Kernel

    return Kernel(name, paths(name).kernel)


def withdraw(name: str) -> int:
    """Do what a director that was killed could not do; the exit code."""
    from nfqlb.kernel import offload

    offload.detach(name)
    load_kernel(name).withdraw()
    store = Store(paths(name).state)
    last = store.load()
    if last:
        store.save(msgspec.structs.replace(last, clean=True), whole=True)
    return 0


def open_many() -> None:
    """Have as many descriptors as this process may: each check of a server that is silent has one, of thousands."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def die_with(holder: int) -> None:
    """Have the kernel kill this process when the holder ends, however it ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != holder:
        os._exit(CRASHED)


class Lines(logging.Formatter):
    """Records as the director's voice says them."""

    def __init__(self, voice: Voice) -> None:
        super().__init__()
        self._voice = voice

    def format(self, record: logging.LogRecord) -> str:
        trace = self.formatException(record.exc_info) if record.exc_info else ""
        return self._voice.line(record.getMessage(), record.levelname.lower(), record.created, trace)


def listen_to(voice: Voice) -> None:
    """Send all that is logged through `voice`."""
    handler = logging.StreamHandler()
    handler.setFormatter(Lines(voice))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    log.setLevel(logging.INFO)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="nfqlb.daemon", description="Started by nfqlb.holder, never by hand.")
    for option in ("--holder", "--config-fd", "--table-fd", "--ready-fd"):
        parser.add_argument(option, type=int, required=True)
    parser.add_argument("--queue-fds", type=lambda text: [int(fd) for fd in text.split(",")], required=True)
    parser.add_argument("--scripts-fd", type=int, help="leads to the spawner; absent where no script can be run")
    parser.add_argument("--go-fd", type=int, help="says when a predecessor has let go; absent where there is none")
    parser.add_argument("--start", type=int, default=0, help="starts before this one")
    parser.add_argument("--withdraw", action="store_true", help="only remove what a killed director left")
    return parser.parse_args(argv)


def live(running: Coroutine[Any, Any, int]) -> NoReturn:
    """Run it, and end with its exit code at once: packets wait for the next director, or all is withdrawn, and whatever
    a thread is still about (a mail server that says nothing, a name that is not found) is waited for by nobody.
    """
    runner = asyncio.Runner()  # never closed: that is where it would wait
    try:
        code = runner.run(running)
    except BaseException:
        log.exception("the director fails")
        crash("it is left to the next one")
    logging.shutdown()
    os._exit(code)


def main(argv: Sequence[str]) -> int:
    arguments = parse(argv)
    die_with(arguments.holder)
    faulthandler.enable()
    open_many()
    voice = Voice()
    listen_to(voice)
    try:
        config = runconfig.decode(os.pread(arguments.config_fd, os.fstat(arguments.config_fd).st_size, 0))
        voice.form, voice.name = config.log_format, config.name
        if arguments.withdraw:
            return withdraw(config.name)
        os.set_blocking(arguments.ready_fd, False)
        if arguments.go_fd is not None:
            rehearse(config, arguments)
            gc.collect()  # what only the rehearsal had; the predecessor serves meanwhile
            os.write(arguments.ready_fd, PREPARED)
            if not os.read(arguments.go_fd, 16):  # the predecessor goes on
                return 1
        director = build(config, arguments)
        director.start()
    except NfqlbError as error:
        log.error("%s", error)
        return error.exit_code

    watched = "WATCHDOG_USEC" in os.environ

    def tell() -> None:
        with contextlib.suppress(OSError):  # a holder that is stopped reads nothing
            os.write(arguments.ready_fd, READY)

    def ready() -> None:
        gc.freeze()
        gc.enable()
        voice.ready()
        tell()
        if not watched:
            os.close(arguments.ready_fd)

    live(director.run(ready, tell if watched else None))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
