"""The API over a real unix socket: every route, every refusal, who may speak.

And what the client says when nobody answers.
"""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from nfqlb._core.advisor import Advice
from nfqlb.api import schema
from nfqlb.api.client import Client
from nfqlb.api.director import Choosing
from nfqlb.control.compile import packed
from nfqlb.errors import (
    ConfigError,
    ExistsError,
    KernelError,
    MissingError,
    NfqlbError,
    NotFoundError,
    TakenError,
    UnreachableError,
)
from nfqlb.model import SCHEDULERS, Answers, Intent, Options, OwnTimeouts, Real, Service, Timeouts
from tests.unit.fakes import DNS, WEB, FakeDirector, serving

KNOWN = ", ".join(SCHEDULERS)

WEB_URL = "/v1/services/203.0.113.10:80"
WEB_KEY, DNS_KEY = "203.0.113.10:80/tcp", "[2001:db8::10]:53/udp"
ASK = """
import os, socket, sys
user, group, *more = map(int, sys.argv[2:])
os.setgroups(more)
os.setgid(group)
os.setuid(user)
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect(sys.argv[1])
    connection.sendall(b"GET /v1/reasons HTTP/1.0\\r\\n\\r\\n")
    print(connection.makefile("rb").read().decode())
"""


@pytest.fixture
def everybodys() -> Iterator[Path]:
    """A folder that other users may enter."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


def raw(client: Client, method: str, target: str, body: bytes = b"") -> tuple[int, Any]:
    """Status and content, whatever they are."""
    head, _, content = client._exchange(method, target, body).partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(content)


# --- what is told


def test_services_come_with_their_connections_in_the_order_of_the_intent(client: Client) -> None:
    answer = client.services()
    assert answer["revision"] == 1
    assert answer["timeouts"] == msgspec.to_builtins(Timeouts())
    assert [service["key"] for service in answer["services"]] == [WEB_KEY, DNS_KEY]
    assert answer["services"][0] == {
        "key": WEB_KEY,
        "name": "",
        "protocol": "tcp",
        "address": "203.0.113.10",
        "port": 80,
        "mode": "nat",
        "scheduler": "wrr",
        "active": 3,
        "inactive": 7,
        "reals": [
            {
                "endpoint": "10.0.1.11:8080",
                "address": "10.0.1.11",
                "port": 8080,
                "weight": 3,
                "active": 2,
                "inactive": 5,
                "upper": 0,
                "lower": 0,
                "persistent": 0,
                "mode": "nat",
                "health": "",
                "agent_port": 0,
                "ramping": 0,
                "reply_us": 0,
                "why": "",
            },
            {
                "endpoint": "10.0.1.12:8080",
                "address": "10.0.1.12",
                "port": 8080,
                "weight": 1,
                "active": 1,
                "inactive": 2,
                "upper": 0,
                "lower": 0,
                "persistent": 0,
                "mode": "nat",
                "health": "",
                "agent_port": 0,
                "ramping": 0,
                "reply_us": 1500,
                "why": "",
            },
            {
                "endpoint": "10.0.1.13:80",
                "address": "10.0.1.13",
                "port": 80,
                "weight": 0,
                "active": 0,
                "inactive": 0,
                "upper": 0,
                "lower": 0,
                "persistent": 0,
                "mode": "nat",
                "health": "",
                "agent_port": 0,
                "ramping": 0,
                "reply_us": 0,
                "why": "",
            },
        ],
        "last": 0,
        "fwmark": 0,
        "flags": [],
        "persistence": None,
        "one_packet": False,
        "mss": 0,
        "health": None,
        "offload": True,
        "quorum": None,
        "fallback": "wlc",
        "budget": 1000,
        "shadow": "",
        "timeouts": None,
        "connections_max": 0,
        "slow_start": 0,
        "maglev_size": 4093,
    }


@pytest.mark.parametrize("key", ["203.0.113.10:80%2Ftcp", "203.0.113.10:80/tcp", "203.0.113.10:80"])
def test_one_service_is_found_by_its_key_however_it_is_quoted(client: Client, key: str) -> None:
    assert client.call("GET", f"/v1/services/{key}") == client.services()["services"][0]


def test_the_counters_of_a_service_are_the_sum_of_its_servers(client: Client) -> None:
    still = dict.fromkeys(("cps", "inpps", "outpps", "inbps", "outbps"), 0)
    answer = client.stats()
    assert (answer["packets"], answer["batches"]) == (160, 12)
    assert answer["services"][0] == {
        "key": WEB_KEY,
        "conns": 10,
        "inpkts": 80,
        "outpkts": 60,
        "inbytes": 8000,
        "outbytes": 60000,
        **still,
        "reals": [
            {
                "endpoint": "10.0.1.11:8080",
                "conns": 7,
                "inpkts": 60,
                "outpkts": 50,
                "inbytes": 6000,
                "outbytes": 50000,
                **still,
            },
            {
                "endpoint": "10.0.1.12:8080",
                "conns": 3,
                "inpkts": 20,
                "outpkts": 10,
                "inbytes": 2000,
                "outbytes": 10000,
                **still,
            },
            {"endpoint": "10.0.1.13:80", "conns": 0, "inpkts": 0, "outpkts": 0, "inbytes": 0, "outbytes": 0, **still},
        ],
    }


def test_connections_have_names_for_numbers(client: Client, director: FakeDirector) -> None:
    client4, vip4, real4 = packed("198.51.100.1"), packed("203.0.113.10"), packed("10.0.1.11")
    client6, vip6, real6 = packed("2001:db8:2::1"), packed("2001:db8::10"), packed("2001:db8:1::11")
    director.rows = [
        (6, client4, 40000 + state, vip4, 80, real4, 8080, state, 60 + state, False) for state in range(11)
    ]
    director.rows.append((17, client6, 5353, vip6, 53, real6, 53, 0, 9, False))
    answer = client.connections()["connections"]
    assert [row["state"] for row in answer] == [*schema.TCP_STATES, "UDP"]
    assert answer[1] == {
        "protocol": "tcp",
        "expires": 61,
        "state": "ESTABLISHED",
        "client": "198.51.100.1:40001",
        "virtual": "203.0.113.10:80",
        "destination": "10.0.1.11:8080",
        "template": False,
    }
    assert (answer[-1]["protocol"], answer[-1]["client"]) == ("udp", "[2001:db8:2::1]:5353")
    assert len(client.connections(limit=5)["connections"]) == 5


def test_reasons_and_daemon_are_passed_on(client: Client, director: FakeDirector) -> None:
    assert client.reasons() == {"reasons": {"forwarded": 156, "no_service": 4, "truncated": 0}}
    assert client.daemon() == {**director.info(), "revision": 1}


# --- what is changed


@pytest.mark.parametrize(
    ("change", "services"),
    [
        (
            lambda c: c.add_service(
                {"address": "203.0.113.11", "port": 443, "reals": [{"address": "10.0.1.11", "port": 443}]}
            ),
            (WEB, DNS, Service("203.0.113.11", 443, reals=(Real("10.0.1.11", 443),))),
        ),
        (lambda c: c.edit_service(WEB_KEY, {"scheduler": "lc"}), (msgspec.structs.replace(WEB, scheduler="lc"), DNS)),
        (lambda c: c.edit_service(WEB_KEY, {"mss": 1400}), (msgspec.structs.replace(WEB, mss=1400), DNS)),
        (
            lambda c: c.edit_service(WEB_KEY, {"timeouts": {"tcp": 60}}),
            (msgspec.structs.replace(WEB, timeouts=OwnTimeouts(60)), DNS),
        ),
        (lambda c: c.edit_service(WEB_KEY, {"offload": False}), (msgspec.structs.replace(WEB, offload=False), DNS)),
        (lambda c: c.delete_service(DNS_KEY), (WEB,)),
        (
            lambda c: c.add_real(DNS_KEY, {"address": "2001:db8:1::12", "port": 53, "weight": 4}),
            (WEB, msgspec.structs.replace(DNS, reals=(*DNS.reals, Real("2001:db8:1::12", 53, 4)))),
        ),
        (
            lambda c: c.edit_real(DNS_KEY, "[2001:db8:1::11]:53", {"weight": 0}),
            (WEB, msgspec.structs.replace(DNS, reals=(Real("2001:db8:1::11", 53, 0),))),
        ),
        (lambda c: c.delete_real(DNS_KEY, "2001:db8:1::11"), (WEB, msgspec.structs.replace(DNS, reals=()))),
    ],
)
def test_a_change_reaches_the_director_and_gives_the_new_revision(
    client: Client, director: FakeDirector, change: Callable[[Client], Any], services: tuple[Service, ...]
) -> None:
    assert change(client) == {"revision": 2}
    assert director.intent() == Intent(services)


def test_timeouts_are_set_together(client: Client, director: FakeDirector) -> None:
    assert client.set_timeouts({"tcp": 60, "tcp_fin": 6, "udp": 3}) == {"revision": 2}
    assert director.intent().timeouts == Timeouts(60, 6, 3)


def test_answers_are_set_together(client: Client, director: FakeDirector) -> None:
    assert client.set_answers({"no_server": "reset", "sloppy_tcp": True}) == {"revision": 2}
    assert director.intent().answers == Answers("reset", "pass", True)


def test_options_are_set_together(client: Client, director: FakeDirector) -> None:
    assert client.set_options({"conn_reuse_mode": 1, "expire_quiescent_udp": True}) == {"revision": 2}
    assert director.intent().options == Options(1, expire_quiescent_udp=True)
    assert client.services()["options"] == msgspec.to_builtins(director.intent().options)


# --- what is refused


@pytest.mark.parametrize(
    ("method", "target", "body", "status", "message"),
    [
        (
            "GET",
            "/v1/services/203.0.113.10",
            b"",
            400,
            "vip '203.0.113.10': has no port; write ADDRESS:PORT, as in 203.0.113.10:80",
        ),
        (
            "GET",
            "/v1/services/203.0.113.9:80",
            b"",
            404,
            "service 203.0.113.9:80/tcp: there is none; `nfqlb show` lists the services",
        ),
        (
            "POST",
            "/v1/services",
            b'{"address": "203.0.113.10", "port": 80}',
            409,
            "service 203.0.113.10:80/tcp: exists already; change it with `nfqlb service edit`",
        ),
        (
            "POST",
            "/v1/services",
            b'{"address": "203.0.113.9", "port": -1}',
            400,
            "vip port '-1': out of range; use 0 to 65535",
        ),
        (
            "POST",
            "/v1/services",
            b'{"address": "203.0.113.9", "port": "http"}',
            400,
            "body port 'http': Expected `int`, got `str`",
        ),
        (
            "POST",
            "/v1/services",
            b'{"address": "a", "port": 1, "reals": [{"address": 7, "port": 1}]}',
            400,
            "body reals 0 address '7': Expected `str`, got `int`",
        ),
        (
            "PUT",
            "/v1/config",
            b'{"director": {"workers": 2, "ha": {"peers": [7]}}, "service": []}',
            400,
            "body director ha peers 0 '7': Expected `str`, got `int`",
        ),
        (
            "PUT",
            "/v1/config",
            b'{"director": {"workers": []}, "service": []}',
            400,
            "body director \"{'workers': []}\": Expected `int | str | object`, got `array`",
        ),
        (
            "POST",
            "/v1/services",
            b'{"address": "203.0.113.9", "ports": 1}',
            400,
            "body \"{'address': '203.0.113.9', 'ports': 1}\": Object contains unknown field `ports`",
        ),
        (
            "POST",
            "/v1/services",
            b"[" + b" " * 80,
            400,
            f"body '[{' ' * 56}...': is not JSON: Input data was truncated",
        ),
        ("POST", "/v1/services", b"", 400, "body '': is not JSON: Input data was truncated"),
        (
            "PATCH",
            WEB_URL,
            b'{"scheduler": "best"}',
            400,
            f"scheduler 'best': is not known; choose from {KNOWN}",
        ),
        (
            "PATCH",
            WEB_URL,
            b'{"port": 81}',
            400,
            "body \"{'port': 81}\": Object contains unknown field `port`",
        ),
        (
            "DELETE",
            "/v1/services/203.0.113.10:80/udp",
            b"",
            404,
            "service 203.0.113.10:80/udp: there is none; `nfqlb show` lists the services",
        ),
        (
            "PATCH",
            f"{WEB_URL}/reals/10.0.1.11:8080",
            b'{"weight": -1}',
            400,
            "weight '-1': out of range; use 0 to 2147483647, 0 takes no new connections",
        ),
        (
            "PATCH",
            f"{WEB_URL}/reals/10.0.1.11",
            b'{"weight": 1}',
            404,
            "service 203.0.113.10:80/tcp: has no real server 10.0.1.11:80; `nfqlb show` lists them",
        ),
        (
            "DELETE",
            "/v1/services/203.0.113.10:80/tcp/reals/web",
            b"",
            400,
            "real 'web': is not an IP address; write it as 10.0.0.1 or [2001:db8::1]",
        ),
        ("GET", "/v1/connections?limit=-1", b"", 400, "limit '-1': is out of range or no number; use 0 to 4294967296"),
        (
            "PUT",
            "/v1/answers",
            b'{"no_server": "no"}',
            400,
            "no_server 'no': is not known; choose from icmp, reset, drop",
        ),
        ("PUT", "/v1/options", b'{"conn_reuse_mode": 4}', 400, "conn_reuse_mode '4': out of range; use 0 to 3"),
        ("PUT", "/v1/timeouts", b'{"tcp": 0}', 400, "timeout tcp '0': out of range; use 1 to 2147483 seconds"),
        (
            "PUT",
            "/v1/config?Plan=true",
            b'{"services": []}',
            400,
            "query 'Plan': is not a parameter of this; it takes plan, confirm_within, file",
        ),
        ("DELETE", "/v1/services?plan=true", b"", 400, "query 'plan': is not a parameter of this; it takes none"),
        ("PUT", "/v1/config?plan=false&plan=true", b"{}", 400, "query 'plan': is there twice; give it once"),
        (
            "PUT",
            "/v1/config?confirm_within=0",
            b'{"services": []}',
            400,
            "confirm_within '0': leaves no time to confirm; use more, up to 86400; leave it out to apply for good",
        ),
        (
            "PUT",
            "/v1/config",
            b"{}",
            400,
            "body '': has no services; name all that are to be there; [] deletes them all",
        ),
        (
            "PUT",
            "/v1/config",
            b'{"services": [], "revision": 7}',
            409,
            "this is revision 1, not 7: somebody changed it meanwhile",
        ),
        (
            "PUT",
            "/v1/config",
            b"[" * 100_000,
            400,
            f"body '{'[' * 57}...': is nested too deeply",
        ),
        ("GET", "/v1/nothing", b"", 404, "request 'GET /v1/nothing': Not Found"),
        ("DELETE", "/v1/stats", b"", 405, "request 'DELETE /v1/stats': Method Not Allowed"),
    ],
)
def test_a_bad_request_is_answered_by_a_sentence(
    client: Client, director: FakeDirector, method: str, target: str, body: bytes, status: int, message: str
) -> None:
    found, answer = raw(client, method, target, body)
    assert (found, answer["error"]["message"]) == (status, message)
    assert director.revision == 1


def test_what_config_gives_is_taken_back_and_no_services_are_said_so(client: Client, director: FakeDirector) -> None:
    before, now = director.intent(), client.config()
    assert {"revision", "confirm_by", "services"} <= now.keys()
    assert client.call("PUT", "/v1/config", now)["steps"] == []
    assert director.intent() == before
    assert client.call("PUT", "/v1/config", {**now, "services": []})["revision"] == 2
    assert director.intent() == Intent()


def test_a_config_error_keeps_its_parts(client: Client) -> None:
    _, answer = raw(client, "PUT", "/v1/timeouts", b'{"udp": 0}')
    assert answer == {
        "error": {
            "kind": "ConfigError",
            "message": "timeout udp '0': out of range; use 1 to 2147483 seconds",
            "field": "timeout udp",
            "value": "0",
            "problem": "out of range",
            "fix": "use 1 to 2147483 seconds",
        }
    }


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ConfigError("vip_dev", "eth9", "is not there", "see `ip link`"), 400),
        (NotFoundError("service x: there is none"), 404),
        (ExistsError("service x: exists already"), 409),
        (TakenError("the queue 4 belongs to the process 7"), 409),
        (MissingError("ipset is not installed; apt-get install ipset"), 500),
        (KernelError("the kernel refused the set nfqlb-main"), 500),
        (UnreachableError("the director is stopping"), 503),
    ],
)
def test_an_error_of_the_director_reaches_the_caller_as_it_was(
    client: Client, director: FakeDirector, error: NfqlbError, status: int
) -> None:
    director.failure = error
    assert raw(client, "PUT", "/v1/timeouts", b"{}")[0] == status
    with pytest.raises(type(error)) as raised:
        client.set_timeouts({})
    assert str(raised.value) == str(error)
    assert vars(raised.value) == vars(error)


def test_a_bug_is_logged_and_told(client: Client, director: FakeDirector, caplog: pytest.LogCaptureFixture) -> None:
    director.failure = ZeroDivisionError("division by zero")
    with pytest.raises(UnreachableError) as error:
        client.set_timeouts({})
    assert str(error.value) == (
        "the director failed over this request: ZeroDivisionError: division by zero; its log says more"
    )
    assert "PUT /v1/timeouts failed" in caplog.text


# --- the socket, and who may speak


def test_the_socket_is_for_owner_and_group_and_goes_with_the_server(director: FakeDirector, tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    with serving(director, path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert not path.exists()


def test_the_socket_of_a_successor_stays(director: FakeDirector, tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    with serving(director, path):
        path.rename(tmp_path / "old.sock")
        path.touch()
    assert path.exists()


def test_a_socket_that_a_crash_left_is_replaced(director: FakeDirector, tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with serving(director, path) as client:
        assert client.reasons()


def test_a_socket_that_somebody_answers_on_is_taken(client: Client, director: FakeDirector) -> None:
    with pytest.raises(TakenError) as error, serving(director, Path(client.path)):
        pass
    assert str(error.value) == (
        f"the API socket {client.path} belongs to the process {os.getpid()}; choose another one by --name or --api"
    )
    assert client.reasons()


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("file", "is there and is not a socket; choose another path"),
        ("no/api.sock", "cannot listen there: No such file or directory; choose another path"),
        ("x" * 108, "is too long for a socket; use at most 107 bytes"),
    ],
)
def test_a_path_that_cannot_be_listened_on_is_refused(
    director: FakeDirector, tmp_path: Path, name: str, sentence: str
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError) as error, serving(director, tmp_path / name):
        pass
    assert str(error.value) == f"api '{tmp_path / name}': {sentence}"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
@pytest.mark.parametrize(
    ("user", "group", "more", "status"),
    [(65534, 65534, [], 403), (65534, 4711, [], 200), (65534, 65534, [4711], 200), (0, 65534, [], 200)],
    ids=["stranger", "group", "supplementary group", "root"],
)
def test_the_kernel_says_who_speaks(
    director: FakeDirector, everybodys: Path, user: int, group: int, more: list[int], status: int
) -> None:
    path = everybodys / "api.sock"
    with serving(director, path):
        path.chmod(0o666)
        os.chown(path, 0, 4711)
        asked = subprocess.run(
            [sys.executable, "-I", "-S", "-c", ASK, str(path), *map(str, (user, group, *more))],
            capture_output=True,
            text=True,
            check=True,
        )
    assert asked.stdout.startswith(f"HTTP/1.0 {status} ")
    if status == 403:
        assert json.loads(asked.stdout.partition("\n\n")[2])["error"]["message"] == (
            f"user 65534 may not use {path}; "
            "use root, the director's own user or a member of the group that owns the socket"
        )


# --- when there is nobody


def answered(path: Path, answer: bytes | None) -> threading.Thread:
    """One connection is taken and gets `answer`; None: it gets nothing until the other side has gone."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def answer_one() -> None:
        with listener, listener.accept()[0] as connection:
            connection.recv(65536)
            if answer is None:
                connection.recv(1)
            else:
                connection.sendall(answer)

    thread = threading.Thread(target=answer_one)
    thread.start()
    return thread


