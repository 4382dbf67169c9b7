"""What a director counts, for Prometheus, over HTTP at /metrics.

Strategy: nothing is counted here. Each scrape asks the director as the API does (`drained`, `info`) and writes what it
says; the library knows the two text formats and which one the scraper wants. A thread writes, which
takes seconds for thousands of servers, so that checks do not wait for it. The library takes 0.3 s to load, so it is
loaded when metrics are asked for, after packets are taken. Sums are left to queries: `sum by (service)`. A label is a
promise like a key of the API.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from nfqlb.api.director import Director
from nfqlb.api.schema import Counters
from nfqlb.errors import ConfigError
from nfqlb.ha.failover import ROLES
from nfqlb.health.runner import Lateness
from nfqlb.model import endpoint, parse_listener

SHUTDOWN_SECONDS = 1.0
SERVER = ("service", "real")
OUTCOMES = ("chosen", "declined", "failed", "wrong", "late", "rested")
QUEUE = ("queue", "class")


async def serve(director: Director, listener: str) -> web.AppRunner:
    """Answer scrapes on `listener` (ADDRESS:PORT) until the runner's cleanup(); ConfigError where that cannot be."""
    registry = CollectorRegistry()
    registry.register(_Collector(director))
    ProcessCollector(registry=registry)

    async def scrape(request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        body = await asyncio.to_thread(encode, _Found(registry.collect()))
        return web.Response(body=body, headers={"Content-Type": content_type})

    app = web.Application()
    app.add_routes([web.get("/metrics", scrape)])
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_SECONDS)
    await runner.setup()
    address, port = parse_listener("metrics", listener)
    try:
        await web.TCPSite(runner, address, port).start()
    except OSError as error:
        await runner.cleanup()
        fix = "choose another port, or an address of this machine"
        raise ConfigError("metrics", endpoint(address, port), f"cannot listen there: {error.strerror}", fix) from error
    return runner


