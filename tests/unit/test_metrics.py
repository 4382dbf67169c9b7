"""What a scraper gets, read by the library's own strict parsers."""

from __future__ import annotations

import asyncio
import socket
import urllib.request
from collections.abc import Callable, Iterable

import pytest
from prometheus_client import parser
from prometheus_client.core import Metric
from prometheus_client.openmetrics import parser as openmetrics

from nfqlb._core.advisor import Advice
from nfqlb.api.director import Choosing
from nfqlb.errors import ConfigError
from nfqlb.metrics import serve
from tests.unit.fakes import WEB, FakeDirector

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
FORMATS = {"": parser.text_string_to_metric_families, OPENMETRICS: openmetrics.text_string_to_metric_families}
ABOUT = {"version": "1", "engine": "fast", "diverter": "nft", "uptime": 9, "restarts": 1, "repairs": 2}
DEFENCES = {"drop_entry": 1, "drop_packet": 0, "secure_tcp": 0, "evicted": 8}
QUEUE = {"number": 4096, "class": "gso", "waiting": 3, "packets": 150, "queue_dropped": 5, "user_dropped": 6}


class Counted(FakeDirector):
    def info(self) -> dict[str, object]:
        return {**super().info(), **ABOUT, "queues": [QUEUE], "warnings": ["one"], "defences": DEFENCES}


def scrape(accept: str) -> tuple[str, str]:
    """The body and its content type."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    counted = Counted()
    advice = Advice("own.py", 9, 1, 2, 3, 4, 5, 1_500_000_000, 70_000, "late")
    counted.chosen = {WEB.key: Choosing(advice, (20, 6, {0: (15, 12), 1: (5, 8)}, []), advice)}

    async def served() -> tuple[str, str]:
        runner = await serve(counted, f"127.0.0.1:{port}")
        try:
            return await asyncio.to_thread(fetch)
        finally:
            await runner.cleanup()

    def fetch() -> tuple[str, str]:
        request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers={"Accept": accept})
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.read().decode(), answer.headers["Content-Type"]

    return asyncio.run(served())


@pytest.mark.parametrize("accept", FORMATS)
def test_a_scrape_tells_all_that_is_counted(accept: str) -> None:
    body, content_type = scrape(accept)
    assert content_type.startswith(accept.partition(";")[0] or "text/plain")
    parse: Callable[[str], Iterable[Metric]] = FORMATS[accept]
    found = {(one.name, frozenset(one.labels.values())): one.value for family in parse(body) for one in family.samples}
    web, dns = "203.0.113.10:80/tcp", "[2001:db8::10]:53/udp"
    for (name, *labels), value in {
        ("nfqlb_packets_total", "forwarded"): 156,
        ("nfqlb_packets_total", "truncated"): 0,
        ("nfqlb_batches_total",): 12,
        ("nfqlb_weight", web, "10.0.1.11:8080"): 3,
        ("nfqlb_weight", web, "10.0.1.13:80"): 0,
        ("nfqlb_connections_total", web, "10.0.1.11:8080"): 7,
        ("nfqlb_connections_total", dns, "[2001:db8:1::11]:53"): 4,
        ("nfqlb_live_connections", web, "10.0.1.12:8080", "active"): 1,
        ("nfqlb_reply_seconds", web, "10.0.1.12:8080"): 0.0015,
        ("nfqlb_live_connections", web, "10.0.1.12:8080", "inactive"): 2,
        ("nfqlb_live_connections", web, "10.0.1.13:80", "active"): 0,
        ("nfqlb_real_packets_total", web, "10.0.1.11:8080", "in"): 60,
        ("nfqlb_real_bytes_total", web, "10.0.1.11:8080", "out"): 50000,
        ("nfqlb_queue_waiting", "4096", "gso"): 3,
        ("nfqlb_queue_packets_total", "4096", "gso"): 150,
        ("nfqlb_queue_dropped_total", "4096", "gso", "queue"): 5,
        ("nfqlb_queue_dropped_total", "4096", "gso", "socket"): 6,
        ("nfqlb_script_choices_total", web, "scheduler", "chosen"): 9,
        ("nfqlb_script_choices_total", web, "shadow", "late"): 4,
        ("nfqlb_script_seconds_total", web, "scheduler"): 1.5,
        ("nfqlb_shadow_compared_total", web): 20,
        ("nfqlb_shadow_differed_total", web): 6,
        ("nfqlb_shadow_connections_total", web, "10.0.1.12:8080"): 8,
        ("nfqlb_shadow_connections_total", web, "10.0.1.13:80"): 0,
        ("nfqlb_restarts_total",): 1,
        ("nfqlb_repairs_total",): 2,
        ("nfqlb_warnings",): 1,
        ("nfqlb_table_capacity",): 1024,
        ("nfqlb_table_used",): 3,
        ("nfqlb_defence_up", "drop_entry"): 1,
        ("nfqlb_defence_up", "secure_tcp"): 0,
        ("nfqlb_evicted_total",): 8,
    }.items():
        assert found[name, frozenset(labels)] == value, (name, labels)
    assert "process_cpu_seconds_total" in {name for name, *_ in found}
    assert f'nfqlb_service_info{{mode="nat",name="",scheduler="wrr",service="{web}"}} 1.0' in body


@pytest.mark.parametrize("listener", ["127.0.0.1:port", "127.0.0.1:0", "localhost:9105", "9105"])
def test_a_place_that_is_none_is_refused(listener: str) -> None:
    with pytest.raises(ConfigError, match="metrics"):
        asyncio.run(serve(Counted(), listener))
