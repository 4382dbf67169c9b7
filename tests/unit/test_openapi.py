"""The OpenAPI document, held against the server: requests drawn from it are answered as it says, and never by a 500."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import schemathesis
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.core.errors import UnsupportedSchema
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from nfqlb.api import openapi
from nfqlb.api.client import Client
from tests.sizes import EXAMPLES
from tests.unit.fakes import FakeDirector, serving

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
DOCUMENT = openapi.document()


def test_every_operation_is_told_with_its_parameters_and_answer() -> None:
    operations = [one for path in DOCUMENT["paths"].values() for one in path.values()]
    assert len(operations) == len(openapi.OPERATIONS)
    names = [one["operationId"] for one in operations]
    assert len(set(names)) == len(names)
    for one in openapi.OPERATIONS:
        said = DOCUMENT["paths"][one.path][one.method.lower()]
        assert [p["name"] for p in said["parameters"] if p["in"] == "path"] == one.in_path
        assert ("requestBody" in said) == (one.body is not None)


def test_the_document_is_what_the_server_tells(client: Client) -> None:
    assert client.openapi() == json.loads(json.dumps(DOCUMENT))


def test_its_shapes_are_json_schemas() -> None:
    for shape in DOCUMENT["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(shape)


@contextmanager
def forwarding(path: Path) -> Iterator[str]:
    """A port of 127.0.0.1 that leads to the unix socket, for clients that know no other."""

    def copy(source: socket.socket, sink: socket.socket) -> None:
        with source, sink:
            while data := source.recv(65536):
                sink.sendall(data)

    def serve() -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            far = socket.socket(socket.AF_UNIX)
            far.connect(str(path))
            for pair in ((near, far), (far, near)):
                threading.Thread(target=copy, args=[one.dup() for one in pair], daemon=True).start()
            near.close()
            far.close()

    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    path = tmp_path / "api.sock"
    with serving(FakeDirector(), path), forwarding(path) as url:
        yield url


def name_what_is_there(case: Any) -> None:
    """Turn drawn names into such that the director can know, so that more is looked at than names."""
    for name, value in (("key", "203.0.113.10:80/tcp"), ("endpoint", "10.0.1.11:8080")):
        if name in (case.path_parameters or {}):
            case.path_parameters[name] = value
    (case.headers or {}).pop("If-Match", None)
    if isinstance(case.body, dict) and "address" in case.body:
        case.body["address"] = "203.0.113.10"


@pytest.mark.parametrize("one", openapi.OPERATIONS, ids=lambda one: f"{one.method} {one.path}")
def test_what_the_document_lets_through_is_answered_as_it_says(url: str, one: openapi.Operation) -> None:
    operation = schemathesis.openapi.from_dict(DOCUMENT)[one.path][one.method]
    modes = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE

    @st.composite
    def cases(draw: st.DrawFn) -> Any:
        try:
            return draw(operation.as_strategy(generation_mode=draw(st.sampled_from(modes))))
        except UnsupportedSchema:  # it was about to go against the document in a way that it cannot draw
            reject()

    @settings(max_examples=EXAMPLES // 10, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(cases(), st.booleans())
    def ask(case: Any, known: bool) -> None:
        if known:
            name_what_is_there(case)
        if "follow" in (case.query or {}):
            case.query["follow"] = 0  # nobody has a day for it
        case.call_and_validate(base_url=url, checks=CHECKS, timeout=20)

    ask()