class _Found:
    """A registry of what was collected at one moment."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = tuple(metrics)

    def collect(self) -> Sequence[Metric]:
        return self._metrics


class _Collector(Collector):
    def __init__(self, director: Director) -> None:
        self._director = director

    def describe(self) -> list[Metric]:
        """Nothing: a registry would collect once to find the names out, and there is only this one."""
        return []

    def collect(self) -> Iterator[Metric]:
        drained, info = self._director.drained(), self._director.info()
        packets = CounterMetricFamily("nfqlb_packets", "Packets by the reason that decided them.", labels=["reason"])
        for reason, count in drained.reasons.items():
            packets.add_metric([reason], count)
        yield packets
        yield CounterMetricFamily("nfqlb_batches", "Batches of packets taken from the queues.", drained.batches)
        yield from self._services(drained.slots)
        yield from self._choosing()
        yield _lateness(self._director.health.lateness)
        yield from _queues(info)
        yield from _daemon(info)
        yield from _sync(self._director.syncing())

    def _services(self, counted: Mapping[int, tuple[int, ...]]) -> Iterator[Metric]:
        services = InfoMetricFamily("nfqlb_service", "A virtual service.", labels=["service"])
        weights = GaugeMetricFamily(
            "nfqlb_weight", "Weight of a real server as it is configured; 0: no new connections.", None, SERVER
        )
        made = CounterMetricFamily("nfqlb_connections", "Connections that a real server got.", None, SERVER)
        live = GaugeMetricFamily("nfqlb_live_connections", "Connections now.", None, (*SERVER, "state"))
        packets = CounterMetricFamily("nfqlb_real_packets", "Packets to and from it.", None, (*SERVER, "direction"))
        octets = CounterMetricFamily("nfqlb_real_bytes", "Bytes to and from it.", None, (*SERVER, "direction"))
        reply = GaugeMetricFamily("nfqlb_reply_seconds", "Time to reply, as ewma reckons.", None, SERVER)
        well = GaugeMetricFamily("nfqlb_up", "Whether a real server serves: checks, and no maintenance.", None, SERVER)
        whole = GaugeMetricFamily("nfqlb_quorum", "Whether a service has its quorum.", None, ["service"])
        slots, serving = self._director.slots(), self._director.serving
        for service in self._director.intent().services:
            about = {"name": service.name, "mode": service.mode, "scheduler": service.scheduler}
            services.add_metric([str(service.key)], about)
            if service.health or service.quorum:
                whole.add_metric([str(service.key)], service.key not in serving.view.standing.lost)
            for real in service.reals:
                labels = [str(service.key), str(real)]
                counters = Counters(*counted.get(slots.get((service.key, real.address, real.port), -1), ()))
                weights.add_metric(labels, real.weight)
                end = service.key, real.address, real.port
                if end in serving.out or end in serving.health.seen:
                    well.add_metric(labels, end not in serving.out)
                made.add_metric(labels, counters.conns)
                live.add_metric([*labels, "active"], counters.active)
                live.add_metric([*labels, "inactive"], counters.inactive)
                packets.add_metric([*labels, "in"], counters.inpkts)
                packets.add_metric([*labels, "out"], counters.outpkts)
                octets.add_metric([*labels, "in"], counters.inbytes)
                octets.add_metric([*labels, "out"], counters.outbytes)
                if counters.reply_us:
                    reply.add_metric(labels, counters.reply_us / 1e6)
        yield from (services, weights, well, whole, made, live, packets, octets, reply)

    def _choosing(self) -> Iterator[Metric]:
        """Schedulers in Python, by what came of a choice, and shadows."""
        choices = CounterMetricFamily(
            "nfqlb_script_choices", "Choices asked of a scheduler in Python.", None, ("service", "role", "outcome")
        )
        spent = CounterMetricFamily("nfqlb_script_seconds", "Time that it took.", None, ("service", "role"))
        compared = CounterMetricFamily("nfqlb_shadow_compared", "Connections that a shadow saw.", None, ["service"])
        differed = CounterMetricFamily("nfqlb_shadow_differed", "Those that it had given elsewhere.", None, ["service"])
        would = CounterMetricFamily("nfqlb_shadow_connections", "Those that a server would have got.", None, SERVER)
        slots, services = self._director.slots(), self._director.intent().by_key
        for key, one in self._director.choosing().items():
            for role, advice in (("scheduler", one.advice), ("shadow", one.shadow)):
                if advice:
                    for outcome in OUTCOMES:
                        choices.add_metric([str(key), role, outcome], getattr(advice, outcome))
                    spent.add_metric([str(key), role], advice.spent / 1e9)
            if one.compared:
                compared.add_metric([str(key)], one.compared[0])
                differed.add_metric([str(key)], one.compared[1])
                for real in services[key].reals if key in services else ():
                    slot = slots.get((key, real.address, real.port), -1)
                    would.add_metric([str(key), str(real)], one.compared[2].get(slot, (0, 0))[1])
        yield from (choices, spent, compared, differed, would)


def _lateness(late: Lateness) -> Metric:
    bounds = [*map(str, late.BOUNDS), "+Inf"]
    buckets = [*zip(bounds, accumulate(late.counts), strict=True)]
    return HistogramMetricFamily("nfqlb_check_lateness_seconds", "How late checks began.", buckets, late.seconds)


def _queues(info: Mapping[str, Any]) -> Iterator[Metric]:
    waiting = GaugeMetricFamily("nfqlb_queue_waiting", "Packets that wait in the kernel.", None, QUEUE)
    taken = CounterMetricFamily("nfqlb_queue_packets", "Packets taken from the queue.", None, QUEUE)
    lost = CounterMetricFamily(
        "nfqlb_queue_dropped", "Packets that the kernel dropped: no room in queue or socket.", None, (*QUEUE, "full")
    )
    for queue in info["queues"]:
        labels = [str(queue["number"]), queue["class"]]
        waiting.add_metric(labels, queue["waiting"])
        taken.add_metric(labels, queue["packets"])
        lost.add_metric([*labels, "queue"], queue["queue_dropped"])
        lost.add_metric([*labels, "socket"], queue["user_dropped"])
    yield from (waiting, taken, lost)


def _sync(sync: Mapping[str, Any] | None) -> Iterator[Metric]:
    if sync is None:
        return
    records = CounterMetricFamily(
        "nfqlb_sync_records", "Connections told and heard, by what became of them.", None, ["outcome"]
    )
    for outcome, count in sync["records"].items():
        if outcome != "aside":
            records.add_metric([outcome], count)
    yield records
    yield GaugeMetricFamily(
        "nfqlb_sync_aside", "Connections heard whose real server is unknown.", sync["records"]["aside"]
    )
    messages = CounterMetricFamily("nfqlb_sync_messages", "Messages of connection sync.", None, ["kind"])
    for kind in ("sent", "received", "failed", "foreign", "unsealed", "replayed"):
        messages.add_metric([kind], sync[f"messages_{kind}"])
    yield messages
    yield GaugeMetricFamily("nfqlb_sync_ready", "Whether all connections of the peers are known.", sync["ready"])
    yield GaugeMetricFamily("nfqlb_sync_lag_seconds", "How long an announcement waited at most, lately.", sync["lag"])
    lost = CounterMetricFamily("nfqlb_sync_peer_lost", "Messages of a peer that did not get here.", None, ["peer"])
    there = GaugeMetricFamily("nfqlb_sync_peer_up", "Whether a peer greets.", None, ["peer"])
    for peer in sync["peers"]:
        lost.add_metric([peer["address"]], peer["lost"])
        there.add_metric([peer["address"]], not peer["away"])
    yield lost
    yield there


def _daemon(info: Mapping[str, Any]) -> Iterator[Metric]:
    about = {"name": info["name"], "version": info["version"], "engine": info["engine"], "diverter": info["diverter"]}
    yield InfoMetricFamily("nfqlb_director", "The director.", about)
    yield GaugeMetricFamily("nfqlb_uptime_seconds", "Since the director started.", info["uptime"])
    yield CounterMetricFamily("nfqlb_restarts", "Times that the director was started again.", info["restarts"])
    yield CounterMetricFamily("nfqlb_repairs", "Changes by others in the kernel that were put right.", info["repairs"])
    told = CounterMetricFamily("nfqlb_notices", "Notices of health by what became of them.", None, ("channel", "fate"))
    for channel, counts in info.get("notices", {}).items():
        for fate, count in counts.items():
            told.add_metric([channel, fate], count)
    yield told
    yield GaugeMetricFamily("nfqlb_warnings", "What looks wrong now; `nfqlb doctor` says more.", len(info["warnings"]))
    if ha := info.get("ha"):
        role = GaugeMetricFamily(
            "nfqlb_ha_role", "1 for what this director is among those for its VIPs.", None, ["role"]
        )
        for one in ROLES:
            role.add_metric([one], one == ha["role"])
        yield role
        yield CounterMetricFamily("nfqlb_ha_changes", "Times that it became something else.", ha["changes"])
    yield GaugeMetricFamily("nfqlb_table_capacity", "The most connections at a time.", info["table"]["capacity"])
    up = GaugeMetricFamily("nfqlb_defence_up", "Whether the table defends itself so.", None, ["defence"])
    for defence in ("drop_entry", "drop_packet", "secure_tcp"):
        up.add_metric([defence], bool(info["defences"][defence]))
    yield up
    evicted = info["defences"]["evicted"]
    yield CounterMetricFamily("nfqlb_evicted", "Connections that drop_entry ended before their time.", evicted)
    yield GaugeMetricFamily("nfqlb_table_used", "Connections in the table.", info["table"]["used"])
