"""One director: it owns the parts, takes the packets, and changes all of it together.

Strategy. A start takes packets as early as it may: at once where a predecessor left rules that lead here, else as soon
as everything was checked. The API loads while packets flow already; `ready` means both. A change is one transaction
under one lock: the kernel is made to hold old and new, the snapshot is published, the kernel loses services that are
not wanted any more, the state is saved; when a step fails the same way is gone back. Replies of removed real servers
keep their way until the minder comes by: packets are under way, and taking an element from a set means to wait for the
kernel. Blocking steps run in a thread, everything else on the loop.

SIGHUP reads the configuration file again; a director without one takes it as a stop, for its terminal is gone.

Ends: a stop withdraws everything (exit 0). Any other end leaves rules, queues and table to the next director. SIGUSR2
asks for the best of these: the API closes, workers answer what they have taken, and nothing is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import msgspec

import nfqlb
from nfqlb import clock, state
from nfqlb._core.connection import Table
from nfqlb._core.datapath import Datapath, Drained
from nfqlb._core.mirror import Mirror
from nfqlb.advising import Advisors, Ran, UnrunError, Use
from nfqlb.aiming import Aiming
from nfqlb.api.director import Choosing
from nfqlb.applying import Applier, check_revision, refuse_while_waiting, whole
from nfqlb.control import registry
from nfqlb.control.compile import Compiler, Slots
from nfqlb.control.planner import Planner
from nfqlb.control.rates import TICK_SECONDS, Meter
from nfqlb.control.reconcile import steps
from nfqlb.control.registry import differing, lets_go
from nfqlb.draining import Draining
from nfqlb.errors import KernelError, NfqlbError, UnreachableError
from nfqlb.feed import Feed
from nfqlb.ha.failover import Failover
from nfqlb.ha.sync import Syncing, require
from nfqlb.handover import LETS_GO
from nfqlb.health.runner import Runner
from nfqlb.health.scripts import Scripts
from nfqlb.kernel import ipsec, neighbours, netlink
from nfqlb.kernel.plan import Plan
from nfqlb.kernel.queues import queues as listeners
from nfqlb.model import Intent, Key, Real
from nfqlb.notices import Notices
from nfqlb.paths import paths
from nfqlb.runconfig import QUEUES, RunConfig
from nfqlb.serving import Serving, View
from nfqlb.state import Maintenance, State, Store
from nfqlb.upkeep import Upkeep
from nfqlb.waiting import within
from nfqlb.worker import Queue, Worker

if TYPE_CHECKING:
    from aiohttp.web import AppRunner

    from nfqlb._core.snapshot import Snapshot
    from nfqlb.api.director import Connection
    from nfqlb.offloading import Offloading

REPAIR_SECONDS = 2.0  # between looks at the kernel while nobody is heard to change it
CALM_SECONDS = 0.1  # between hearing somebody and looking: what others do comes in bursts
FOLLOW_SECONDS = 0.02  # between hearing of a neighbour and looking
PROBE_SECONDS = 1.0  # between probes of real servers that get frames from us
RESOLVE_SECONDS = 0.3  # that a new real server has to answer ARP or ND before packets are sent there
TIDY_SECONDS = 10.0  # between looks at the state's journal
RELEASE_SECONDS = 60.0  # between looks for slots that nobody has any more
ADVISOR_SECONDS = 0.02  # between looks at schedulers in Python
SWITCH_SECONDS = 0.0005  # that the data path waits for Python at most, where it asks a scheduler
HANDSHAKE_SECONDS = 0.05  # between looks at how clients fare
HANDSHAKE_PAUSE = 9  # times as long as a look took, at least: ten thousand servers do not take a CPU
OBSTACLE_SECONDS = 30.0  # after which a director may be master although sync cannot begin: better broken than gone
STEP_SECONDS = 0.1  # between looks whether sync has brought all connections
BEAT_SECONDS = 1.0  # between signs of life
STOPS = (signal.SIGTERM, signal.SIGINT)
CRASHED = 70  # exit code (EX_SOFTWARE)
LEFT = 75  # exit code (EX_TEMPFAIL) of a director that let go

log = logging.getLogger("nfqlb")


class Kernel(Protocol):
    """What a director needs of kernel.Kernel."""

    @property
    def diverter(self) -> str: ...
    def require(self, plan: Plan) -> None: ...
    def apply(self, plan: Plan) -> None: ...
    def marks(self, plan: Plan) -> dict[str, int]: ...
    def repair(self) -> list[str]: ...
    def warnings(self) -> list[str]: ...
    def withdraw(self) -> None: ...


class Director:
    """Everything one director does; the API talks to it (api.director.Director)."""

    def __init__(
        self,
        config: RunConfig,
        *,
        state_file: Path,
        table: Table,
        datapath: Datapath,
        compiler: Compiler,
        advisors: Advisors,
        kernel: Callable[[], Kernel],  # called late: it loads slowly
        queues: Sequence[Sequence[Queue]],
        holder: int,
        starts: int = 0,
        takeover: bool = False,
        marks: Mapping[str, int] | None = None,  # by which a predecessor steered
        scripts: socket.socket | None = None,  # to what runs them
    ) -> None:
        self.config, self.holder, self.starts, self._takeover = config, holder, starts, takeover
        self._store = Store(state_file)
        self._state_file, self._table, self._datapath, self._compiler = state_file, table, datapath, compiler
        self._load_kernel, self._advisors = kernel, advisors
        self._queues = [queue for lane in queues for queue in lane]
        bypass = config.on_failure == "bypass"
        self._workers = [Worker(datapath.worker(), lane, config.engine, crash, bypass=bypass) for lane in queues]
        self._born = time.monotonic()
        self.meter, self.feed, self.scripts = Meter(), Feed(), Scripts(scripts)
        self.notices = Notices(config, self.scripts)
        self.applier, self.draining = Applier(self), Draining(self)
        self._lock = asyncio.Lock()
        self._closing = False
        self._warnings: list[str] = []
        self._warned_for = -1  # the revision that the warnings are about
        self._repairs = 0
        self._failures: dict[str, str] = {}  # of the last repair, by what was looked after
        self._lacks = ""  # without which there is no failover
        # A VIP that comes with the role of master is local at once; what was marked just before would be reset here.
        dr_by = "frame" if config.ha and config.dr_by == "auto" else config.dr_by
        mask = config.dr_mask if dr_by != "frame" else 0
        gso, plain, head, syn = (tuple(queue.number for queue in self._queues if queue.kind == kind) for kind in QUEUES)
        self._planner = Planner(
            Plan(
                config.name,
                gso=gso,
                plain=plain,
                head=head,
                syn=syn,
                bypass=bypass,
                diverter=config.diverter,
                firewall=config.firewall,
                shared=config.ha is not None,
            )
        )
        self._aiming = Aiming(datapath, compiler, dr_by, mask, marks or {}, self.feed, leads=config.offload != "off")
        self._ill = asyncio.Event()  # a real server may be out, or back
        self._moved = asyncio.Event()  # routes or neighbours may have changed
        self._upkeep = Upkeep(datapath, table, lambda: self._snapshot, self._say)
        self._tasks: set[asyncio.Task[Any]] = set()
        run = paths(config.name).run
        self.failover = (
            Failover(config.ha, config.name, run / "ha", config.log_format, self._turned) if config.ha else None
        )
        self._backup = False
        self._offloading: Offloading | None = None
        self._without_offload = ""  # why there is none
        self._mirror: Mirror | None = None  # there once sync was on
        self._syncing: Syncing | None = None

    # --- begin and end ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Take the packets; NfqlbError leaves the kernel as it was."""
        clock.keep(self._state_file.with_suffix(".clock"))
        saved = self._store.load()
        given = self.config.intent
        self.state, restored, remark = state.choose(
            saved, given, self.config.vip_dev or "", restore=self.config.restore, takeover=self._takeover
        )
        if self.failover:  # the VIPs are keepalived's
            self.state = msgspec.structs.replace(self.state, vip_dev="")
        self._origin = "saved state" if restored and given is None else self.config.origin
        if remark:
            log.warning(remark)
        intent = self.state.intent
        self._aiming.look(intent.furnished, self.state.vip_dev)
        self.serving = Serving(self.state, self._ill.set, self.scripts)
        if self.starts == 0:
            self.require(intent)
            if saved is None or saved.clean:
                self.serving.doubt(intent)
        view = self.serving.look(intent)
        self._plan = self._plan_of(view)
        self._advisors.load(intent, ())
        self._snapshot = self._compile(view)
        self._advisors.adopt(intent)
        self._aiming.aim(intent.furnished, RESOLVE_SECONDS)
        self._datapath.publish(self._snapshot)
        self._backup = saved is None or saved.clean
        self._stand_by()
        bound = all(queue.bound for queue in self._queues)
        awaited = bound or (saved is not None and not saved.clean)  # rules that a predecessor left lead here
        if awaited:
            self._start_workers()
        self._kernel = self._load_kernel()
        if not bound:
            self._kernel.require(self._plan)
        if not awaited:
            self._start_workers()
        if self._plan.ways:
            self._aiming.marks = self._kernel.marks(self._plan)
            self._aiming.aim(intent.furnished)
        self._kernel.apply(self._plan)
        try:
            if self.state != saved:
                self._save(self.state)
            if self.starts == 0:
                self._warn()
        except BaseException:
            if self.starts == 0:
                self._kernel.withdraw()
            raise
        self._settle(view)
        if self.starts == 0 and self.serving.maintenance:
            out = ", ".join(f"{one.real} of {one.service}" for one in self.serving.maintenance.values())
            log.warning("in maintenance since before this start: %s", out)
        self._offload()
        self._sync(None, intent)
        if saved and lets_go(saved.intent, intent):
            self._upkeep.sweep()
        if self._table.lost:
            log.warning("connections of the last director are lost: its table cannot be used, %s", self._table.lost)
        if self._table.torn:
            log.warning("entries of the last director's table that made no sense: %d", self._table.torn)
        if self._table.adopted:
            log.info("connections of the last director that go on: %d", self._table.adopted)

    def _offload(self) -> None:
        """Have the kernel forward what is established, as far as it can; else take a predecessor's offload away."""
        from nfqlb import offloading
        from nfqlb.kernel import offload

        try:
            if self.config.offload == "off":
                self._without_offload = "off"
            elif self.config.engine != "fast":
                self._without_offload = "the reference engine takes every packet"
            else:
                found = offloading.Offloading(self.config.name, self._datapath, self.config.connections)
                found.start()
                self._offloading = found
                return
        except NfqlbError as error:
            self._without_offload = str(error)
            log.warning("no offload: %s", error)
        try:
            offload.detach(self.config.name)
        except NfqlbError as error:
            log.error("%s", error)

    def _sync(self, before: Intent | None, intent: Intent) -> None:
        """Have sync as it is wanted now, or as soon as nothing stands against it: the director goes on."""
        if before is not None and before.sync == intent.sync:
            if self._syncing:
                self._syncing.look()
            return
        if self._syncing:
            self._syncing.stop()
            self._datapath.fall_silent()
            self._syncing = None
        sync = intent.sync
        if sync is None:
            return
        self._datapath.announce(
            sync.threshold, sync.period, sync.refresh_period, sync.retries, spares_children=sync.persist_mode
        )
        self._mirror = self._mirror or Mirror(self._datapath)
        self._syncing = Syncing(self._mirror, self._table.capacity, sync, clock.boottime)
        self._syncing.start()

    def syncing(self) -> dict[str, object] | None:
        """How sync fares; None where there is none."""
        return self._syncing.status() if self._syncing else None

    def _obstacle(self) -> str:
        """Why sync could not begin."""
        return self._syncing.obstacle if self._syncing else ""

    @property
    def in_step(self) -> bool:
        """Whether this director knows the connections that its peers know, so that it may take over from them."""
        return self._syncing is None or self._syncing.ready

    async def run(self, ready: Callable[[], None], alive: Callable[[], None] | None = None) -> int:
        """Serve the API, say `ready`, and mind the kernel until a signal; the exit code.

        `alive` is called again and again, as long as the loop runs and packets that wait are taken.
        """
        loop, stop, leaving = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()

        def leave() -> None:
            leaving.set()
            stop.set()

        for number in STOPS:
            loop.add_signal_handler(number, stop.set)
        loop.add_signal_handler(LETS_GO, leave)
        loop.add_signal_handler(signal.SIGHUP, self._reload if self.applier.file else stop.set)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (*STOPS, signal.SIGHUP))
        runners: list[AppRunner] = []
        try:
            for serve in (self._serve, self._serve_metrics):
                runners += filter(None, [await serve()])
        except NfqlbError as error:
            log.error("%s", error)
            await _close(runners)
            await asyncio.to_thread(self.finish)
            return error.exit_code
        ready()
        self.health.adopt(self.state.intent)
        self.notices.start()
        minding = [self._mind_kernel(), self._mind_neighbours(), self._mind_health(), self._mind_handshakes()]
        minding += [self._mind_rates(), self._mind_slots(), self._mind_state(), self._mind_pending()]
        minding += [self._mind_advisors(), self.draining.mind(), *self._upkeep.minding()]
        minding += [self._beat(alive)] if alive else []
        minding += [self._mind_next_hops(self._offloading)] if self._offloading else []
        minders: list[asyncio.Task[None]] = [asyncio.create_task(one) for one in minding]
        minders += [asyncio.create_task(self._mind_failover(self.failover))] if self.failover else []
        for minder in minders:
            minder.add_done_callback(self._miss)
        await stop.wait()
        async with self._lock:
            self._closing = True
        for minder in minders:
            minder.cancel()
        if self.failover and leaving.is_set():
            await self.failover.leave()
        elif self.failover:
            await self.failover.stop()  # another director takes over before this one takes no packets
        await self.health.close()
        await self.notices.close()
        await self.scripts.close()
        await _close(runners)
        return await asyncio.to_thread(self.let_go if leaving.is_set() else self.finish)

    def _miss(self, minder: asyncio.Task[None]) -> None:
        """A minder has ended; by an error of ours, what it minds would be left alone, and nothing would show it."""
        if not self._closing and not minder.cancelled() and (error := minder.exception()):
            log.error("the director fails", exc_info=error)
            crash("it is left to the next one")

    def let_go(self) -> int:
        """Answer every packet that was taken, and touch nothing any more; the exit code. Whatever waits is for the next
        director, so this process must end without destructors.
        """
        for worker in self._workers:
            worker.let_go()
        self._table.close(False)
        return LEFT

    def finish(self) -> int:
        """Take everything back and say so in the state; the exit code."""
        code = 0
        for take_back in (*([self._offloading.stop] if self._offloading else []), self._kernel.withdraw):
            try:
                take_back()
            except NfqlbError as error:
                log.error("could not take everything back: %s", error)
                code = error.exit_code
        if self._syncing:
            self._syncing.stop()
        for worker in self._workers:
            worker.stop()
        self._table.close(True)
        try:
            self._save(msgspec.structs.replace(self.state, clean=True), whole=True)
        except NfqlbError as error:
            log.error("%s", error)
            code = error.exit_code
        return code

    def _start_workers(self) -> None:
        warnings = [warning for worker in self._workers for warning in worker.start()]
        for warning in dict.fromkeys(warnings):
            log.warning(warning)

    async def _serve(self) -> AppRunner | None:
        """The API; where a restart cannot have it, the packets are worth more."""
        from nfqlb.api.server import serve

        try:
            return await serve(self, Path(self.config.api))
        except NfqlbError as error:
            if self.starts == 0:
                raise
            log.error("no API, packets are taken nevertheless: %s", error)
            return None

    async def _serve_metrics(self) -> AppRunner | None:
        if not self.config.metrics:
            return None
        from nfqlb.metrics import serve

        try:
            return await serve(self, self.config.metrics)
        except NfqlbError as error:
            if self.starts == 0:
                raise
            log.error("no metrics, packets are taken nevertheless: %s", error)
            return None

    async def _beat(self, alive: Callable[[], None]) -> NoReturn:
        """Signs of life for a watchdog; none while a worker leaves packets waiting."""
        before: dict[object, object] = {}
        while True:
            queues = [queue for worker in self._workers for queue in worker.info(listeners())]
            if not any(queue["waiting"] and before.get(queue["number"]) == queue.get("packets") for queue in queues):
                alive()
            before = {queue["number"]: queue.get("packets") for queue in queues}
            await asyncio.sleep(BEAT_SECONDS)

    # --- what the API sees --------------------------------------------------------------------------------------------

    @property
    def health(self) -> Runner:
        return self.serving.health

    @property
    def revision(self) -> int:
        return self.state.revision

    def intent(self) -> Intent:
        return self.state.intent

    async def change(self, edit: Callable[[Intent], Intent], revision: int | None = None, **kept: Any) -> int:
        """Apply, publish and save an edit; the new revision. An error leaves everything as it was.

        ConflictError where there is another revision than the one that is named, or one waits to be confirmed. `kept`
        are further fields of the state, which change with it: values, or what makes one of the state before.
        """
        return await whole(self._tasks, self._change(edit, revision, kept))

    def drained(self) -> Drained:
        return self._datapath.drain()

    def connections(self, limit: int) -> list[Connection]:
        return self._table.connections(clock.boottime(), limit)

    def choosing(self) -> dict[Key, Choosing]:
        found = {}
        for key, one in self._compiler.compiled.items():
            advice = one.advisor.statistics() if one.advisor else None
            if one.shadow:
                shadow = one.shadow.advisor.statistics() if one.shadow.advisor else None
                found[key] = Choosing(advice, one.compared(), shadow)
            elif advice:
                found[key] = Choosing(advice)
        return found

    def slots(self) -> Mapping[tuple[Key, str, int], int]:
        return self._compiler.slots

    def load(self, key: Key, real: Real) -> tuple[int, int]:
        """The connections that a real server has, active and inactive."""
        slot = self._compiler.slots.get((key, real.address, real.port))
        return (0, 0) if slot is None else self._table.load(slot)

    def info(self) -> dict[str, object]:
        config, seen = self.config, listeners()
        return {
            "name": config.name,
            "version": nfqlb.__version__,
            "pid": os.getpid(),
            "holder": self.holder,
            "restarts": self.starts,
            "uptime": int(time.monotonic() - self._born),
            "engine": config.engine,
            "workers": config.workers,
            "diverter": self._kernel.diverter,
            "firewall": config.firewall,
            "on_failure": config.on_failure,
            "offload": {"state": self._offloading.state if self._offloading else self._without_offload}
            | (self._offloading.statistics() if self._offloading else {}),
            "ha": self.failover.statistics if self.failover else None,
            "vip_dev": self.state.vip_dev or None,
            "origin": self._origin,
            "edited": self._edited(),
            "confirm_by": self.applier.confirm_by,
            "state": str(self._state_file),
            "table": {name: getattr(self._table, name) for name in ("capacity", "used", "adopted", "torn")},
            "defences": self._datapath.defences,
            "queues": [queue for worker in self._workers for queue in worker.info(seen)],
            "warnings": [*self._warnings, *self._failures.values(), *filter(None, (self._lacks, self._obstacle()))],
            "notices": {
                name: {"sent": one.sent, "failed": one.failed, "lost": one.lost}
                for name, one in self.notices.channels.items()
            },
            "repairs": self._repairs,
        }

    # --- changes ------------------------------------------------------------------------------------------------------

    async def _change(self, edit: Callable[[Intent], Intent], revision: int | None, kept: dict[str, Any]) -> int:
        """Schedulers in Python that are new are run while nobody waits for the lock, and the change begins again."""
        ran: Ran = {}
        while True:
            try:
                return await self._change_with(ran, edit, revision, kept)
            except UnrunError as unrun:
                await asyncio.to_thread(self._advisors.run, unrun.texts, ran)

    async def _change_with(
        self, ran: Ran, edit: Callable[[Intent], Intent], revision: int | None, kept: dict[str, Any]
    ) -> int:
        async with self._lock:
            if self._closing:
                raise UnreachableError("the director is stopping")
            before = self.state
            check_revision(before, revision)
            if kept.get("pending", True):  # else it is confirmed, or goes back
                refuse_while_waiting(before)
            kept = _resolved(kept, before)
            intent = edit(before.intent)
            same = intent == before.intent
            changed = list(intent.by_key) if same else differing(before.intent, intent)
            held, furnished = self._plan, intent.furnished

            def prepare() -> None:
                self._advisors.prepare(intent, frozenset(changed), ran)
                if not same:
                    self.require(intent)
                    self._aiming.look(furnished, before.vip_dev)

            await asyncio.to_thread(prepare)
            if same:
                self._adopt(intent)
                await self._keep(**kept)
                return before.revision
            view, slots = self.serving.look(intent), self._compiler.slots
            snapshot = await asyncio.to_thread(self._compile, view)
            plan = self._plan_of(view)
            both = between(held, plan)
            plan = replace(plan, ways=both.ways)  # packets are under way: the minder takes what is not used
            after = msgspec.structs.replace(before, revision=before.revision + 1, intent=intent, **kept)
            published = False
            try:
                await self._apply(both)
                await asyncio.to_thread(self._aiming.aim, furnished, RESOLVE_SECONDS)
                self._datapath.publish(snapshot)
                published = True
                if plan.requests != both.requests:
                    await self._apply(plan)
                await asyncio.to_thread(self._save, after)
            except BaseException:
                self._compiler.undo()
                for back in (both, held) if published else (held,):
                    try:
                        await self._apply(back)
                    except Exception as error:  # the minder tries again
                        log.error("could not go back to revision %d: %s", before.revision, error)
                    if back is both:
                        self._datapath.publish(self._snapshot)
                raise
            self.state, self._snapshot = after, snapshot
            self._stand_by()
            self._count(changed, slots)
            self._settle(view)
            self._adopt(intent)
            if self._syncing or intent.sync:
                await asyncio.to_thread(self._sync, before.intent, intent)
            self.health.adopt(intent)
            if lets_go(before.intent, intent):
                self._upkeep.sweep()
            self._ill.set()  # what is kept of servers that left goes, too
        found = await asyncio.to_thread(steps, before.intent, intent)
        self.feed.say("changed", f"revision {after.revision}", after.revision, found)
        return after.revision

    def _adopt(self, intent: Intent) -> None:
        """Have schedulers that were read again choose from now on."""
        for sentence in self._advisors.adopt(intent):
            log.info(sentence)
            self._say("scheduler", sentence)

    def _count(self, changed: Iterable[Key], before: Slots) -> None:
        """Services whose real servers had these slots `before` are counted by those of now."""
        for key in changed:
            ends = before.services.get(key), self._compiler.slots.services.get(key)
            old, new = (None if one is None else list(one.values()) for one in ends)
            rows = self._datapath.counted(new) if new and old is None else {}
            self.meter.follow(key, old, new, rows)

    def require(self, intent: Intent) -> None:
        """Refuse what cannot be checked or told here; it reads files."""
        self.health.require(intent)
        self.notices.require(intent)
        if intent.sync:
            require(intent.sync)
        if self.failover:
            self.failover.require_devices()

    async def keep(self, **kept: Any) -> None:
        """Change and save what the state has beside the intent: values, or what makes one of the state before."""
        async with self._lock:
            await self._keep(**_resolved(kept, self.state))

    async def _keep(self, **fields: Any) -> None:
        """The caller holds the lock."""
        after = msgspec.structs.replace(self.state, **fields)
        if after != self.state:
            await asyncio.to_thread(self._save, after)
            self.state = after

    async def _apply(self, plan: Plan) -> None:
        """Make the kernel hold `plan`, if it does not already."""
        if plan != self._plan:
            if plan.ways:
                self._aiming.marks = await asyncio.to_thread(self._kernel.marks, plan)
            await asyncio.to_thread(self._kernel.apply, plan)
            self._plan = plan
            if self.failover:
                self.failover.wants(plan.held)

    def _save(self, value: State, *, whole: bool = False) -> None:
        try:
            self._store.save(value, whole=whole)
        except OSError as error:
            why = f"{error.strerror}; NFQLB_STATE_DIR names another folder"
            raise KernelError(f"cannot save {self._state_file}: {why}") from error

    def _compile(self, view: View) -> Snapshot:
        return self._compiler.snapshot(*view.asks)

    def _plan_of(self, view: View) -> Plan:
        intent = view.intent.furnished
        return self._planner.plan(
            intent,
            self._compiler.left,
            vip_dev=self.state.vip_dev or None,
            withheld=self.serving.withheld(view),
            heads=self._aiming.steered(intent),
            ways=self._aiming.ways(),
            mask=self._aiming.mask,
        )

    # --- the kernel between changes -----------------------------------------------------------------------------------

    async def _mind_kernel(self) -> NoReturn:
        loop, heard = asyncio.get_running_loop(), asyncio.Event()

        def hear(events: netlink.Events | ipsec.Events) -> None:
            if events.others():
                heard.set()

        with contextlib.ExitStack() as stack:
            for source in (netlink.Events, ipsec.Events):
                with contextlib.suppress(OSError):  # without it or the right to listen, the interval has to do
                    events = stack.enter_context(contextlib.closing(source()))
                    loop.add_reader(events, hear, events)
                    stack.callback(loop.remove_reader, events)
            while True:
                if await within(REPAIR_SECONDS, heard):
                    await asyncio.sleep(CALM_SECONDS)
                heard.clear()
                await self._repair()

    async def _repair(self) -> None:
        """Put right what others changed in the kernel; what fails is said once, and tried again while packets flow. The
        offload comes first, and whatever becomes of the rest: IPsec policies do not wait.
        """
        for part, mend in ("offload", self._mend_offload), ("rules", self._mend_rules):
            try:
                done = await mend()
            except Exception as error:
                if str(error) != self._failures.get(part):
                    log.error("repair failed: %s", error, exc_info=not isinstance(error, NfqlbError))
                self._failures[part] = str(error)
                continue
            self._failures.pop(part, None)
            self._repairs += len(done)
            for sentence in done:
                log.warning("repaired: %s", sentence)
                self._say("repaired", sentence)

    async def _mend_offload(self) -> list[str]:
        return await asyncio.to_thread(self._offloading.follow) if self._offloading else []

    async def _mend_rules(self) -> list[str]:
        async with self._lock:
            self._compiler.forget(lambda slot: not any(self._table.load(slot)))
            await self._apply(self._plan_of(self.serving.view))
        done = await asyncio.to_thread(self._kernel.repair)
        if self._warned_for != self.revision:
            await asyncio.to_thread(self._warn)
        return done

    async def _mind_advisors(self) -> NoReturn:
        usual, told = sys.getswitchinterval(), dict[Use, str]()
        while True:
            busy = self._advisors.mind(told)
            sys.setswitchinterval(SWITCH_SECONDS if busy else usual)
            await asyncio.sleep(ADVISOR_SECONDS if busy else BEAT_SECONDS)

    async def _mind_rates(self) -> NoReturn:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self.meter.tick(self._datapath.moved())

    async def _mind_slots(self) -> NoReturn:
        """Let the slots of real servers that left long ago be those of others."""
        while True:
            await asyncio.sleep(RELEASE_SECONDS)
            async with self._lock:
                now = time.monotonic()
                for slot in await asyncio.to_thread(self._compiler.unused, self._table.known, now):
                    rows = self._datapath.counted([slot])
                    if self._datapath.release(slot):
                        self.meter.release(rows, slot)

    async def _mind_state(self) -> NoReturn:
        while True:
            await asyncio.sleep(TIDY_SECONDS)
            try:
                await asyncio.to_thread(self._store.tidy)
            except OSError as error:
                log.error("cannot tidy up %s: %s", self._state_file, error.strerror)

    # --- health -------------------------------------------------------------------------------------------------------

    async def maintain(self, key: Key, real: Real, on: bool, why: str = "") -> None:
        """Take a real server out, or back in; it stays so through restarts. NotFoundError where there is none."""
        await whole(self._tasks, self._maintain(key, real, on, why))

    async def _maintain(self, key: Key, real: Real, on: bool, why: str) -> None:
        async with self._lock:
            if self._closing:
                raise UnreachableError("the director is stopping")
            registry.find_real(registry.find_service(self.state.intent, key), real.address, real.port)
            end, before = (key, real.address, real.port), self.serving.maintenance
            self.serving.maintenance = {one: about for one, about in before.items() if one != end}
            if on:
                self.serving.maintenance[end] = Maintenance(str(key), str(real), clock.now(), why)
            try:
                await self._judge()
            except BaseException:
                self.serving.maintenance = before
                raise
            self._ill.set()  # it may ramp

    async def _mind_health(self) -> NoReturn:
        while True:
            await within(self.serving.due(), self._ill)
            self._ill.clear()
            async with self._lock:
                try:
                    await self._judge()
                except NfqlbError as error:
                    log.error("%s", error)

    async def _mind_handshakes(self) -> NoReturn:
        """See which real servers fail their clients, sooner than a check could."""
        took = 0.0
        while True:
            await asyncio.sleep(max(HANDSHAKE_SECONDS, HANDSHAKE_PAUSE * took))
            began = time.monotonic()
            slots = {end: self._compiler.slots.get(end, 0) for end in self.serving.watched(self.state.intent)}
            counts = self._datapath.handshakes(slots.values()) if slots else {}
            self.serving.observe({end: counts[slot] for end, slot in slots.items() if slot})
            took = time.monotonic() - began

    async def _judge(self) -> None:
        """New connections follow what is known of real servers now; the caller holds the lock."""
        view, before = self.serving.look(self.state.intent), self.serving.view
        if view.asks != before.asks:
            self._snapshot = await asyncio.to_thread(self._compile, view)
            self._datapath.publish(self._snapshot)
            if (view.weighted, view.standing) != (before.weighted, before.standing):  # more than a step of a ramp
                self._upkeep.sweep()
        self._settle(view)
        withheld = self.serving.withheld(view)
        if withheld != self._plan.withheld:
            await self._apply(replace(self._plan, withheld=withheld))
        await self._keep(**self.serving.kept())

    def _settle(self, view: View) -> None:
        """One line for everybody for what changed."""
        for turn in self.serving.settle(view):
            what = "real server " if turn.end else ""
            log.log(logging.INFO if turn.well else logging.WARNING, "%s%s", what, turn.message)
            self._say("health", turn.message)
            self.notices.tell(turn, view.intent)

    # --- failover -----------------------------------------------------------------------------------------------------

    async def _mind_failover(self, failover: Failover) -> None:
        """Packets are taken: this director may be master, once it knows what the others serve."""
        try:
            failover.require()
        except NfqlbError as error:
            log.error("%s", error)
            self._lacks = str(error)
            return
        failover.wants(self._plan.held)
        if not (self.starts or self._takeover):  # else its table is the one it had
            failover.hold("connections of the other directors")
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(failover.mind())
            end = time.monotonic() + OBSTACLE_SECONDS
            while not (self.in_step or (self._obstacle() and time.monotonic() > end)):
                await asyncio.sleep(STEP_SECONDS)
            if why := self._obstacle():
                log.warning("this director may be master without the connections of the others: %s", why)
            failover.release("connections of the other directors")

    def _stand_by(self) -> None:
        """Leave requests to the local stack where the options say so and this director is a backup: by [ha] while it
        has not the VIPs, else by [sync]. One that does not know its role stays with what it was; one without a
        predecessor is no master.
        """
        options, sync = self.state.intent.options, self.state.intent.sync
        if self.failover is None:
            self._backup = sync is not None and sync.role == "backup"
        elif self.failover.role != "unknown":
            self._backup = self.failover.role != "master"
        self._datapath.stand_by(options.backup_only and self._backup)

    def _turned(self, role: str) -> None:
        self._stand_by()
        if role != "unknown":
            log.info("failover: this director is %s", role)
            self._say("failover", f"this director is {role}")

    # --- files and confirmations --------------------------------------------------------------------------------------

    def _edited(self) -> bool:
        """Whether the file or the command of the start asks for something else than there is now."""
        if self.state.reloaded:
            return state.digest(self.state.intent) != self.state.reloaded
        return self.config.intent is not None and self.config.intent != self.state.intent

    def _reload(self) -> None:
        """Read the file again; the running configuration stays where it cannot be taken."""

        async def reload() -> None:
            try:
                outcome = await self.applier.reload()
            except NfqlbError as error:
                log.error("reload: the running configuration stays")
                for sentence in str(error).splitlines():
                    log.error("%s", sentence)
                return
            for note in outcome.notes:
                log.warning("reload: %s", note)
            log.info("reload: revision %d, %d steps", outcome.revision, len(outcome.steps))

        task = asyncio.create_task(reload())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _mind_pending(self) -> NoReturn:
        while True:
            try:
                await asyncio.sleep(await self.applier.mind())
            except NfqlbError as error:
                log.error("going back to what was before: %s", error)
                await asyncio.sleep(REPAIR_SECONDS)

    # --- where packets go ---------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        """Have packets go where the real servers are now."""
        intent = self.state.intent
        plan = self._plan
        if await asyncio.to_thread(self._aiming.look, intent.furnished, self.state.vip_dev):
            plan = self._plan_of(self.serving.view)
            held = between(self._plan, plan)
            plan = replace(plan, ways=held.ways)
            await self._apply(held)
        await asyncio.to_thread(self._aiming.aim, intent.furnished)
        await self._apply(plan)

    async def _mind_neighbours(self) -> NoReturn:
        """Follow real servers that move, and ask those that get packets whether they are there."""
        loop, heard = asyncio.get_running_loop(), asyncio.Event()
        probed = loop.time()

        def hear(addresses: bool, routes: bool) -> None:
            self._aiming.stale = self._aiming.stale or addresses
            self._aiming.rerouted = self._aiming.rerouted or routes
            heard.set()
            self._moved.set()

        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):  # who may not listen looks once a second
                events = stack.enter_context(contextlib.closing(neighbours.Events(hear)))
                loop.add_reader(events, events.clear)
                stack.callback(loop.remove_reader, events)
                self._aiming.listens = True
            while True:
                if await within(PROBE_SECONDS, heard):
                    await asyncio.sleep(FOLLOW_SECONDS)
                heard.clear()
                async with self._lock:
                    try:
                        await self._follow()
                        if loop.time() >= probed + PROBE_SECONDS:
                            probed = loop.time()
                            await asyncio.to_thread(self._aiming.probe)
                    except (NfqlbError, OSError) as error:
                        log.error("%s", error)

    async def _mind_next_hops(self, offloading: Offloading) -> NoReturn:
        """Have the kernel's program ask for next hops again, whatever change is under way meanwhile."""
        while True:
            if await within(PROBE_SECONDS, self._moved):
                await asyncio.sleep(FOLLOW_SECONDS)
            self._moved.clear()
            offloading.look_again()

    # --- warnings -----------------------------------------------------------------------------------------------------

    def _say(self, what: str, sentence: str) -> None:
        """To those who follow events."""
        self.feed.say(what, sentence, self.revision)

    def _warn(self) -> None:
        """Say what looks wrong around this director, each thing once."""
        revision, found = self.revision, [*self._kernel.warnings(), *self._unmoved()]
        for warning in found:
            if warning not in self._warnings:
                log.warning(warning)
        self._warnings, self._warned_for = found, revision

    def _unmoved(self) -> Iterator[str]:
        """VIPs that are to come and go with a quorum, and that this director neither adds nor takes away."""
        ha = self.config.ha
        if self.state.vip_dev or (ha and not ha.addresses):
            return
        mover = "[ha] without addresses" if ha else "vip_dev, or [ha]"
        for service in self.state.intent.services:
            if service.quorum and service.quorum.announce == "quorum":
                yield f"service {service.key}: quorum announce moves no VIP without {mover}"


def between(held: Plan, wanted: Plan) -> Plan:
    """The plan on the way from one to another: neither loses a packet by it."""
    found = {way.server for way in wanted.ways}
    return replace(
        wanted.with_(held),
        ways=wanted.ways | {way for way in held.ways if way.server not in found},
    )


def _resolved(kept: Mapping[str, Any], before: State) -> dict[str, Any]:
    return {name: value(before) if callable(value) else value for name, value in kept.items()}


async def _close(runners: Sequence[AppRunner]) -> None:
    for runner in runners:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(3):
                await runner.cleanup()


def crash(reason: str) -> NoReturn:
    """End at once, leaving everything to the next director."""
    log.critical(reason)
    logging.shutdown()
    os._exit(CRASHED)
