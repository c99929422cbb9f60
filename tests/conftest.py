"""Fixtures that every room shares."""

import os
from collections.abc import Iterator

import pytest

from app import lane_process, services
from tests.fakes import FakeDecoders, Service, service


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the shell has set is not what a test means."""
    for name in [name for name in os.environ if name.startswith("NAM_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def real_decoders() -> None:
    """Whoever asks for it decodes in processes, as the service does."""


@pytest.fixture(autouse=True)
def _decoders(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "real_decoders" not in request.fixturenames:
        for room in (services, lane_process):
            monkeypatch.setattr(room, "Decoders", FakeDecoders)


@pytest.fixture
def serving() -> Iterator[Service]:
    with service() as running:
        yield running
