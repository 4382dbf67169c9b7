"""Schedulers in Python as files: whom they are taken from, when they are read, what becomes of wrong ones."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from nfqlb._core.advisor import Advisor
from nfqlb.advising import Advisors, Ran, UnrunError, Use, trusted
from nfqlb.errors import ConfigError
from nfqlb.model import Intent, Real, Service

WEB = Service("203.0.113.10", 80, reals=(Real("10.0.1.11", 8080),), scheduler="web.py", budget=70)
DNS = Service("203.0.113.10", 53, "udp", reals=(Real("10.0.1.11", 53),), shadow="/opt/dns.py")
INTENT = Intent((WEB, DNS))
KEYS = frozenset(INTENT.by_key)
GOOD = "def pick(flow, servers):\n    return servers[0]\n"
CLASS = "class Scheduler:\n    def pick(self, flow, servers):\n        return None\n"


class Files(dict[str, str]):
    def __call__(self, name: str) -> str:
        if name not in self:
            raise ConfigError("scheduler", name, "cannot be read: No such file or directory")
        return self[name]


@pytest.fixture
def files() -> Files:
    return Files({"web.py": GOOD, "/opt/dns.py": CLASS})


@pytest.fixture
def advisors(files: Files) -> Advisors:
    advisors = Advisors(files)
    assert advisors.load(INTENT, KEYS)
    web(advisors), advisors.advisor(DNS, "shadow")
    assert advisors.adopt(INTENT) == []
    return advisors


def web(advisors: Advisors) -> Advisor:
    return advisors.advisor(WEB, "scheduler")


def test_each_service_and_role_has_an_advisor_of_its_own(advisors: Advisors) -> None:
    dns = advisors.advisor(DNS, "shadow")
    assert (web(advisors).name, dns.name) == ("web.py", "/opt/dns.py")
    assert (web(advisors).budget, dns.budget) == (70_000, 1_000_000)
    assert web(advisors) is web(advisors)


def test_what_did_not_change_is_not_run_again(advisors: Advisors) -> None:
    assert not advisors.load(INTENT, KEYS)
    assert advisors.adopt(INTENT) == []


def test_what_changed_is_exchanged_in_place(advisors: Advisors, files: Files) -> None:
    before = web(advisors)
    files["web.py"] = CLASS
    assert advisors.load(INTENT, KEYS)
    assert advisors.adopt(INTENT) == ["web.py, the scheduler of 203.0.113.10:80/tcp, was read again"]
    assert web(advisors) is before
    assert not advisors.load(INTENT, KEYS)


def test_a_change_that_fails_later_exchanges_nothing(advisors: Advisors, files: Files) -> None:
    files["web.py"] = CLASS
    assert advisors.load(INTENT, KEYS)
    assert advisors.load(INTENT, KEYS), "it was not adopted"


WRONG = [
    ("def pick(:", "scheduler 'web.py': raises SyntaxError: invalid syntax (web.py, line 1)"),
    ("1 / 0", "scheduler 'web.py': raises ZeroDivisionError: division by zero"),
    (
        "choose = 1",
        "scheduler 'web.py': is no scheduler; define pick(flow, servers), or a class Scheduler with such a method",
    ),
    ("import sys\nsys.exit(3)", "scheduler 'web.py': raises SystemExit: 3"),
    (
        "class Mute(Exception):\n    def __str__(self):\n        1 / 0\nraise Mute",
        "scheduler 'web.py': raises Mute",
    ),
    ("class Scheduler: pass", "scheduler 'web.py': raises AttributeError: 'Scheduler' object has no attribute 'pick'"),
]


@pytest.mark.parametrize(("text", "message"), WRONG)
def test_a_wrong_one_is_refused_and_the_one_before_goes_on(
    advisors: Advisors, files: Files, text: str, message: str
) -> None:
    files["web.py"] = text
    with pytest.raises(ConfigError) as raised:
        advisors.load(INTENT, {WEB.key})
    assert str(raised.value) == message
    assert advisors.adopt(INTENT) == []
    assert web(advisors).statistics().error == ""


ENDLESS = "while True: pass"
LATE = "did not come to its end within 0.1 seconds; have its top define only, and do nothing that takes long"


def test_code_that_does_not_come_to_its_end_is_ended_and_refused(files: Files) -> None:
    advisors = Advisors(files, seconds=0.1)
    files["web.py"] = ENDLESS
    with pytest.raises(ConfigError) as raised:
        advisors.load(INTENT, KEYS)
    assert str(raised.value) == f"scheduler 'web.py': {LATE}"
    for thread in threading.enumerate():
        if thread.name == "runs web.py":
            thread.join(60)
            assert not thread.is_alive()


def test_a_director_starts_without_one_that_does_not_come_to_its_end(files: Files) -> None:
    files["web.py"] = files["/opt/dns.py"] = ENDLESS
    advisors = Advisors(files, seconds=0.1)
    assert advisors.load(INTENT, ())
    assert web(advisors).statistics().error == f"scheduler 'web.py': {LATE}"
    assert advisors.advisor(DNS, "shadow").statistics().error == f"shadow '/opt/dns.py': {LATE}"
    advisors.adopt(INTENT)
    ran: Ran = {}
    advisors.prepare(INTENT, (), ran)
    with pytest.raises(UnrunError) as raised:
        advisors.prepare(INTENT, {WEB.key}, ran)
    assert [one.use.name for one in raised.value.texts] == ["web.py"], "whoever names it tries again, nobody else does"


def test_what_is_new_may_be_run_before_it_is_loaded(advisors: Advisors, files: Files) -> None:
    files["web.py"] = files["/opt/dns.py"] = "1 / 0"
    ran: Ran = {}
    with pytest.raises(UnrunError) as raised:
        advisors.prepare(INTENT, {WEB.key}, ran)
    assert [one.text for one in raised.value.texts] == ["1 / 0"] * 2
    advisors.run(raised.value.texts, ran)
    with pytest.raises(ConfigError):
        advisors.prepare(INTENT, {WEB.key}, ran)
    files["web.py"] = CLASS
    with pytest.raises(UnrunError):
        advisors.prepare(INTENT, {WEB.key}, ran)


def test_somebody_elses_change_is_not_refused_for_it(
    advisors: Advisors, files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    files["web.py"] = "1 / 0"
    with caplog.at_level(logging.ERROR):
        assert not advisors.load(INTENT, {DNS.key})
    assert "service 203.0.113.10:80/tcp: scheduler 'web.py': raises ZeroDivisionError" in caplog.text
    assert advisors.adopt(INTENT) == []


def test_a_director_that_starts_goes_on_without_it(files: Files) -> None:
    del files["/opt/dns.py"]
    advisors = Advisors(files)
    assert advisors.load(INTENT, ())
    error = advisors.advisor(DNS, "shadow").statistics().error
    assert error == "shadow '/opt/dns.py': cannot be read: No such file or directory"
    assert web(advisors).statistics().error == ""
    advisors.adopt(INTENT)
    files["/opt/dns.py"] = GOOD
    assert advisors.load(INTENT, ())
    assert advisors.adopt(INTENT) == ["/opt/dns.py, the shadow of 203.0.113.10:53/udp, was read again"]


def test_what_nobody_uses_is_let_go(advisors: Advisors) -> None:
    before = web(advisors)
    without = Intent((replace(WEB, scheduler="rr"), DNS))
    advisors.load(without, KEYS)
    advisors.adopt(without)
    assert advisors.load(INTENT, KEYS)
    assert web(advisors) is not before


def test_a_budget_is_changed_in_place(advisors: Advisors) -> None:
    slower = Intent((replace(WEB, budget=90), DNS))
    advisors.load(slower, KEYS)
    advisors.adopt(slower)
    assert web(advisors).budget == 90_000


def test_each_new_error_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    advisors = Advisors(Files())
    advisors.load(Intent((WEB,)), ())
    web(advisors)
    advisors.adopt(Intent((WEB,)))
    told: dict[Use, str] = {}
    with caplog.at_level(logging.WARNING):
        assert advisors.mind(told)
        assert advisors.mind(told)
    assert caplog.text.count("web.py, the scheduler of 203.0.113.10:80/tcp: scheduler 'web.py': cannot be read") == 1
    assert not Advisors(Files()).mind({})


# --- whom a file is taken from ----------------------------------------------------------------------------------------


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that root alone can write, /tmp is none."""
    with tempfile.TemporaryDirectory(dir="/run", prefix="nfqlb-") as name:
        yield Path(name)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, whose files they are")
def test_files_of_root_are_read(folder: Path) -> None:
    file = folder / "a.py"
    with pytest.raises(ConfigError, match=r"cannot be run: .*: No such file"):
        trusted(str(file))
    file.write_text(GOOD)
    assert trusted(str(file)) == GOOD
    file.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"is not UTF-8 text"):
        trusted(str(file))
    file.chmod(0o666)
    with pytest.raises(ConfigError, match=r"can be written by others than root: .*; have root own it"):
        trusted(str(file))