@pytest.mark.parametrize(
    ("answer", "timeout", "sentence"),
    [
        (b"", 20, "the director on {} ended before it answered; see its log"),
        (b"220 mail.example ESMTP\r\n", 20, "what answers on {} is not a director of nfqlb, or it ended"),
        (b"HTTP/1.0 200 OK\r\n\r\n{", 20, "what answers on {} is not a director of nfqlb, or it ended"),
        (None, 0.01, "the director on {} did not answer within 0.01 s; see its log"),
    ],
)
def test_an_answer_that_is_none_is_told_apart(
    tmp_path: Path, answer: bytes | None, timeout: float, sentence: str
) -> None:
    path = tmp_path / "api.sock"
    thread = answered(path, answer)
    with pytest.raises(UnreachableError) as error:
        Client(str(path), timeout).services()
    thread.join()
    assert str(error.value) == sentence.format(path)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("api.sock", "no director answers on {}; start one with `nfqlb run`, or name its socket with --api"),
        ("file/api.sock", "no director answers on {}; start one with `nfqlb run`, or name its socket with --api"),
        ("left.sock", "no director answers on {}; start one with `nfqlb run`, or name its socket with --api"),
        ("x" * 108, "cannot reach a director on {}: AF_UNIX path too long"),
    ],
)
def test_without_a_director_the_client_names_the_socket_and_the_cure(tmp_path: Path, name: str, sentence: str) -> None:
    (tmp_path / "file").touch()
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "left.sock"))
    with pytest.raises(UnreachableError) as error:
        Client(str(tmp_path / name)).services()
    assert str(error.value) == sentence.format(tmp_path / name)


