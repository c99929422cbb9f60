"""Fixtures that every room shares."""

import os
from collections.abc import Iterator

import pytest

from tests.fakes import Service, service


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the shell has set is not what a test means."""
    for name in [name for name in os.environ if name.startswith("NAM_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def serving() -> Iterator[Service]:
    with service() as running:
        yield running
