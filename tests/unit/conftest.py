"""Fixtures of the tests on both sides of the API."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nfqlb.api.client import Client
from tests.unit.fakes import FakeDirector, serving


@pytest.fixture
def director() -> FakeDirector:
    return FakeDirector()


@pytest.fixture
def client(director: FakeDirector, tmp_path: Path) -> Iterator[Client]:
    with serving(director, tmp_path / "api.sock") as client:
        yield client
