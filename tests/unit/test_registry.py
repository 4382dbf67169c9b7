"""Each verb, each refusal, and that the intent before is never touched."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from nfqlb.control import registry
from nfqlb.errors import ConfigError, ExistsError, NfqlbError, NotFoundError
from nfqlb.model import SCHEDULERS, Intent, Key, Options, Real, Service, Timeouts
from tests.sizes import EXAMPLES
from tests.unit.fakes import DNS, WEB

KNOWN = ", ".join(SCHEDULERS)

INTENT = Intent((WEB, DNS), Timeouts(tcp=600))
NEW = Service("203.0.113.10", 443)
NOWHERE = Key("tcp", "203.0.113.99", 80)
FIRST, SECOND, THIRD = WEB.reals


def web(*reals: Real) -> Intent:
    return Intent((msgspec.structs.replace(WEB, reals=reals), DNS), INTENT.timeouts)


@pytest.mark.parametrize(
    ("edit", "after"),
    [
        (lambda i: registry.add_service(i, NEW), Intent((WEB, DNS, NEW), INTENT.timeouts)),
        (
            lambda i: registry.edit_service(i, WEB.key, scheduler="lc"),
            Intent((msgspec.structs.replace(WEB, scheduler="lc"), DNS), INTENT.timeouts),
        ),
        (lambda i: registry.delete_service(i, WEB.key), Intent((DNS,), INTENT.timeouts)),
        (lambda i: registry.add_real(i, WEB.key, Real("10.0.1.14", 80)), web(*WEB.reals, Real("10.0.1.14", 80))),
        (
            lambda i: registry.edit_real(i, WEB.key, Real("10.0.1.12", 8080, 9)),
            web(FIRST, Real("10.0.1.12", 8080, 9), THIRD),
        ),
        (lambda i: registry.delete_real(i, WEB.key, "10.0.1.11", 8080), web(SECOND, THIRD)),
        (lambda i: registry.set_timeouts(i, Timeouts(udp=9)), Intent((WEB, DNS), Timeouts(udp=9))),
    ],
    ids=["add_service", "edit_service", "delete_service", "add_real", "edit_real", "delete_real", "set_timeouts"],
)
def test_a_verb_gives_the_next_intent_and_keeps_the_order(edit: Callable[[Intent], Intent], after: Intent) -> None:
    before = msgspec.json.encode(INTENT)
    assert edit(INTENT) == after
    assert msgspec.json.encode(INTENT) == before


def test_connections_may_have_to_end_when_a_server_goes_or_is_quiesced_or_options_change() -> None:
    quiesced = registry.edit_real(INTENT, WEB.key, Real("10.0.1.12", 8080, 0))
    assert registry.lets_go(INTENT, quiesced)
    assert registry.lets_go(INTENT, registry.delete_real(INTENT, WEB.key, "10.0.1.13", 80)), "its weight is 0"
    assert registry.lets_go(INTENT, registry.delete_service(INTENT, DNS.key))
    assert registry.lets_go(INTENT, registry.set_options(INTENT, Options(expire_quiescent_udp=True)))
    for after in (
        registry.add_service(INTENT, NEW),
        registry.add_real(INTENT, WEB.key, Real("10.0.1.14", 80, 0)),
        registry.edit_real(INTENT, WEB.key, Real("10.0.1.13", 80, 0, 9)),
        registry.edit_real(INTENT, WEB.key, Real("10.0.1.11", 8080, 1)),
        registry.set_timeouts(INTENT, Timeouts()),
    ):
        assert not registry.lets_go(INTENT, after)
    assert not registry.lets_go(quiesced, INTENT)


@pytest.mark.parametrize(
    ("edit", "kind", "sentence"),
    [
        (
            lambda i: registry.add_service(i, Service("203.0.113.10", 80)),
            ExistsError,
            "service 203.0.113.10:80/tcp: exists already; change it with `nfqlb service edit`",
        ),
        (
            lambda i: registry.edit_service(i, NOWHERE, scheduler="rr"),
            NotFoundError,
            "service 203.0.113.99:80/tcp: there is none; `nfqlb show` lists the services",
        ),
        (
            lambda i: registry.edit_service(i, WEB.key, scheduler="best"),
            ConfigError,
            f"scheduler 'best': is not known; choose from {KNOWN}",
        ),
        (
            lambda i: registry.delete_service(i, NOWHERE),
            NotFoundError,
            "service 203.0.113.99:80/tcp: there is none; `nfqlb show` lists the services",
        ),
        (
            lambda i: registry.add_real(i, NOWHERE, FIRST),
            NotFoundError,
            "service 203.0.113.99:80/tcp: there is none; `nfqlb show` lists the services",
        ),
        (
            lambda i: registry.add_real(i, WEB.key, Real("10.0.1.12", 8080, 7)),
            ExistsError,
            "service 203.0.113.10:80/tcp: has the real server 10.0.1.12:8080 already; change it with `nfqlb real edit`",
        ),
        (
            lambda i: registry.add_real(i, WEB.key, Real("203.0.113.10", 80)),
            ConfigError,
            "real '203.0.113.10:80': is the virtual service itself; name the address of a real server",
        ),
        (
            lambda i: registry.edit_real(i, WEB.key, Real("10.0.1.12", 81)),
            NotFoundError,
            "service 203.0.113.10:80/tcp: has no real server 10.0.1.12:81; `nfqlb show` lists them",
        ),
        (
            lambda i: registry.delete_real(i, DNS.key, "2001:db8:1::12", 53),
            NotFoundError,
            "service [2001:db8::10]:53/udp: has no real server [2001:db8:1::12]:53; `nfqlb show` lists them",
        ),
    ],
)
def test_what_is_not_there_or_there_already_is_refused(
    edit: Callable[[Intent], Intent], kind: type[NfqlbError], sentence: str
) -> None:
    with pytest.raises(kind) as error:
        edit(INTENT)
    assert str(error.value) == sentence


KEYS = st.sampled_from([Key("tcp", "203.0.113.10", 80), Key("udp", "203.0.113.10", 80), Key("tcp", "203.0.113.11", 80)])
REALS = st.builds(Real, st.sampled_from(["10.0.1.11", "10.0.1.12"]), st.sampled_from([80, 81]), st.integers(0, 9))


class RegistryMachine(RuleBasedStateMachine):
    """Random verbs on the registry and on a dictionary of dictionaries: both agree on every result and refusal."""

    def __init__(self) -> None:
        super().__init__()
        self.intent = Intent()
        self.expected: dict[Key, dict[tuple[str, int], int]] = {}

    def attempt(self, refused: type[NfqlbError] | None, edit: Callable[[Intent], Intent]) -> bool:
        if refused:
            with pytest.raises(refused):
                edit(self.intent)
        else:
            self.intent = edit(self.intent)
        return refused is None

    def missing(self, key: Key, real: Real) -> type[NfqlbError] | None:
        return None if (real.address, real.port) in self.expected.get(key, {}) else NotFoundError

    @rule(key=KEYS)
    def add_service(self, key: Key) -> None:
        service = Service(key.address, key.port, key.protocol)
        refused = ExistsError if key in self.expected else None
        if self.attempt(refused, lambda intent: registry.add_service(intent, service)):
            self.expected[key] = {}

    @rule(key=KEYS)
    def delete_service(self, key: Key) -> None:
        refused = None if key in self.expected else NotFoundError
        if self.attempt(refused, lambda intent: registry.delete_service(intent, key)):
            del self.expected[key]

    @rule(key=KEYS, real=REALS)
    def add_real(self, key: Key, real: Real) -> None:
        refused: type[NfqlbError] | None = NotFoundError
        if key in self.expected:
            refused = None if self.missing(key, real) else ExistsError
        if self.attempt(refused, lambda intent: registry.add_real(intent, key, real)):
            self.expected[key][real.address, real.port] = real.weight

    @rule(key=KEYS, real=REALS)
    def edit_real(self, key: Key, real: Real) -> None:
        if self.attempt(self.missing(key, real), lambda intent: registry.edit_real(intent, key, real)):
            self.expected[key][real.address, real.port] = real.weight

    @rule(key=KEYS, real=REALS)
    def delete_real(self, key: Key, real: Real) -> None:
        if self.attempt(
            self.missing(key, real), lambda intent: registry.delete_real(intent, key, real.address, real.port)
        ):
            del self.expected[key][real.address, real.port]

    @invariant()
    def both_agree(self) -> None:
        """The order too: dictionaries keep that of insertion."""
        found = [(s.key, [(real.address, real.port, real.weight) for real in s.reals]) for s in self.intent.services]
        assert found == [(key, [(*end, w) for end, w in reals.items()]) for key, reals in self.expected.items()]


TestRegistryMachine = RegistryMachine.TestCase
TestRegistryMachine.settings = settings(max_examples=EXAMPLES // 10, stateful_step_count=20)


def test_flags_are_those_of_the_fallback_of_a_scheduler_in_python_and_go_with_it() -> None:
    service = Service("203.0.113.10", 80, scheduler="x.py", fallback="sh", flags=("sh-port",))
    edit = partial(registry.edit_service, Intent((service,)), service.key)
    assert edit(budget=9).services[0].flags == ("sh-port",)
    assert edit(fallback="mh").services[0].flags == ()
    assert edit(fallback="mh", flags=("mh-port",)).services[0].flags == ("mh-port",)
    assert edit(scheduler="sh").services[0].flags == ()


def test_a_shadow_that_becomes_the_scheduler_is_none_any_more() -> None:
    before = registry.edit_service(INTENT, WEB.key, shadow="lc")
    assert registry.edit_service(before, WEB.key, scheduler="rr").by_key[WEB.key].shadow == "lc"
    assert registry.edit_service(before, WEB.key, scheduler="lc").by_key[WEB.key].shadow == ""
