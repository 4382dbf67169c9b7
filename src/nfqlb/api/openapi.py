"""Every operation of the API, and the OpenAPI document that says so to programs.

Strategy: the table is what the server makes its routes from, so an operation cannot be there without being told, and
the other way round. The shapes of bodies come from the values that the server decodes and encodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

import nfqlb
from nfqlb.api import schema
from nfqlb.draining import DrainView
from nfqlb.feed import Event
from nfqlb.model import Answers, Options, Real, Service, Sync, Timeouts

REFERENCE = "#/components/schemas/{name}"
SERVICE = "/v1/services/{key}"
REAL = SERVICE + "/reals/{endpoint}"
PARAMETERS: dict[str, dict[str, Any]] = {
    "key": {
        "description": "ADDRESS:PORT[-LAST][/tcp|/udp|/sctp] or fwmark:N[/ipv6]; IPv6 as [ADDRESS]:PORT.",
        "schema": {"type": "string", "minLength": 1},
        "example": "203.0.113.10:80/tcp",
    },
    "endpoint": {
        "description": "A real server of it, ADDRESS[:PORT].",
        "schema": {"type": "string", "minLength": 1},
        "example": "10.0.1.11:8080",
    },
    "limit": {
        "description": "At most so many; 0: all.",
        "schema": {"type": "integer", "minimum": 0, "default": 0},
    },
    "plan": {
        "description": "Only say what would be done.",
        "schema": {"type": "boolean", "default": False},
    },
    "confirm_within": {
        "description": "Seconds after which the revision before comes back unless somebody confirms; left out: never.",
        "schema": {"type": "number", "exclusiveMinimum": 0, "maximum": 86400},
    },
    "file": {
        "description": "The path that this was read from.",
        "schema": {"type": "string"},
    },
    "since": {
        "description": "The number of the last event that is known; 0: none is.",
        "schema": {"type": "integer", "minimum": 0, "default": 0},
    },
    "follow": {
        "description": "Seconds for which to go on with events as they happen.",
        "schema": {"type": "number", "minimum": 0, "maximum": 86400, "default": 0},
    },
}
REVISION = {
    "name": "If-Match",
    "in": "header",
    "description": "The revision, in quotes, that this is a change of; where there is another, the answer is 412.",
    "schema": {"type": "string", "pattern": r'^"[0-9]{1,15}"$'},
}
JSON, LINES = "application/json", "application/x-ndjson"


class Operation(NamedTuple):
    """`name` is the server's handler."""

    method: str
    path: str
    name: str
    summary: str
    answer: Any = schema.Changed
    body: Any = None
    status: int = 200
    query: Sequence[str] = ()
    changes: bool = False
    media: str = JSON

    @property
    def in_path(self) -> list[str]:
        return [name for name in ("key", "endpoint") if f"{{{name}}}" in self.path]


def _change(method: str, path: str, name: str, summary: str, body: Any = None, **more: Any) -> Operation:
    return Operation(method, path, name, summary, body=body, changes=True, **more)