def test_a_socket_that_one_may_not_open_is_said_to_be_so() -> None:
    assert Client("/run/a.sock")._why(PermissionError(13, "Permission denied")) == (
        "this user may not use /run/a.sock; use root, or a member of the group that owns the socket"
    )


def test_schedulers_in_python_and_shadows_are_told(director: FakeDirector, client: Client) -> None:
    advice = Advice("own.py", 9, 1, 2, 3, 5, 6, 60_000, 7_999, "late")
    last = [(bytes(10) + b"\xff\xff\xc0\x00\x02\x0a", 40000, 0, 99)]
    director.chosen = {WEB.key: Choosing(advice, (20, 6, {0: (15, 12), 1: (5, 8)}, last), None)}
    assert client.schedulers() == {
        "schedulers": [
            {
                "service": WEB_KEY,
                "scheduler": "wrr",
                "fallback": "wlc",
                "script": {
                    "name": "own.py",
                    "budget": 1000,
                    "chosen": 9,
                    "declined": 1,
                    "failed": 2,
                    "wrong": 3,
                    "late": 5,
                    "rested": 6,
                    "mean": 3.0,
                    "longest": 7,
                    "error": "late",
                },
                "shadow": {
                    "scheduler": "",
                    "compared": 20,
                    "differed": 6,
                    "reals": [
                        {"endpoint": "10.0.1.11:8080", "live": 15, "shadow": 12},
                        {"endpoint": "10.0.1.12:8080", "live": 5, "shadow": 8},
                        {"endpoint": "10.0.1.13:80", "live": 0, "shadow": 0},
                    ],
                    "last": [{"client": "192.0.2.10:40000", "live": "10.0.1.11:8080", "shadow": ""}],
                    "script": None,
                },
            }
        ]
    }
