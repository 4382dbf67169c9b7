"""What one intent differs from another by, as steps that a person reads before a change and a program after it.

Strategy: services are the same when their key is, real servers when address and port are. What is in one only is added
or deleted; of what is in both, each field that differs is named with both values. The order of services and real
servers counts, since schedulers walk in it: where those that stay stand otherwise than before, that is a step of its
own. So there are no steps exactly where the intents are equal. Nothing is applied from the steps: a change publishes
the new intent as a whole, and unchanged services stay the objects that they were.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from nfqlb.model import Intent, Service

K = TypeVar("K")
SECRET, HIDDEN = "hash_key", "(secret)"
GLOBAL = ("timeouts", "answers", "options")
IDENTITY = ("protocol", "address", "port", "last", "fwmark")  # of a service


class Step(msgspec.Struct, frozen=True, omit_defaults=True):
    """`action` is "add", "delete" or "edit"; `what` is "service", "real", "timeouts", "answers", "options", "sync" or
    "order".
    `service` and `real` are names as they are written. `changes` has a pair for each field: its value before and after;
    of what is added the values that are not the default are there, with null before.
    """

    action: str
    what: str
    service: str = ""
    real: str = ""
    changes: dict[str, tuple[Any, Any]] = {}


def steps(before: Intent, after: Intent) -> list[Step]:
    """What leads from one to the other, services in the order of `after`, deleted ones first."""
    parts = ((what, _fields(getattr(before, what), getattr(after, what))) for what in GLOBAL)
    found = [Step("edit", what, changes=changes) for what, changes in parts if changes]
    if before.sync != after.sync:
        action = "edit" if before.sync and after.sync else "add" if after.sync else "delete"
        changes = _fields(before.sync, after.sync) if before.sync and after.sync else {}
        found.append(Step(action, "sync", changes=changes or _values(after.sync) if after.sync else {}))
    return [*found, *_services(before.services, after.services)]


def _services(before: Sequence[Service], after: Sequence[Service]) -> Iterator[Step]:
    changed = [(old, new) for old, new in zip(before, after, strict=False) if old is not new]
    if len(before) == len(after) and all(old.key == new.key for old, new in changed):  # what one change mostly is
        for one, other in changed:
            yield from _edited(one, other)
        return
    old = {service.key: service for service in before}
    new = {service.key: service for service in after}
    yield from (Step("delete", "service", str(key)) for key in old if key not in new)
    for key, service in new.items():
        if key not in old:
            yield from _added(service)
        elif old[key] is not service:
            yield from _edited(old[key], service)
    if _moved(old, new):
        yield Step("edit", "order", changes={"services": (_names(old), _names(new))})


def _added(service: Service) -> Iterator[Step]:
    yield Step("add", "service", str(service.key), changes=_values(service, "reals", *IDENTITY))
    for real in service.reals:
        yield Step("add", "real", str(service.key), str(real), _values(real, "address", "port"))


def _edited(before: Service, after: Service) -> Iterator[Step]:
    name = str(after.key)
    if changes := _fields(before, after, "reals"):
        yield Step("edit", "service", name, changes=changes)
    old = {(real.address, real.port): real for real in before.reals}
    new = {(real.address, real.port): real for real in after.reals}
    for end, real in old.items():
        if end not in new:
            yield Step("delete", "real", name, str(real))
    for end, real in new.items():
        if end not in old:
            yield Step("add", "real", name, str(real), _values(real, "address", "port"))
        elif changes := _fields(old[end], real):
            yield Step("edit", "real", name, str(real), changes)
    if _moved(old, new):
        yield Step("edit", "order", name, changes={"reals": (_names(old.values()), _names(new.values()))})


def _fields(before: msgspec.Struct, after: msgspec.Struct, *but: str) -> dict[str, tuple[Any, Any]]:
    pairs = ((name, getattr(before, name), getattr(after, name)) for name in before.__struct_fields__)
    return {name: _told(name, old, new) for name, old, new in pairs if name not in but and old != new}


def _values(value: msgspec.Struct, *but: str) -> dict[str, tuple[Any, Any]]:
    defaults = {field.name: field.default for field in msgspec.structs.fields(value)}
    given = ((name, getattr(value, name)) for name in defaults if name not in but)
    return {name: (None, _plain(one)) for name, one in given if one != defaults[name]}


def _told(name: str, before: object, after: object) -> tuple[Any, Any]:
    """A secret is not: steps are printed, logged and sent about."""
    if name == SECRET:
        return HIDDEN if before else before, HIDDEN if after else after
    return _plain(before), _plain(after)


def _plain(value: object) -> Any:
    return msgspec.to_builtins(value)


def _moved(before: Mapping[K, object], after: Mapping[K, object]) -> bool:
    """Whether adding at the end and deleting alone do not lead to this order."""
    return [*(key for key in before if key in after), *(key for key in after if key not in before)] != [*after]


def _names(values: Iterable[object]) -> list[str]:
    return [str(value) for value in values]