# Longer paths stand before those that they begin with: the first that fits is taken.
OPERATIONS = (
    Operation("GET", "/v1/services", "services", "All services with their real servers.", schema.Services),
    _change("POST", "/v1/services", "add_service", "Add a service.", Service, status=201),
    _change("DELETE", "/v1/services", "clear", "Delete all services."),
    Operation("POST", "/v1/zero", "zero", "Count anew."),
    Operation("POST", SERVICE + "/zero", "zero", "Count anew for this service."),
    _change("POST", SERVICE + "/reals", "add_real", "Add a real server.", Real, status=201),
    _change(
        "POST",
        REAL + "/drain",
        "drain",
        "Weight 0; deleted when its last connection has ended or time is up.",
        schema.DrainOrder,
        status=202,
        answer=DrainView,
    ),
    Operation(
        "PUT",
        REAL + "/maintenance",
        "maintenance",
        "Take a real server out for a while, or back in; the configuration stays as it is.",
        body=schema.MaintenanceOrder,
    ),
    Operation("GET", "/v1/health", "health", "Real servers that are checked, and how they are.", schema.Healths),
    Operation(
        "GET", "/v1/schedulers", "schedulers", "Schedulers in Python, and where shadows differ.", schema.Schedulers
    ),
    Operation("GET", "/v1/drains", "drains", "Drains that go on, and how the last ones ended.", schema.Drains),
    _change("PATCH", REAL, "edit_real", "Change a real server.", schema.RealEdit),
    _change("DELETE", REAL, "delete_real", "Delete a real server."),
    Operation("GET", SERVICE, "service", "One service.", schema.ServiceView),
    _change("PATCH", SERVICE, "edit_service", "Change a service.", schema.ServiceEdit),
    _change("DELETE", SERVICE, "delete_service", "Delete a service with its real servers."),
    _change("PUT", "/v1/timeouts", "set_timeouts", "Set the timeouts.", Timeouts),
    _change("PUT", "/v1/answers", "set_answers", "Set what clients hear that no real server gets.", Answers),
    _change("PUT", "/v1/options", "set_options", "Set how connections end and begin anew.", Options),
    Operation("GET", "/v1/sync", "sync", "How connection sync fares.", schema.SyncView),
    _change("PUT", "/v1/sync", "set_sync", "Begin connection sync, or go on otherwise.", Sync),
    _change("DELETE", "/v1/sync", "stop_sync", "End connection sync."),
    Operation("GET", "/v1/config", "config", "What the configuration file would say.", schema.ConfigurationView),
    _change(
        "PUT",
        "/v1/config",
        "apply",
        "Put a configuration in the place of this one.",
        schema.Configuration,
        answer=schema.Applied,
        query=("plan", "confirm_within", "file"),
    ),
    _change("POST", "/v1/config/confirm", "confirm", "Keep what waits to be confirmed."),
    _change("POST", "/v1/config/rollback", "rollback", "Go back to before what waits to be confirmed."),
    _change(
        "POST", "/v1/config/reload", "reload", "Read the file of the start again, and apply it.", answer=schema.Applied
    ),
    Operation("GET", "/v1/connections", "connections", "Live connections.", schema.Connections, query=("limit",)),
    Operation("GET", "/v1/stats", "stats", "Counters and rates.", schema.Stats),
    Operation("GET", "/v1/reasons", "reasons", "Packets by the reason that decided them.", schema.Reasons),
    Operation("GET", "/v1/daemon", "daemon", "The director itself.", dict[str, Any]),
    Operation(
        "GET",
        "/v1/events",
        "events",
        "What happened, an event a line, oldest first.",
        Event,
        query=("since", "follow"),
        media=LINES,
    ),
    Operation("GET", "/v1/openapi.json", "openapi", "This document.", dict[str, Any]),
)


def document() -> dict[str, Any]:
    """OpenAPI 3.1."""
    kinds = [kind for one in OPERATIONS for kind in (one.answer, one.body) if kind is not None]
    shapes, components = msgspec.json.schema_components([*kinds, schema.ErrorBody], ref_template=REFERENCE)
    found = iter(shapes)
    paths: dict[str, Any] = {}
    for one in OPERATIONS:
        answer = next(found)
        body = next(found) if one.body is not None else None
        paths.setdefault(one.path, {})[one.method.lower()] = _operation(one, answer, body, shapes[-1])
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "nfqlb",
            "version": nfqlb.__version__,
            "description": "Answers that tell of a revision carry it as ETag, changes take it as If-Match.",
        },
        "paths": paths,
        "components": {"schemas": components},
    }


def _operation(one: Operation, answer: Any, body: Any, error: Any) -> dict[str, Any]:
    parameters = [{"name": name, "in": "path", "required": True, **PARAMETERS[name]} for name in one.in_path]
    parameters += [{"name": name, "in": "query", **PARAMETERS[name]} for name in one.query]
    return {
        "operationId": "_".join([one.name, *(one.in_path if one.name == "zero" else ())]),
        "summary": one.summary,
        "parameters": [*parameters, *([REVISION] if one.changes else [])],
        **({"requestBody": {"required": True, "content": {JSON: {"schema": body}}}} if body else {}),
        "responses": {
            str(one.status): {"description": one.summary, "content": {one.media: {"schema": answer}}},
            "default": {"description": "What is wrong.", "content": {JSON: {"schema": error}}},
        },
    }
